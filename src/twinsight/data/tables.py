"""Columns of a table file, as text: CSV, Parquet or JSON Lines."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from twinsight.errors import UserError, unknown

FORMATS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet", ".jsonl": "json", ".ndjson": "json"}
"""How a table is read, by the ending of its name."""


def read_columns(path: Path, required: Sequence[str], optional: Sequence[str], argument: str) -> pa.Table:
    """The named columns of a table file as text, None where a cell is empty; other columns are not read.

    ``argument`` is what complaints call the file.

    Raises:
        UserError: no such file, an unknown ending, not a table of that format, a required column that is missing, a
            column that is there twice, a column that text cannot stand for, or no rows.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "pairs.csv"
    >>> _ = path.write_text("image1,note,label\\na.png,x,1\\n")
    >>> read_columns(path, ["image1"], ["label", "pair_id"], "file").to_pydict()
    {'image1': ['a.png'], 'label': ['1']}
    """
    if not path.is_file():
        raise UserError(f"`{argument}={path}`: no such file")
    if path.suffix.lower() not in FORMATS:
        raise unknown(f"ending of `{argument}={path}`", path.suffix, FORMATS)
    try:
        present = _names(path)
        missing = [name for name in required if name not in present]
        if missing:
            raise UserError(
                f"`{argument}={path}` has no column {' or '.join(missing)}: it needs {', '.join(required)}, "
                f"and has {' '.join(', '.join(present).split()) or 'none'}"
            )
        twice = [name for name in (*required, *optional) if present.count(name) > 1]
        if twice:
            raise UserError(f"`{argument}={path}` has the column {twice[0]} twice: which one is meant?")
        names = [name for name in (*required, *optional) if name in present]
        table = _read(path, names)
        table = pa.table({name: _as_text(table[name]) for name in names})
    except (pa.ArrowException, UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"`{argument}={path}` cannot be read as a table: {' '.join(str(error).split())}") from None
    if not len(table):
        raise UserError(f"`{argument}={path}` has no rows")
    return table


def _names(path: Path) -> list[str]:
    kind = FORMATS[path.suffix.lower()]
    if kind == "parquet":
        return pq.read_schema(path).names
    if kind == "json":
        return pyarrow.json.read_json(path).column_names
    with path.open(encoding="utf-8-sig", newline="") as file:
        return next(csv.reader(file, delimiter=_delimiter(path)), [])


def _read(path: Path, names: list[str]) -> pa.Table:
    kind = FORMATS[path.suffix.lower()]
    if kind == "parquet":
        return pq.read_table(path, columns=names)
    if kind == "json":
        return pyarrow.json.read_json(path).select(names)
    return pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(delimiter=_delimiter(path)),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=names,
            column_types=dict.fromkeys(names, pa.string()),  # 007 is a name, not a number
            strings_can_be_null=True,
            null_values=[""],
        ),
    )


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    text = column.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), None, text)
