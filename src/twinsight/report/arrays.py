"""Maps and curves of a cell as its ``arrays.parquet`` keeps them."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twinsight.sealed import check_seal


class Arrays:
    """Arrays of every pair of a cell, read one column at a time.

    Args:
        folder: of the cell; fragments are read where it is not finished.

    Raises:
        Damaged: a file is not what was written.
    """

    def __init__(self, folder: Path) -> None:
        whole = folder / "arrays.parquet"
        parts = [whole] if whole.exists() else sorted((folder / "fragments" / "arrays").glob("*.parquet"))
        for part in parts:
            check_seal(part)
        self._files = [pq.ParquetFile(part, memory_map=True) for part in parts]
        self._names = {name for file in self._files for name in file.schema_arrow.names}

    @property
    def names(self) -> list[str]:
        """Columns that hold arrays: maps, curves and what else an explainer keeps."""
        return sorted(name for name in self._names if f"{name}_shape" in self._names)

    def column(self, name: str) -> dict[int, NDArray[Any]]:
        """One array for each pair that has it, by the pair's index: float32, or 8-bit integers as they were given."""
        if f"{name}_shape" not in self._names:
            return {}
        wanted = ["index", name, f"{name}_shape", f"{name}_scale"]
        found: dict[int, NDArray[Any]] = {}
        for file in self._files:
            if name not in file.schema_arrow.names:
                continue
            table = file.read(columns=wanted).combine_chunks()
            if pa.types.is_null(table.schema.field(name).type):
                continue  # no pair has it
            shapes, scales = (table.column(part).to_pylist() for part in wanted[2:])
            for index, values, shape, scale in zip(
                table.column("index").to_pylist(), _lists(table.column(name)), shapes, scales, strict=True
            ):
                if shape is not None:
                    found[index] = (values if scale is None else values.astype(np.float32) * np.float32(scale)).reshape(
                        shape
                    )
        return found


def _lists(column: pa.ChunkedArray) -> Iterable[NDArray[Any]]:
    """Each list of a column without making Python numbers of its values."""
    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy()
        values = chunk.values.to_numpy(zero_copy_only=False)
        yield from (values[start:end] for start, end in pairwise(offsets))
