"""Data sheets of GPUs: how fast each multiplies matrices, and how much memory it has.

Owns: the vendors' figures, and which of them is about a GPU of a given name. Does not own: which
dtype a run computes in, or what share of a peak it reaches.
"""

import re
from dataclasses import asdict, dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Dense matrix products in TFLOP/s, without sparsity; None where the GPU has no such product.

    With sums in float32, as torch computes them; GeForce cards are twice as fast with sums in
    float16. fp32: on AMD's Instinct the matrix units, which torch uses. memory_gb: of the smallest
    common variant.
    """

    fp32: float
    memory_gb: float
    bf16: float | None = None
    fp16: float | None = None
    tf32: float | None = None
    fp8: float | None = None

    def flops(self, dtype: torch.dtype, *, tf32: bool = False) -> float | None:
        """Peak FLOP/s in a dtype; None if the GPU lacks it.

        tf32: whether products of float32 may be computed in TF32 (where there is none, they are
        not). float8 of either kind means products of float8 with sums in float32.
        """
        if dtype is torch.float32:
            found: float | None = (tf32 and self.tf32) or self.fp32
        else:
            found = {
                torch.bfloat16: self.bf16,
                torch.float16: self.fp16,
                torch.float8_e4m3fn: self.fp8,
                torch.float8_e5m2: self.fp8,
            }.get(dtype)
        return None if found is None else found * 1e12


def _half(value: float, *, fp32: float, memory_gb: float, **more: float) -> Peaks:
    """A GPU whose bfloat16 and float16 are equally fast."""
    return Peaks(bf16=value, fp16=value, fp32=fp32, memory_gb=memory_gb, **more)


def _turing(fp32: float, memory_gb: float) -> Peaks:
    """A GeForce RTX 20: float16 with sums in float32 at four times the speed of float32."""
    return Peaks(fp16=4 * fp32, fp32=fp32, memory_gb=memory_gb)


def _ampere(fp32: float, memory_gb: float) -> Peaks:
    """A GeForce RTX 30: half precision at twice the speed of float32, TF32 at its speed."""
    return _half(2 * fp32, tf32=fp32, fp32=fp32, memory_gb=memory_gb)


def _ada(fp32: float, memory_gb: float) -> Peaks:
    """A GeForce RTX 40 or 50: like an RTX 30, with float8 twice as fast as half precision."""
    return _half(2 * fp32, tf32=fp32, fp8=4 * fp32, fp32=fp32, memory_gb=memory_gb)


# Sources: the vendors' data sheets and NVIDIA's white papers on its architectures.
PEAKS = {
    # NVIDIA, data center
    "GB300": _half(2500.0, fp8=5000.0, tf32=1250.0, fp32=80.0, memory_gb=288),
    "B300": _half(2250.0, fp8=4500.0, tf32=1125.0, fp32=75.0, memory_gb=288),
    "GB200": _half(2500.0, fp8=5000.0, tf32=1250.0, fp32=80.0, memory_gb=186),
    "B200": _half(2250.0, fp8=4500.0, tf32=1125.0, fp32=75.0, memory_gb=180),
    "H200 NVL": _half(835.0, fp8=1671.0, tf32=417.0, fp32=60.0, memory_gb=141),
    "H200": _half(989.0, fp8=1979.0, tf32=494.0, fp32=67.0, memory_gb=141),
    "GH200": _half(989.0, fp8=1979.0, tf32=494.0, fp32=67.0, memory_gb=96),
    "H100 PCIe": _half(756.0, fp8=1513.0, tf32=378.0, fp32=51.0, memory_gb=80),
    "H100 NVL": _half(835.0, fp8=1671.0, tf32=417.0, fp32=60.0, memory_gb=94),
    "H100": _half(989.0, fp8=1979.0, tf32=494.0, fp32=67.0, memory_gb=80),
    "H800": _half(989.0, fp8=1979.0, tf32=494.0, fp32=67.0, memory_gb=80),
    "H20": _half(148.0, fp8=296.0, tf32=74.0, fp32=44.0, memory_gb=96),
    "A100": _half(312.0, tf32=156.0, fp32=19.5, memory_gb=80),
    "A100-SXM4-40GB": _half(312.0, tf32=156.0, fp32=19.5, memory_gb=40),
    "A100-PCIE-40GB": _half(312.0, tf32=156.0, fp32=19.5, memory_gb=40),
    "A800": _half(312.0, tf32=156.0, fp32=19.5, memory_gb=80),
    "A30": _half(165.0, tf32=82.0, fp32=10.3, memory_gb=24),
    "A40": _half(149.7, tf32=74.8, fp32=37.4, memory_gb=48),
    "A10": _half(125.0, tf32=62.5, fp32=31.2, memory_gb=24),
    "A10G": _half(70.0, tf32=35.0, fp32=35.0, memory_gb=24),
    "L40S": _half(362.0, fp8=733.0, tf32=183.0, fp32=91.6, memory_gb=48),
    "L40": _half(181.0, fp8=362.0, tf32=90.5, fp32=90.5, memory_gb=48),
    "L4": _half(121.0, fp8=242.5, tf32=60.0, fp32=30.3, memory_gb=24),
    "T4": Peaks(fp16=65.0, fp32=8.1, memory_gb=16),
    "V100": Peaks(fp16=125.0, fp32=15.7, memory_gb=16),
    "V100-PCIE": Peaks(fp16=112.0, fp32=14.0, memory_gb=16),
    "V100S": Peaks(fp16=130.0, fp32=16.4, memory_gb=32),
    "P100": Peaks(fp16=21.2, fp32=10.6, memory_gb=16),
    "P100-PCIE": Peaks(fp16=18.7, fp32=9.3, memory_gb=16),
    "P40": Peaks(fp32=12.0, memory_gb=24),
    # NVIDIA, workstations
    "RTX PRO 6000": _half(503.8, fp8=1007.6, tf32=251.9, fp32=126.0, memory_gb=96),
    "RTX 6000 Ada": _half(364.2, fp8=728.5, tf32=182.1, fp32=91.1, memory_gb=48),
    "RTX A6000": _half(154.8, tf32=77.4, fp32=38.7, memory_gb=48),
    "RTX A5000": _half(111.1, tf32=55.6, fp32=27.8, memory_gb=24),
    "RTX A4000": _half(76.7, tf32=38.3, fp32=19.2, memory_gb=16),
    "Quadro RTX 8000": Peaks(fp16=130.5, fp32=16.3, memory_gb=48),
    "Quadro RTX 6000": Peaks(fp16=130.5, fp32=16.3, memory_gb=24),
    "Quadro RTX 5000": Peaks(fp16=89.2, fp32=11.2, memory_gb=16),
    "TITAN RTX": Peaks(fp16=130.5, fp32=16.3, memory_gb=24),
    "TITAN V": Peaks(fp16=110.0, fp32=13.8, memory_gb=12),
    # NVIDIA GeForce
    "RTX 5090": _ada(104.8, 32),
    "RTX 5080": _ada(56.3, 16),
    "RTX 5070 Ti": _ada(43.9, 16),
    "RTX 5070": _ada(30.9, 12),
    "RTX 4090": _ada(82.6, 24),
    "RTX 4090 D": _ada(73.5, 24),
    "RTX 4080 SUPER": _ada(52.2, 16),
    "RTX 4080": _ada(48.7, 16),
    "RTX 4070 Ti SUPER": _ada(44.1, 16),
    "RTX 4070 Ti": _ada(40.1, 12),
    "RTX 4070 SUPER": _ada(35.5, 12),
    "RTX 4070": _ada(29.1, 12),
    "RTX 4060 Ti": _ada(22.1, 8),
    "RTX 4060": _ada(15.1, 8),
    "RTX 3090 Ti": _ampere(40.0, 24),
    "RTX 3090": _ampere(35.6, 24),
    "RTX 3080 Ti": _ampere(34.1, 12),
    "RTX 3080": _ampere(29.8, 10),
    "RTX 3070 Ti": _ampere(21.7, 8),
    "RTX 3070": _ampere(20.3, 8),
    "RTX 3060 Ti": _ampere(16.2, 8),
    "RTX 3060": _ampere(12.7, 12),
    "RTX 3050": _ampere(9.1, 8),
    "RTX 2080 Ti": _turing(13.4, 11),
    "RTX 2080 SUPER": _turing(11.2, 8),
    "RTX 2080": _turing(10.1, 8),
    "RTX 2070 SUPER": _turing(9.1, 8),
    "RTX 2070": _turing(7.5, 8),
    "RTX 2060 SUPER": _turing(7.2, 8),
    "RTX 2060": _turing(6.5, 6),
    "GTX 1080 Ti": Peaks(fp32=11.3, memory_gb=11),
    "GTX 1080": Peaks(fp32=8.9, memory_gb=8),
    "GTX 1070 Ti": Peaks(fp32=8.2, memory_gb=8),
    "GTX 1070": Peaks(fp32=6.5, memory_gb=8),
    "GTX 1060": Peaks(fp32=4.4, memory_gb=6),
    "GTX 1060 3GB": Peaks(fp32=3.9, memory_gb=3),
    # AMD; the two halves of an MI250 are two devices
    "MI355X": _half(2516.6, fp8=5033.2, fp32=157.3, memory_gb=288),
    "MI350X": _half(2306.9, fp8=4613.7, fp32=144.2, memory_gb=288),
    # MI300: float8 is of other formats (fnuz) than those that training uses
    "MI325X": _half(1307.4, tf32=653.7, fp32=163.4, memory_gb=256),
    "MI300X": _half(1307.4, tf32=653.7, fp32=163.4, memory_gb=192),
    "MI300A": _half(980.6, tf32=490.3, fp32=122.6, memory_gb=128),
    "MI250X": _half(191.5, fp32=47.9, memory_gb=64),
    "MI250": _half(181.0, fp32=45.3, memory_gb=64),
    "MI210": _half(181.0, fp32=45.3, memory_gb=64),
    "MI100": Peaks(bf16=92.3, fp16=184.6, fp32=46.1, memory_gb=32),
}


LAPTOP_SHARE = 0.6  # of its namesake's speed; an estimate by the power that laptops give it


def find(name: str) -> Peaks | None:
    """The data sheet of a GPU by its driver's name for it; None if it is not known.

    The longest key that stands in the name as words applies. Laptops' cards are slower than their
    namesakes, and a MIG slice is a part of its card.
    """
    return None if re.search(r"\b(Laptop|Max-Q|MIG)\b", name) else _longest(name)


def roughly(name: str) -> Peaks | None:
    """As `find`, with an estimate of a laptop's card: good enough for plans, not for MFU."""
    if not re.search(r"\b(Laptop|Max-Q)\b", name):
        return find(name)
    sheet = _longest(name)
    if sheet is None:
        return None
    speeds = {field: value and LAPTOP_SHARE * value for field, value in asdict(sheet).items()}
    return Peaks(**speeds | {"memory_gb": sheet.memory_gb})


def _longest(name: str) -> Peaks | None:
    found = [key for key in PEAKS if re.search(rf"(?<![A-Za-z0-9]){key}(?![A-Za-z0-9])", name)]
    return PEAKS[max(found, key=len)] if found else None
