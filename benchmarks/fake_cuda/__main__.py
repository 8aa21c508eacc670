"""Compile training and generation for an NVIDIA GPU on a machine without one, and count.

python benchmarks/fake_cuda "train depth=12 precision=fp8 attention=varlen" "train precision=fp32"
python benchmarks/fake_cuda "kept depth=24" "kept depth=24 precision=fp8"
FAKE_CUDA_CAPABILITY=7.5 python benchmarks/fake_cuda "train precision=fp16"

Each argument is a check of checks.py or decoding.py and fields of its Case. Prints a JSON list.
Needs the CUDA build of torch, of a version whose calls runtime.c is known to answer, and gcc.
"""

import argparse
import dataclasses
import json
import sys

import device


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checks", nargs="+", help='like "train depth=12 precision=fp8"')
    given = parser.parse_args()
    try:
        device.enter()
    except RuntimeError as error:
        print(f"fake_cuda: no fake device: {error}", file=sys.stderr)
        return 4
    import checks
    import decoding

    kinds = {field.name: type(field.default) for field in dataclasses.fields(checks.Case)}
    known = {**checks.CHECKS, **decoding.CHECKS}
    found = []
    for text in given.checks:
        name, *words = text.split()
        pairs = (word.split("=") for word in words)
        case = checks.Case(**{key: kinds[key](value) for key, value in pairs})
        found.append({"check": text, **known[name](case)})
        print(f"fake_cuda: {text}: done", file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
