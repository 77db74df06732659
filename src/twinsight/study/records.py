"""Records on local disk, the truth of a cell: fragments while it runs, one file in pair order when it is done."""

import logging
import shutil
import time
import uuid
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from twinsight.files import write_atomically
from twinsight.sealed import Damaged, check_seal, read_sealed, write_sealed

log = logging.getLogger(__name__)

TABLES = ("arrays", "timings", "records")
"""What a fragment holds. Records come last: where they are, the rest is."""
_FLUSH_SECONDS = 10.0


class RecordWriter:
    """Collects one row per pair and writes fragments, at the latest every ten seconds.

    Args:
        folder: of the cell.
        rank: of this process, part of the fragments' names.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder / "fragments"
        self.rank = rank
        self._rows: dict[str, list[dict[str, Any]]] = {table: [] for table in TABLES}
        self._flushed = time.monotonic()

    def add(self, record: dict[str, Any], arrays: dict[str, Any], timing: dict[str, Any]) -> None:
        """Add a pair: its record, its maps and curves, and what it cost."""
        for table, row in (("records", record), ("arrays", arrays), ("timings", timing)):
            self._rows[table].append(row)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected."""
        self._flushed = time.monotonic()
        if not self._rows["records"]:
            return
        name = f"{self.rank:04d}-{uuid.uuid4().hex}.parquet"
        # Taken out before writing: after a failure half way, a second flush must not write records without their maps.
        rows, self._rows = self._rows, {table: [] for table in TABLES}
        for table in TABLES:
            write_atomically(self.folder / table / name, partial(write_sealed, _table(rows[table])))


def packed_array(name: str, values: Tensor | None) -> dict[str, Any]:
    """Columns for a map, a curve or an image of any shape.

    Half precision after division by the largest magnitude, which is kept beside it; 8-bit integers as they are.
    """
    if values is None:
        return {name: None, f"{name}_shape": None, f"{name}_scale": None}
    shape = list(values.shape)
    if values.dtype == torch.uint8:
        return {name: values.cpu().numpy().ravel(), f"{name}_shape": shape, f"{name}_scale": None}
    exact = values.detach().cpu().double().numpy()
    finite = np.abs(exact[np.isfinite(exact)])
    scale = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    return {name: (exact / scale).astype(np.float16).ravel(), f"{name}_shape": shape, f"{name}_scale": scale}


def unpacked_array(row: dict[str, Any], name: str) -> np.ndarray | None:
    """What :func:`packed_array` packed, in its own shape: float32, or 8-bit integers where those were given."""
    if row[name] is None:
        return None
    if row[f"{name}_scale"] is None:
        return np.asarray(row[name], dtype=np.uint8).reshape(row[f"{name}_shape"])
    values = np.asarray(row[name], dtype=np.float16).astype(np.float32) * np.float32(row[f"{name}_scale"])
    return values.reshape(row[f"{name}_shape"])


def done_indices(folder: Path) -> set[int]:
    """Indices of the pairs in every table; fragments that cannot be read are removed and their pairs done again."""
    return set.intersection(
        *({index for part in _readable(folder, name) for index in part.column("index").to_pylist()} for name in TABLES)
    )


def is_whole(folder: Path) -> bool:
    """Whether the files of a finished cell are what was written: records and timings to the last bit.

    Of arrays, which may be large, that they can be opened: they are checked when they are read.
    """
    try:
        for name in ("records", "timings"):
            check_seal(folder / f"{name}.parquet")
        for name in TABLES:
            pq.read_metadata(folder / f"{name}.parquet")
    except (pa.ArrowException, OSError, Damaged):
        return False
    return True


def compact(folder: Path, metadata: dict[str, str]) -> None:
    """Make one file per table, in pair order, of all fragments (and of an earlier compaction); then remove them."""
    for name in TABLES:
        parts = list(_readable(folder, name))
        if not parts:
            continue
        table = pa.concat_tables(parts, promote_options="permissive")
        _, first = np.unique(table.column("index").to_numpy(), return_index=True)  # sorted, and each pair once
        table = table.take(first).combine_chunks()
        table = table.select(_in_order(part.column_names for part in parts))
        table = table.replace_schema_metadata(metadata)
        write_atomically(folder / f"{name}.parquet", partial(write_sealed, table))
    shutil.rmtree(folder / "fragments", ignore_errors=True)


def read(folder: Path, table: str = "records") -> list[dict[str, Any]]:
    """Rows of a finished cell in pair order; tables are ``records``, ``arrays`` and ``timings``.

    Raises:
        Damaged: the file is not what was written.
    """
    return read_sealed(folder / f"{table}.parquet").to_pylist()


def _readable(folder: Path, table: str) -> Iterable[pa.Table]:
    whole = folder / f"{table}.parquet"
    for path in [*([whole] if whole.exists() else []), *sorted((folder / "fragments" / table).glob("*.parquet"))]:
        try:
            yield read_sealed(path)
        except Damaged as error:
            log.warning("%s; that is done now", error)
            path.unlink(missing_ok=True)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table({name: [row.get(name) for row in rows] for name in _in_order(rows)})


def _in_order(namings: Iterable[Iterable[str]]) -> list[str]:
    """Every name once, in the order of whoever has most: a skipped pair has few columns and may come first."""
    longest_first = sorted(map(list, namings), key=len, reverse=True)
    return list(dict.fromkeys(name for names in longest_first for name in names))
