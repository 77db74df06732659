"""Data sets of other libraries: Hugging Face's from disk, torchvision's by name."""

import hashlib
import inspect
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torchvision.datasets
from PIL import Image

from twinsight.data.images import as_photo
from twinsight.data.photo_pairs import PhotoPairs
from twinsight.data.sources import open_photo
from twinsight.errors import UserError, unknown


class _Items(PhotoPairs):
    """Items of a data set with one photo each, or two."""

    two: bool
    """Whether an item has two photos."""

    def load_pair(self, index: int) -> tuple[Image.Image, Image.Image]:
        if self.two:
            return super().load_pair(index)
        photo = self.load(index)
        return photo, photo

    def fingerprint(self, index: int) -> bytes:
        views = (1, 2) if self.two else (1,)
        return b"".join(hashlib.sha256(self.content(index, view)).digest() for view in views)

    def content(self, index: int, view: int) -> bytes:
        """Bytes that change when the photo behind a view changes."""
        photo = self.opened(index, view)
        return f"{photo.mode} {photo.size}\n".encode() + photo.tobytes()


class HuggingFacePhotos(_Items):
    """A data set of Hugging Face's ``datasets``, from disk: nothing is downloaded. Needs the extra ``datasets``.

    Args:
        path: a folder of ``Dataset.save_to_disk``; a Parquet file, or a folder of such; or a folder of images, with a
            ``metadata.csv`` or ``metadata.jsonl`` where there is one (``datasets``' image folder).
        split: which split, where there are several; None takes the only one, or ``"test"``.
        image: column of the photo.
        image2: column of the second photo, for pairs of two; None makes both views of one.
        label: column of the label, where there is one. Of single photos it is the class; of pairs, what kind they are.
        pair_id: column of names; None numbers the rows.
        on_error, limit: as in :class:`twinsight.data.Photos`.

    Raises:
        UserError: the extra is missing; nothing that can be read there; an unknown split or column.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        image: str = "image",
        image2: str | None = None,
        label: str | None = "label",
        pair_id: str | None = None,
        on_error: Literal["skip", "raise"] = "skip",
        limit: int | None = None,
    ) -> None:
        rows = _hugging_face(Path(path).expanduser(), split)
        wanted = {"image": image, "image2": image2, "pair_id": pair_id}
        for argument, column in wanted.items():
            if column is not None and column not in rows.column_names:
                raise unknown(f"column `data.{argument}`", column, rows.column_names)
        feature = rows.features.get(label) if label else None
        kinds = list(getattr(feature, "names", None) or [])
        ids = [str(name) for name in rows[pair_id]] if pair_id else [f"{row:06d}" for row in range(len(rows))]
        classes = [int(value) for value in rows[label]] if kinds and not image2 else None
        super().__init__(ids, on_error, limit, classes, kinds or None)
        import datasets

        for column in filter(None, (image, image2)):
            rows = rows.cast_column(column, datasets.Image(decode=False))
        self._rows = rows
        self._columns = (image, image2 or image)
        self._label = label if feature is not None and image2 else None
        self._kinds = kinds
        self.two = image2 is not None

    def opened(self, index: int, view: int) -> Image.Image:
        return open_photo(io.BytesIO(self.content(index, view)))

    def content(self, index: int, view: int) -> bytes:
        column = self._columns[view - 1]
        stored = self._rows.select_columns([column])[self.indices[index]][column]
        return stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()

    def label(self, index: int) -> str | None:
        if self._label is None:
            return None
        value = self._rows.select_columns([self._label])[self.indices[index]][self._label]
        return self._kinds[value] if self._kinds else None if value is None else str(value)


class TorchvisionPhotos(_Items):
    """A data set of torchvision by name, from disk: ``OxfordIIITPet``, ``Flowers102``, ``LFWPairs`` and all others.

    Items that begin with two images are pairs of two photos, and their target is the label of the pair (``LFWPairs``:
    1 where both show the same person); all others give two views of one photo.

    Args:
        name: its name in ``torchvision.datasets``.
        root: folder of its files; None for data sets that need none.
        split: given to it as ``split``, or as ``train`` to those that know that argument.
        options: further arguments of it.
        on_error, limit: as in :class:`twinsight.data.Photos`.

    Raises:
        UserError: an unknown name, an argument that it does not take, or files that are not there: nothing is
            downloaded unless ``options`` has ``download: true``.

    >>> photos = TorchvisionPhotos("FakeData", options={"size": 2, "image_size": [3, 8, 6]})
    >>> photos.ids, [photo.size for photo in photos.load_pair(1)]
    (['000000', '000001'], [(6, 8), (6, 8)])
    """

    def __init__(
        self,
        name: str,
        root: str | Path | None = None,
        split: str | None = None,
        options: Mapping[str, Any] | None = None,
        on_error: Literal["skip", "raise"] = "skip",
        limit: int | None = None,
    ) -> None:
        if name not in torchvision.datasets.__all__:
            raise unknown("torchvision data set `data.name`", name, torchvision.datasets.__all__)
        self._items = _torchvision(name, root, split, dict(options or {}))
        first = self._items[0]
        self.two = len(first) > 2 and isinstance(first[1], Image.Image)
        ids = [f"{index:06d}" for index in range(len(self._items))]
        targets = getattr(self._items, "targets", None)
        known = not self.two and targets is not None and hasattr(self._items, "classes")
        labels = [int(target) for target in targets or ()] if known else None
        classes = [str(name) for name in self._items.classes] if known else None
        super().__init__(ids, on_error, limit, labels, classes)

    def opened(self, index: int, view: int) -> Image.Image:
        item = self._items[self.indices[index]]
        photo = item[view - 1 if self.two else 0]
        return photo if isinstance(photo, Image.Image) else as_photo(photo)

    def label(self, index: int) -> str | None:
        return str(self._items[self.indices[index]][2]) if self.two else None


def _hugging_face(path: Path, split: str | None) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("data=huggingface needs the package `datasets`: pip install 'twinsight[datasets]'") from None
    if not path.exists():
        raise UserError(f"`data.path={path}`: no such file or folder")
    try:
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            found = datasets.load_from_disk(str(path))
        elif path.suffix == ".parquet":
            found = datasets.Dataset.from_parquet(str(path), split="test")
        elif files := sorted(map(str, path.glob("*.parquet"))):
            found = datasets.Dataset.from_parquet(files, split="test")
        else:
            found = datasets.load_dataset("imagefolder", data_dir=str(path))
    except Exception as error:  # of many kinds, by the format that was tried
        raise UserError(f"`data.path={path}` cannot be read by `datasets`: {' '.join(str(error).split())}") from None
    if isinstance(found, datasets.Dataset):
        return found
    name = split or next(iter(found) if len(found) == 1 else iter(["test"]))
    if name not in found:
        raise unknown("`data.split`", name, found)
    return found[name]


def _torchvision(name: str, root: str | Path | None, split: str | None, options: dict[str, Any]) -> Any:
    kind = getattr(torchvision.datasets, name)
    takes = inspect.signature(kind).parameters
    given: dict[str, Any] = {} if root is None else {"root": str(Path(root).expanduser())}
    if split is not None:
        given |= {"train": split == "train"} if "split" not in takes and "train" in takes else {"split": split}
    try:
        return kind(**given | options)
    except TypeError as error:
        raise UserError(f"`data.name={name}`: {error}: see `data.root`, `data.split` and `data.options`") from None
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        raise UserError(f"`data.name={name}`: {' '.join(str(error).split())}") from None
