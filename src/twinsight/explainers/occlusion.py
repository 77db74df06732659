"""Occlusion: what happens to the similarity when a window of one view is erased."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from twinsight.engine import check_baseline, erased_windows
from twinsight.engine.baselines import Baseline
from twinsight.errors import UserError
from twinsight.explainers.base import Explainer, Pair
from twinsight.explainers.geometry import GeometryKind, MapGeometry
from twinsight.models import TwoViewModel

Size = int | tuple[int, int]


class ConditionalOcclusion(Explainer):
    """Drop of the similarity when a window of one view is erased and the other view is kept (paper, section 3.1).

    On the grid of window positions ``H1[i, j] = s0 - s(f(x1 without window ij), z2)`` and
    ``H2[i, j] = s0 - s(z1, f(x2 without window ij))``. Positive where the window made the views similar, negative
    where it kept them apart; in units of the similarity.

    Args:
        model: the network to explain.
        window: side or (height, width) of the window in pixels; None is 2/7 of the model's input size (paper: 64 of
            224).
        stride: step of the window or (vertical, horizontal); None is 1/28 of the input size (paper: 8 of 224).
        baseline: what erased pixels become, see :func:`twinsight.engine.baselines.baseline_image`; None is the view's
            own ``"blur"`` (sound) or ``"input_zero"`` (paper).
        geometry: how cells spread over pixels; None is ``"window_average"`` (sound) or ``"stretch"`` (paper).
        flush: add a last window flush with the border where the stride does not divide; None is True (sound) or False
            (paper).
        protocol: ``"sound"`` or ``"paper"``.

    Raises:
        UserError: a window larger than the image, or an option out of range.

    Cost: 2 (one map) x number of windows forwards, 2 more for the views.

    >>> from twinsight.models import small_two_view
    >>> explainer = ConditionalOcclusion(small_two_view(), window=16, stride=16)
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> explainer(view1, view2).map1.shape
    torch.Size([1, 4, 4])
    """

    protocol_options: ClassVar[dict[str, dict[str, Any]]] = {
        "baseline": {"paper": "input_zero", "sound": "blur"},
        "geometry": {"paper": "stretch", "sound": "window_average"},
        "flush": {"paper": False, "sound": True},
    }

    def __init__(
        self,
        model: TwoViewModel,
        window: Size | None = None,
        stride: Size | None = None,
        baseline: Baseline | None = None,
        geometry: GeometryKind | None = None,
        flush: bool | None = None,
        protocol: str = "sound",
    ) -> None:
        super().__init__(
            model, protocol, window=window, stride=stride, baseline=baseline, geometry=geometry, flush=flush
        )
        side = model.input_size
        self.options["window"] = _pair_of("window", max(1, round(side * 2 / 7)) if window is None else window)
        self.options["stride"] = _pair_of("stride", max(1, round(side / 28)) if stride is None else stride)
        check_baseline(self.options["baseline"])
        MapGeometry(self.options["geometry"])

    def explain(self, pair: Pair) -> tuple[Tensor, Tensor]:
        z1, z2 = pair.z1.unsqueeze(0), pair.z2.unsqueeze(0)
        similarity = self.model.similarity
        drop1 = pair.score - similarity(self._without_windows(pair, 1), z2)
        drop2 = pair.score - similarity(z1, self._without_windows(pair, 2))
        grid = self.geometry((pair.view1.shape[-2], pair.view1.shape[-1]))
        shape = (len(grid.tops), len(grid.lefts))
        return drop1.view(shape), drop2.view(shape)

    def geometry(self, image_size: tuple[int, int]) -> MapGeometry:
        window, stride = self.options["window"], self.options["stride"]
        tops, lefts = (
            _offsets(length, size, step, self.options["flush"])
            for length, size, step in zip(image_size, window, stride, strict=True)
        )
        return MapGeometry(self.options["geometry"], image_size, window, tops, lefts)

    def _without_windows(self, pair: Pair, view: int) -> Tensor:
        """Embeddings ``(N, d)`` of a view without each window, row by row."""
        image = pair.view1 if view == 1 else pair.view2
        grid = self.geometry((image.shape[-2], image.shape[-1]))
        tall, wide = self.options["window"]
        boxes = torch.tensor([(top, left, tall, wide) for top in grid.tops for left in grid.lefts])
        return pair.bank.perturbed(erased_windows(image, pair.baseline(self.options["baseline"], view), boxes), view)


def _pair_of(name: str, size: Size) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(length, int) and length >= 1 for length in pair):
        raise UserError(f"`{name}` must be a positive integer or a pair of them, got {size!r}")
    return pair


def _offsets(length: int, window: int, stride: int, flush: bool) -> tuple[int, ...]:
    if window > length:
        raise UserError(f"`window={window}` is larger than the image ({length} pixels): give a smaller one")
    offsets = list(range(0, length - window + 1, stride))
    if flush and offsets[-1] != length - window:
        offsets.append(length - window)
    return tuple(offsets)
