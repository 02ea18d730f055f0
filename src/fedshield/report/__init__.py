"""The report of a run: one self-contained HTML page, made from the run folder alone."""

from fedshield.report.html import write_report

__all__ = ["write_report"]
