"""Views as small JPEGs, rendered again from the photos that a cell names."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import hydra.utils
import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

import twinsight.data
from twinsight.data import NoViews, PairDataset, Photos
from twinsight.data.sources import BrokenPhoto
from twinsight.report.html.sources import CellFolder

SMALL, LARGE = 160, 384
"""Sides in pixels of a view in the page, and beside it."""
_OURS = {
    f"twinsight.data.{name}"
    for name in twinsight.data.__all__
    if isinstance(kind := getattr(twinsight.data, name), type) and issubclass(kind, Photos | NoViews)
}
"""What a report builds; a longer name that begins so may lead anywhere: `twinsight.exits.os.system`."""


class Views:
    """Both views of each pair of a cell, in the colours the model saw.

    ``missing`` says why there are none, None where there are: photos may have moved, or be read by code that is not
    ours, which a report does not run.
    """

    def __init__(self, cell: CellFolder) -> None:
        self.missing: str | None = None
        self._pairs: PairDataset | None = None
        config = cell.settings.get("config") or {}
        nodes = {name: config.get(name) for name in ("data", "views")}
        if not all(nodes.values()):
            self.missing = "the cell has no configuration"
        elif foreign := sorted({target for node in nodes.values() for target in _foreign(node)}):
            self.missing = f"photos are read by {', '.join(foreign)}, which a report does not run"
        else:
            try:
                photos, views = (hydra.utils.instantiate(OmegaConf.create(node)) for node in nodes.values())
            except Exception as error:  # whatever a data set answers to photos that are gone
                self.missing = f"the photos are not where they were: {error.__cause__ or error}"
                return
            self._pairs = PairDataset(photos, views, None, config.get("seed", 0))

    def of(self, index: int, pair_id: str, side: int) -> tuple[str, str] | None:
        """View 1 and view 2 as base64 JPEG of ``side`` pixels; None where the photo is another one, or gone."""
        if self._pairs is None or index >= len(self._pairs) or self._pairs.photos.ids[index] != pair_id:
            return None
        try:
            photos = self._pairs.photos.load_pair(index)
        except BrokenPhoto:
            return None
        recipes = self._pairs.recipes(index, photos)
        first, second = (
            jpeg(recipe.render(photo, side, self._pairs.views.antialias).movedim(0, -1).numpy())
            for recipe, photo in zip(recipes, photos, strict=True)
        )
        return first, second


def jpeg(pixels: NDArray[Any], quality: int = 72) -> str:
    """``(H, W, 3)`` floats in [0, 1], or 8-bit integers, as a JPEG in base64."""
    if pixels.dtype != np.uint8:
        pixels = (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _foreign(node: Any) -> list[str]:
    """Targets of a configuration that are not ours."""
    if isinstance(node, Mapping):
        own = node.get("_target_")
        found = [str(own)] if own is not None and str(own) not in _OURS else []
        return found + [each for value in node.values() for each in _foreign(value)]
    if isinstance(node, str) and "${" in node:  # what it refers to may be built
        return [node]
    return [each for value in node for each in _foreign(value)] if isinstance(node, list) else []
