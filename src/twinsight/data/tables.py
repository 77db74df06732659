"""Columns of a table file, as text: CSV, Parquet or JSON Lines, read piece by piece."""

import csv
import io
import itertools
import mmap
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from twinsight.errors import UserError, unknown

FORMATS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet", ".jsonl": "json", ".ndjson": "json"}
"""How a table is read, by the ending of its name."""

_PIECE_BYTES = 1 << 20  # of text that are parsed at once; Arrow reads some dozen ahead
_HELD_BYTES = 1 << 26  # what is kept of a table beyond it lies on disk


def read_columns(path: Path, required: Sequence[str], optional: Sequence[str], argument: str) -> pa.Table:
    """The named columns of a table file as text, None where a cell is empty; other columns are not read.

    No file is held whole. What is kept of a large one lies in a file without a name in the folder for temporary files
    (``TMPDIR``), and is mapped from there. ``argument`` is what complaints call the file.

    Raises:
        UserError: no such file, an unknown ending, not a table of that format, a required column that is missing, a
            column that is there twice, a column that text cannot stand for, no rows, or no room for temporary files.

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
    table = _kept(_pieces(path, required, optional, argument))
    if not len(table):
        raise UserError(f"`{argument}={path}` has no rows")
    return table


def _kept(pieces: Iterator[pa.Table]) -> pa.Table:
    """All pieces as one table, in memory or, where it is large, on disk; there is one piece at least."""
    first = next(pieces)
    try:
        with tempfile.SpooledTemporaryFile(_HELD_BYTES) as file:
            with pa.ipc.new_stream(file, first.schema) as writer:
                for piece in itertools.chain([first], pieces):
                    writer.write_table(piece)
            on_disk = file.tell() > _HELD_BYTES
            file.seek(0)
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if on_disk else file.read()
    except OSError as error:  # what is wrong with the table has been said by another name
        raise UserError(
            f"no room for a copy of the table in {tempfile.gettempdir()} ({error.strerror}): "
            "free some, or name another folder in the variable TMPDIR"
        ) from None
    return pa.ipc.open_stream(pa.py_buffer(content)).read_all()


def _pieces(path: Path, required: Sequence[str], optional: Sequence[str], argument: str) -> Iterator[pa.Table]:
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
        yield pa.table({name: pa.array([], pa.string()) for name in names})
        for piece in _read(path, names):
            yield pa.table({name: _as_text(piece[name]) for name in names})
    except (pa.ArrowException, UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"`{argument}={path}` cannot be read as a table: {' '.join(str(error).split())}") from None


def _names(path: Path) -> list[str]:
    kind = FORMATS[path.suffix.lower()]
    if kind == "parquet":
        return pq.read_schema(path).names
    if kind == "json":
        return list(dict.fromkeys(name for piece in _json(path) for name in piece.column_names))
    with path.open(encoding="utf-8-sig", newline="") as file:
        return next(csv.reader(file, delimiter=_delimiter(path)), [])


def _read(path: Path, names: list[str]) -> Iterator[pa.Table | pa.RecordBatch]:
    kind = FORMATS[path.suffix.lower()]
    if kind == "parquet":
        # A buffer, since a group of rows may be the whole file.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            yield from file.iter_batches(1 << 14, columns=names)
    elif kind == "json":
        yield from _json(path, _json_types(path, names))
    else:
        with pyarrow.csv.open_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(block_size=_PIECE_BYTES),
            parse_options=pyarrow.csv.ParseOptions(delimiter=_delimiter(path)),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=names,
                column_types=dict.fromkeys(names, pa.string()),  # 007 is a name, not a number
                strings_can_be_null=True,
                null_values=[""],
            ),
        ) as reader:
            yield from reader


def _json_types(path: Path, names: list[str]) -> pa.Schema:
    """What the columns are in the whole file: a piece of it may hold nothing, or whole numbers alone."""
    found = pa.schema([(name, pa.null()) for name in names])
    for piece in _json(path):
        fields = [piece.schema.field(name) for name in names if name in piece.column_names]
        # Text that Arrow takes for a time is text.
        fields = [field.with_type(pa.string()) if pa.types.is_timestamp(field.type) else field for field in fields]
        found = pa.unify_schemas([found, pa.schema(fields)], promote_options="permissive")
    return found


def _json(path: Path, schema: pa.Schema | None = None) -> Iterator[pa.Table]:
    """Tables of some lines each, of the columns of ``schema`` or all there are."""
    options = pyarrow.json.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "ignore"
    )
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES) + file.readline():
            if not piece.isspace():
                yield pyarrow.json.read_json(io.BytesIO(piece), parse_options=options)


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _as_text(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    text = column.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), None, text)
