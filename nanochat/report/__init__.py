"""A run's report (report.md and a self-contained report.html), and all runs while they train."""

from nanochat.report.record import build, is_complete, record, record_samples, write_config

__all__ = ["build", "is_complete", "record", "record_samples", "write_config"]
