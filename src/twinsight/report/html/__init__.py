"""The study report: one HTML file that says what was run and what came out, and opens from disk without a network."""

from twinsight.report.html.page import Report, build_report
from twinsight.report.html.sources import CellFolder, Collection, collect

__all__ = ["CellFolder", "Collection", "Report", "build_report", "collect"]
