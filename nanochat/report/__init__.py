"""A run's report: stage results, report.md and a self-contained report.html."""

from nanochat.report.record import build, is_complete, record, record_samples, write_config

__all__ = ["build", "is_complete", "record", "record_samples", "write_config"]
