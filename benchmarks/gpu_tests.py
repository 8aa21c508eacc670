"""The part of gpu_check that runs the tests marked gpu."""

import importlib.util
from collections import Counter

from gpu_common import ROOT, Skipped, Work

MARK = "pytest.mark.gpu"


def run_tests(work: Work) -> None:
    """Run the tests marked gpu, if pytest is installed."""
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed")
    import pytest

    counts: dict[str, int] = {"passed": 0, "failed": 0, "skipped": 0}
    skips: Counter[str] = Counter()

    class Outcomes:
        """Counts outcomes and records why tests failed or were skipped."""

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.when != "call" and report.passed:
                return
            counts[report.outcome] += 1
            if report.skipped:
                why = (
                    report.longrepr[2] if isinstance(report.longrepr, tuple) else "no reason given"
                )
                skips[str(why).removeprefix("Skipped: ")[:200]] += 1
            elif report.failed:
                lines = str(report.longrepr).strip().split("\n")
                work.note(f"failed: {report.nodeid}: {lines[-1][:200]}")

        def pytest_collectreport(self, report: pytest.CollectReport) -> None:
            if report.failed:
                work.note(f"not collected: {report.nodeid}: {str(report.longrepr)[-200:]}")

    tests = sorted((ROOT / "tests").glob("test_*.py"))
    files = [str(path) for path in tests if MARK in path.read_text(encoding="utf-8")]
    args = ["-m", "gpu", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    code = pytest.main([*args, *files], plugins=[Outcomes()])
    for why, count in skips.items():
        work.note(f"{count} skipped: {why}")
    work.note("tests marked gpu: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    if code not in (0, 5):  # 5: no tests were collected
        raise AssertionError(f"{counts['failed']} tests failed, or some were not collected")
