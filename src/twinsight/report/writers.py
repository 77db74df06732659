"""Tables as files."""

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from twinsight.files import write_atomically
from twinsight.report.grids import Grid
from twinsight.report.labels import by_label
from twinsight.report.published import beside_published
from twinsight.report.results import Results
from twinsight.report.tables import ResultTable, agreement_grid, agreement_rows, comparison_rows


def write_tables(results: Results, folder: Path, model: str | None = None) -> ResultTable:
    """Write all tables of a set into ``folder``.

    ``results`` as Markdown, LaTeX, CSV and Parquet; ``by_label``, the same for the pairs of each label, where pairs
    have labels; ``comparisons`` and ``rank_agreement`` of two explainers or more;
    ``published`` where ``model`` and a row are those of the published tables. A file whose table there is not, is
    removed, so that none is left of an earlier set.

    >>> import tempfile
    >>> from twinsight.report import Row, Run
    >>> runs = [Run([{"index": i, "pair_id": str(i), "skipped": None, "si": i / 4} for i in range(4)])]
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = write_tables(Results([Row("gradcam", "Grad-CAM", runs)], resamples=99), folder)
    >>> sorted(path.name for path in folder.iterdir())
    ['results.csv', 'results.md', 'results.parquet', 'results.tex']
    """
    table = ResultTable.of(results)
    grids = [grid for grid in (table.means(), table.gains()) if grid is not None]
    _text(folder / "results.md", "\n".join(grid.markdown() for grid in grids))
    _text(folder / "results.tex", "% needs \\usepackage{booktabs}\n" + "\n".join(grid.latex() for grid in grids))
    _rows(folder / "results", table.long())
    labelled = {label: ResultTable.of(found) for label, found in by_label(results).items()}
    kinds = [one.means(f"Pairs labelled {label}").markdown() for label, one in labelled.items()]
    _text(folder / "by_label.md", "\n".join(kinds) or None)
    _rows(folder / "by_label", [{"label": label, **line} for label, one in labelled.items() for line in one.long()])
    _rows(folder / "comparisons", comparison_rows(results))
    agreement = results.agreement if len(results.explainers) > 1 else []
    _rows(folder / "rank_agreement", agreement_rows(agreement), parquet=False)
    _text(folder / "rank_agreement.md", agreement_grid(results).markdown() if agreement else None)
    published = beside_published(table, model)
    _text(folder / "published.md", published.markdown() if published else None)
    _rows(folder / "published", published.long() if published else [], parquet=False)
    return table


def _text(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink(missing_ok=True)
    else:
        write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_grid(grid: Grid, rows: Sequence[dict[str, Any]], stem: Path) -> list[Path]:
    """Write a table of one's own as ``stem.md``, for readers, and its rows as CSV and Parquet; the files."""
    places = [stem.with_name(f"{stem.name}.{ending}") for ending in ("md", "csv", "parquet")]
    _text(places[0], grid.markdown())
    for place in places[1:]:
        write_rows(place, rows)
    return places


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write dictionaries as CSV or Parquet, by the file's ending; columns are those of any of them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".csv":
        write_atomically(path, lambda partial: _csv(partial, names, rows))
        return
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    write_atomically(path, partial(pq.write_table, table))


def _rows(path: Path, rows: Sequence[dict[str, Any]], parquet: bool = True) -> None:
    """Dictionaries as CSV and Parquet; no rows, no files."""
    for place in [path.with_suffix(".csv"), *([path.with_suffix(".parquet")] if parquet else [])]:
        if rows:
            write_rows(place, rows)
        else:
            place.unlink(missing_ok=True)


def _csv(path: Path, names: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
