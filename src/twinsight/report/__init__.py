"""Tables and statistics of several explainers on the same pairs, computed from their records alone."""

from twinsight.report.grids import Entry, Grid, number
from twinsight.report.labels import by_label, labels_of
from twinsight.report.published import PUBLISHED, beside_published
from twinsight.report.results import Results, Row, Run, kind_of
from twinsight.report.statistics import Interval, interval, intervals
from twinsight.report.tables import ResultTable
from twinsight.report.writers import write_grid, write_rows, write_tables

__all__ = [
    "PUBLISHED",
    "Entry",
    "Grid",
    "Interval",
    "ResultTable",
    "Results",
    "Row",
    "Run",
    "beside_published",
    "by_label",
    "interval",
    "intervals",
    "kind_of",
    "labels_of",
    "number",
    "write_grid",
    "write_rows",
    "write_tables",
]
