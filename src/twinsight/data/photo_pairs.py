"""Pairs of two different photos: listed in a table file, or given from Python."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from twinsight.data.images import Picture, as_photo
from twinsight.data.sources import Photos, decoded, file_fingerprint, open_photo, what_was_said
from twinsight.data.tables import read_columns
from twinsight.errors import UserError

_COLUMNS = ("image1", "image2", "pair_id", "label")
_REMEMBERED = 1 << 20
"""Photos whose digest is kept while a table is gone through; what is named again after so many others is read again."""


class PhotoPairs(Photos):
    """Photos whose pairs are of two photos, each with views of its own.

    A subclass gives :meth:`opened`, and :meth:`called` where photos have names beside the pair's.
    """

    def opened(self, index: int, view: int) -> Image.Image:
        """The photo behind view 1 or 2 as stored; may raise whatever its decoder raises."""
        raise NotImplementedError

    def called(self, index: int, view: int) -> str:
        """What complaints call that photo."""
        return f"photo of view {view}"

    def open(self, index: int) -> Image.Image:
        return self.opened(index, 1)

    def load(self, index: int) -> Image.Image:
        return self._decoded(index, 1)

    def load_pair(self, index: int) -> tuple[Image.Image, Image.Image]:
        return self._decoded(index, 1), self._decoded(index, 2)

    def _decoded(self, index: int, view: int) -> Image.Image:
        return decoded(lambda: self.opened(index, view), self.ids[index], self.called(index, view))


class ImagePairs(PhotoPairs):
    """Pairs that a table lists: ``image1``, ``image2`` and, where there are such columns, ``pair_id`` and ``label``.

    For what two photos have in common rather than two augmentations of one: retrieval, verification of faces,
    near-duplicates. Views of ``views=whole`` show the photos uncropped. Photos are read when their pair's turn comes;
    of the table only those four columns are kept, of large ones on disk.

    Args:
        file: CSV (or TSV, by its ending) with a line of column names, Parquet, or JSON Lines (``.jsonl``).
        root: folder that paths of photos are relative to; None is the folder of ``file``.
        on_error: ``"skip"`` leaves out pairs of which a photo cannot be read; ``"raise"`` stops the run.
        limit: keep this many pairs, evenly spaced; None keeps all.

    ``pair_id`` is the name of a pair in records and pictures, and what its random numbers are drawn from; without
    that column it is the row, counted from 0. ``label`` is any text or number, ``same`` for one: results
    are broken down by it.

    Raises:
        UserError: no such file, or not a table; columns that are missing; an empty cell of an image; a ``pair_id``
            twice; no rows.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "pairs.csv").write_text("image1,image2,label\\na.png,b.png,same\\nb.png,a.png,\\n")
    >>> Image.new("RGB", (4, 3)).save(folder / "a.png"), Image.new("RGB", (2, 2)).save(folder / "b.png")
    (None, None)
    >>> pairs = ImagePairs(folder / "pairs.csv")
    >>> list(pairs.ids), [photo.size for photo in pairs.load_pair(0)], pairs.label(0), pairs.label(1)
    (['0', '1'], [(4, 3), (2, 2)], 'same', None)
    """

    def __init__(
        self,
        file: str | Path,
        root: str | Path | None = None,
        on_error: Literal["skip", "raise"] = "skip",
        limit: int | None = None,
    ) -> None:
        path = Path(file).expanduser()
        self.root = path.parent if root is None else Path(root).expanduser()
        table = read_columns(path, required=_COLUMNS[:2], optional=_COLUMNS[2:], argument="data.file")
        for name in _COLUMNS[:2]:
            if table[name].null_count:
                row = pc.index(pc.is_null(table[name]), True).as_py()
                raise UserError(f"`data.file={path}`: row {row} has no `{name}`: give every pair two images")
        super().__init__(_pair_ids(table, path), on_error, limit)
        self._table = table

    def opened(self, index: int, view: int) -> Image.Image:
        return open_photo(self.root / self.called(index, view))

    def called(self, index: int, view: int) -> str:
        return self._table[f"image{view}"][self.indices[index]].as_py()

    def label(self, index: int) -> str | None:
        return self._table["label"][self.indices[index]].as_py() if "label" in self._table.column_names else None

    def fingerprint(self, index: int) -> bytes:
        return b"".join(hashlib.sha256(self._content(self.called(index, view))).digest() for view in (1, 2))

    def digest(self) -> str:
        """SHA-256 over ids, labels and contents of both photos of every pair; photos of many pairs are read once."""
        content = functools.lru_cache(_REMEMBERED)(lambda name: hashlib.sha256(self._content(name)).digest())
        total = hashlib.sha256()
        for index, name in enumerate(self.ids):
            total.update(f"{name}\n{self.label(index)}\n".encode())
            total.update(content(self.called(index, 1)) + content(self.called(index, 2)))
        return total.hexdigest()

    def _content(self, name: str) -> bytes:
        try:
            return file_fingerprint(self.root / name)
        except (OSError, ValueError) as error:  # a name may hold what no path can
            return f"unreadable: {what_was_said(error)}".encode()  # skipped, and named, when its turn comes


class InMemoryPairs(PhotoPairs):
    """Pairs given from Python: Pillow images, arrays, tensors or paths.

    Args:
        images1, images2: the photos of each pair, see :func:`twinsight.data.as_photo` for what they may be.
        ids: name of each pair, unique; None numbers them from 0.
        labels: what kind of pair each is; None where there are no kinds.

    Raises:
        UserError: no pairs, or lists of different lengths.

    >>> pairs = InMemoryPairs([np.zeros((8, 8, 3), np.uint8)], [Image.new("L", (4, 4))], labels=["different"])
    >>> [photo.mode for photo in pairs.load_pair(0)], pairs.label(0)
    (['RGB', 'RGB'], 'different')
    """

    def __init__(
        self,
        images1: Sequence[Picture],
        images2: Sequence[Picture],
        ids: Sequence[str] | None = None,
        labels: Sequence[Any] | None = None,
    ) -> None:
        ids = [str(place) for place in range(len(images1))] if ids is None else ids
        lengths = {len(images1), len(images2), len(ids), len(images1 if labels is None else labels)}
        if len(lengths) > 1 or not images1:
            raise UserError(f"`images1`, `images2`, `ids` and `labels` must have one length above 0, got {lengths}")
        super().__init__(ids, on_error="raise")
        self._images = (images1, images2)
        self._kinds = labels

    def opened(self, index: int, view: int) -> Image.Image:
        return as_photo(self._images[view - 1][index])

    def label(self, index: int) -> str | None:
        return None if self._kinds is None or self._kinds[index] is None else str(self._kinds[index])

    def fingerprint(self, index: int) -> bytes:
        photos = self.load_pair(index)
        return b"".join(f"{photo.size}\n".encode() + photo.tobytes() for photo in photos)


class _RowNumbers(Sequence[str]):
    """The ids of pairs that have none: their rows."""

    def __init__(self, count: int) -> None:
        self._rows = range(count)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        return str(self._rows[place])


class _Texts(Sequence[str]):
    """A column of texts that stays with Arrow."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, place: Any) -> Any:
        return self._column[place].as_py()


def _pair_ids(table: pa.Table, path: Path) -> Sequence[str]:
    if "pair_id" not in table.column_names:
        return _RowNumbers(len(table))
    column = table["pair_id"]
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise UserError(f"`data.file={path}`: row {row} has no `pair_id`: give every pair one, or leave the column out")
    # Eight bytes for each id; texts that differ may share them, so whatever is there twice is looked at again.
    hashes = np.empty(len(column), np.int64)
    start = 0
    for chunk in column.chunks:
        hashes[start : start + len(chunk)] = [hash(name) for name in chunk.to_pylist()]
        start += len(chunk)
    hashes.sort()
    shared = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    seen: set[str] = set()
    for chunk in column.chunks if shared else ():
        for name in (name for name in chunk.to_pylist() if hash(name) in shared):
            if name in seen:
                raise UserError(
                    f"`data.file={path}`: `pair_id` {name!r} is there twice: records need names that differ"
                )
            seen.add(name)
    return _Texts(column)
