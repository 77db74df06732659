"""Occlusion: what happens to the similarity when a window of one view, or of both, is erased."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from twinsight.engine import check_baseline, erased_windows, kept_windows, min_max
from twinsight.engine.baselines import Baseline
from twinsight.errors import UserError, unknown
from twinsight.explainers.base import Cost, Explainer, Maps, Pair
from twinsight.explainers.geometry import GeometryKind, MapGeometry
from twinsight.explainers.refinement import refined
from twinsight.models import TwoViewModel

Size = int | tuple[int, int]
NOT_FOR = {"ms": "the paper does not define it for occlusion"}


class _GridOcclusion(Explainer):
    """Shared by the occlusions on a grid: where the windows lie, and the embeddings without them."""

    not_for = NOT_FOR
    protocol_options: ClassVar[dict[str, dict[str, Any]]] = {
        "baseline": {"paper": "input_zero", "sound": "blur"},
        "geometry": {"paper": "stretch", "sound": "window_average"},
        "flush": {"paper": False, "sound": True},
    }

    def __init__(
        self, model: TwoViewModel, protocol: str, window: Size | None, stride: Size | None, **given: Any
    ) -> None:
        super().__init__(model, protocol, window=window, stride=stride, **given)
        side = model.input_size
        self.options["window"] = _pair_of("window", max(1, round(side * 2 / 7)) if window is None else window)
        self.options["stride"] = _pair_of("stride", max(1, round(side / 28)) if stride is None else stride)
        check_baseline(self.options["baseline"])
        MapGeometry(self.options["geometry"])
        if self.options["coarse"] is not None and self.options["coarse"] < 2:
            raise UserError(f"`coarse` must be at least 2, or null for every window, got {self.options['coarse']}")

    @property
    def variant(self) -> str:
        return "adaptive" if self.options["coarse"] else ""

    def geometry(self, image_size: tuple[int, int]) -> MapGeometry:
        window, stride = self.options["window"], self.options["stride"]
        tops, lefts = (
            _offsets(length, size, step, self.options["flush"])
            for length, size, step in zip(image_size, window, stride, strict=True)
        )
        return MapGeometry(self.options["geometry"], image_size, window, tops, lefts)

    def windows(self, image_size: tuple[int, int]) -> Tensor:
        """``(rows, columns, 4)`` integers (top, left, height, width) of the windows on the grid."""
        grid, (tall, wide) = self.geometry(image_size), self.options["window"]
        return torch.tensor([[(top, left, tall, wide) for left in grid.lefts] for top in grid.tops])

    def embeddings(self, pair: Pair, view: int, windows: Tensor, kept: bool = False) -> Tensor:
        """Embeddings ``(n, d)`` of a view without each of ``(n, 4)`` windows, or of each window alone."""
        image, fill = pair.view(view), pair.baseline(self.options["baseline"], view)
        make = kept_windows if kept else erased_windows
        return pair.bank.perturbed(make(image, fill, windows), view)

    def over_grid(self, windows: Tensor, values: Callable[[Tensor], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Map ``(rows, columns)`` of ``values``, and details where not every window was computed.

        Args:
            windows: ``(rows, columns, 4)``.
            values: of ``(n, 4)`` windows, ``(n,)``.
        """
        if self.options["coarse"] is None:
            return values(windows.flatten(0, 1)).view(windows.shape[:2]), {}
        found, computed = refined(windows, values, self.options["coarse"])
        return found, {"windows_computed": found.new_tensor(computed / found.numel())}


class ConditionalOcclusion(_GridOcclusion):
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
        coarse: None computes every window. Else an approximation: every ``coarse``-th row and column of the grid, and
            the windows between only where the map is above mid-range; others are interpolated
            (:func:`twinsight.explainers.refinement.refined`). ``details`` hold the share of windows computed,
            ``windows_computed1`` and ``windows_computed2``.
        protocol: ``"sound"`` or ``"paper"``.

    Raises:
        UserError: a window larger than the image, or an option out of range.

    Cost: a forward for each window and view, 2 more for the views; less with ``coarse``.

    >>> from twinsight.models import small_two_view
    >>> explainer = ConditionalOcclusion(small_two_view(), window=16, stride=16)
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> explainer(view1, view2).map1.shape
    torch.Size([1, 4, 4])
    """

    source = "paper, section 3.1"

    def __init__(
        self,
        model: TwoViewModel,
        window: Size | None = None,
        stride: Size | None = None,
        baseline: Baseline | None = None,
        geometry: GeometryKind | None = None,
        flush: bool | None = None,
        coarse: int | None = None,
        protocol: str = "sound",
    ) -> None:
        super().__init__(
            model, protocol, window, stride, baseline=baseline, geometry=geometry, flush=flush, coarse=coarse
        )

    def explain(self, pair: Pair) -> Maps:
        windows = self.windows((pair.view1.shape[-2], pair.view1.shape[-1]))
        z1, z2 = pair.z1.unsqueeze(0), pair.z2.unsqueeze(0)

        def drop1(some: Tensor) -> Tensor:
            return pair.score - self.model.similarity(self.embeddings(pair, 1, some), z2)

        def drop2(some: Tensor) -> Tensor:
            return pair.score - self.model.similarity(z1, self.embeddings(pair, 2, some))

        return _both(self.over_grid(windows, drop1), self.over_grid(windows, drop2))

    def cost(self, image_size: tuple[int, int]) -> Cost:
        return Cost(2 + 2 * self.windows(image_size).flatten(0, 1).shape[0])


class ContextAgnosticOcclusion(_GridOcclusion):
    """What a window contributes by itself, compared with the other view (paper, section 3.1).

    ``d1[i, j] = f(window ij of x1 alone) - f(x1 without window ij)`` and ``H1[i, j] = s(d1[i, j], z2)``; the same for
    view 2. In units of the similarity: positive where adding the window moves the embedding towards the other view's.

    Args:
        model: the network to explain.
        window, stride, baseline, geometry, flush, coarse: as for :class:`ConditionalOcclusion`, which shares the
            embeddings without a window where both use one bank.
        scaled: bring each map to [0, 1] by its minimum and maximum; None is False (sound) or True (paper).
        protocol: ``"sound"`` or ``"paper"``.

    Raises:
        UserError: a window larger than the image, or an option out of range.

    Cost: two forwards for each window and view, 2 more for the views; half of them shared with conditional occlusion.

    >>> from twinsight.models import small_two_view
    >>> explainer = ContextAgnosticOcclusion(small_two_view(), window=16, stride=16)
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> explainer(view1, view2).map2.shape
    torch.Size([1, 4, 4])
    """

    source = "paper, section 3.1"
    title = "Context-agnostic occlusion"
    protocol_options: ClassVar[dict[str, dict[str, Any]]] = {
        **_GridOcclusion.protocol_options,
        "scaled": {"paper": True, "sound": False},
    }

    def __init__(
        self,
        model: TwoViewModel,
        window: Size | None = None,
        stride: Size | None = None,
        baseline: Baseline | None = None,
        geometry: GeometryKind | None = None,
        flush: bool | None = None,
        scaled: bool | None = None,
        coarse: int | None = None,
        protocol: str = "sound",
    ) -> None:
        super().__init__(
            model,
            protocol,
            window,
            stride,
            baseline=baseline,
            geometry=geometry,
            flush=flush,
            scaled=scaled,
            coarse=coarse,
        )

    def explain(self, pair: Pair) -> Maps:
        windows = self.windows((pair.view1.shape[-2], pair.view1.shape[-1]))
        z1, z2 = pair.z1.unsqueeze(0), pair.z2.unsqueeze(0)

        def moved(view: int, some: Tensor) -> Tensor:
            return self.embeddings(pair, view, some, kept=True) - self.embeddings(pair, view, some)

        maps = _both(
            self.over_grid(windows, lambda some: self.model.similarity(moved(1, some), z2)),
            self.over_grid(windows, lambda some: self.model.similarity(z1, moved(2, some))),
        )
        if not self.options["scaled"]:
            return maps
        assert maps.map2 is not None
        return maps._replace(map1=min_max(maps.map1), map2=min_max(maps.map2))

    def cost(self, image_size: tuple[int, int]) -> Cost:
        return Cost(2 + 4 * self.windows(image_size).flatten(0, 1).shape[0])


class PairwiseOcclusion(Explainer):
    """Drop of the similarity when a random rectangle of each view is erased at once (paper, section 3.2).

    Sound: every rectangle of view 1 meets every rectangle of view 2, ``delta[a, b] = s0 - s(f(x1 without a),
    f(x2 without b))``; a pixel's value is the mean drop over the rectangles that cover it, in units of the similarity.
    Pixels that no rectangle covers take the mean over all. ``details`` hold the standard error of that mean for each
    pixel, ``standard_error1`` and ``standard_error2`` (NaN below two rectangles).

    Published: rectangle ``n`` of view 1 meets rectangle ``n`` of view 2, ``alpha = softmax(delta)``, and ``alpha_n``
    is credited to the one of the two rectangles whose erasure left the shorter embedding. The weights are nearly flat,
    so that the map resembles how often a pixel was drawn.

    Args:
        model: the network to explain.
        num_samples: rectangles per view (paper: 100).
        scale: smallest and largest area of a rectangle over the image's, drawn uniformly.
        ratio: smallest and largest height over width, drawn log-uniformly.
        boxes: ``(N, 2, 4)`` integers (top, left, height, width) for each draw and view, to use instead of drawing.
        baseline: what erased pixels become; None is ``"blur"`` (sound) or ``"input_zero"`` (paper).
        pairing: ``"all"`` combinations of the rectangles of both views, or draw by draw, ``"given"``; None is all
            (sound) or given (paper).
        weighting: what is credited: the ``"drop"``, or its ``"softmax"`` over all combinations; None is drop (sound)
            or softmax (paper).
        temperature: of the softmax.
        credit: to ``"both"`` rectangles, or to that of the view with the ``"shorter"`` embedding; None is both (sound)
            or shorter (paper).
        coverage: divide by how many rectangles cover a pixel; None is True (sound) or False (paper).
        scaled: divide each map by its maximum; None is False (sound) or True (paper).
        lift_black: raise pixels below 1/255 to it before erasing, so that none looks erased already; None is False
            (sound) or True (paper).
        protocol: ``"sound"`` or ``"paper"``.

    Raises:
        UserError: an option out of range, boxes outside the image, ``credit="shorter"`` with all combinations.

    Cost: ``2 num_samples`` forwards, 2 more for the views.

    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> explanation = PairwiseOcclusion(small_two_view(), num_samples=8)(view1, view2)
    >>> explanation.map1.shape, explanation.details["standard_error1"].shape
    (torch.Size([1, 64, 64]), torch.Size([1, 64, 64]))
    """

    source = "paper, section 3.2"
    not_for = NOT_FOR
    protocol_options: ClassVar[dict[str, dict[str, Any]]] = {
        "baseline": {"paper": "input_zero", "sound": "blur"},
        "pairing": {"paper": "given", "sound": "all"},
        "weighting": {"paper": "softmax", "sound": "drop"},
        "credit": {"paper": "shorter", "sound": "both"},
        "coverage": {"paper": False, "sound": True},
        "scaled": {"paper": True, "sound": False},
        "lift_black": {"paper": True, "sound": False},
    }

    def __init__(
        self,
        model: TwoViewModel,
        num_samples: int = 100,
        scale: tuple[float, float] = (0.1, 0.3),
        ratio: tuple[float, float] = (1.0, 1.5),
        boxes: Any = None,
        baseline: Baseline | None = None,
        pairing: Literal["all", "given"] | None = None,
        weighting: Literal["drop", "softmax"] | None = None,
        temperature: float = 1.0,
        credit: Literal["both", "shorter"] | None = None,
        coverage: bool | None = None,
        scaled: bool | None = None,
        lift_black: bool | None = None,
        protocol: str = "sound",
    ) -> None:
        self.boxes = None if boxes is None else _checked_boxes(boxes)
        super().__init__(
            model,
            protocol,
            num_samples=num_samples if self.boxes is None else len(self.boxes),
            scale=tuple(scale),
            ratio=tuple(ratio),
            boxes=None if self.boxes is None else self.boxes.tolist(),
            baseline=baseline,
            pairing=pairing,
            weighting=weighting,
            temperature=temperature,
            credit=credit,
            coverage=coverage,
            scaled=scaled,
            lift_black=lift_black,
        )
        check_baseline(self.options["baseline"])
        for name, valid in (
            ("pairing", ("all", "given")),
            ("weighting", ("drop", "softmax")),
            ("credit", ("both", "shorter")),
        ):
            if self.options[name] not in valid:
                raise unknown(f"`{name}`", self.options[name], valid)
        if num_samples < 1:
            raise UserError(f"`num_samples` must be at least 1, got {num_samples}")
        if temperature <= 0:
            raise UserError(f"`temperature` must be positive, got {temperature}")
        if not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
            raise UserError(f"`scale` must be two shares of the image's area in (0, 1], ascending, got {tuple(scale)}")
        if not (len(ratio) == 2 and 0 < ratio[0] <= ratio[1]):
            raise UserError(f"`ratio` must be two positive ratios, ascending, got {tuple(ratio)}")
        if self.options["credit"] == "shorter" and self.options["pairing"] == "all":
            raise UserError("`credit=shorter` compares the two views of a draw: set `pairing=given` with it")

    def explain(self, pair: Pair) -> Maps:
        size = (pair.view1.shape[-2], pair.view1.shape[-1])
        boxes1, boxes2 = self._drawn(pair, size).unbind(dim=1)
        base = pair.score
        z1, z2 = self._erased(pair, 1, boxes1), self._erased(pair, 2, boxes2)
        if self.options["pairing"] == "all":
            delta = torch.stack([base - self.model.similarity(z.unsqueeze(0), z2) for z in z1])
        else:
            delta = base - self.model.similarity(z1, z2)
        worth = delta.cpu().double()
        if self.options["weighting"] == "softmax":
            worth = torch.softmax(worth.flatten() / self.options["temperature"], dim=0).view_as(worth)
        worth1, worth2 = (worth.mean(dim=1), worth.mean(dim=0)) if worth.ndim == 2 else (worth, worth)
        credited1 = credited2 = torch.ones(len(boxes1), dtype=torch.bool)
        if self.options["credit"] == "shorter":
            credited1 = (z1.norm(dim=1) < z2.norm(dim=1)).cpu()
            credited2 = ~credited1
        map1, error1 = self._spread(worth1, boxes1, credited1, size)
        map2, error2 = self._spread(worth2, boxes2, credited2, size)
        details = {"standard_error1": error1, "standard_error2": error2} if self.options["coverage"] else {}
        like = pair.view1  # its type and device
        return Maps(map1.to(like), map2.to(like), {name: error.to(like) for name, error in details.items()})

    def cost(self, image_size: tuple[int, int]) -> Cost:
        return Cost(2 + 2 * self.options["num_samples"])

    def _drawn(self, pair: Pair, size: tuple[int, int]) -> Tensor:
        if self.boxes is None:
            options = self.options
            return draw_boxes(
                2 * options["num_samples"], size, options["scale"], options["ratio"], pair.generator("boxes")
            ).view(-1, 2, 4)
        ends = self.boxes[..., :2] + self.boxes[..., 2:]
        if (self.boxes[..., :2] < 0).any() or (ends > torch.tensor(size)).any():
            raise UserError(f"`boxes` must lie inside the image of {size[0]} x {size[1]} pixels")
        return self.boxes

    def _erased(self, pair: Pair, view: int, boxes: Tensor) -> Tensor:
        image, fill = pair.view(view), pair.baseline(self.options["baseline"], view)
        if self.options["lift_black"]:
            image = self._lifted(image)
        return pair.bank.perturbed(erased_windows(image, fill, boxes), view)

    def _lifted(self, image: Tensor) -> Tensor:
        if self.model.normalization is None:
            return image.clamp(min=1 / 255)
        mean, std = (image.new_tensor(part).view(-1, 1, 1) for part in self.model.normalization)
        return torch.maximum(image, (1 / 255 - mean) / std)

    def _spread(self, worth: Tensor, boxes: Tensor, credited: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The map ``(H, W)`` of what each rectangle is worth, and the standard error of its pixels."""
        # Deviations from the mean are summed, not the values: their squares would cancel.
        mean = worth.mean() if self.options["coverage"] else worth.new_zeros(())
        total, squares, count = torch.zeros(3, *size, dtype=torch.float64)
        for value, (top, left, tall, wide) in zip(worth[credited] - mean, boxes[credited].tolist(), strict=True):
            window = (slice(top, top + tall), slice(left, left + wide))
            total[window] += value
            squares[window] += value**2
            count[window] += 1
        heatmap, error = total, torch.full_like(total, torch.nan)
        if self.options["coverage"]:
            deviation = total / count.clamp(min=1)
            heatmap = mean + deviation
            variance = (squares / count - deviation**2).clamp(min=0)
            error = torch.where(count > 1, (variance / (count - 1)).sqrt(), error)
        if self.options["scaled"] and heatmap.max() > 0:
            heatmap = heatmap / heatmap.max()
        return heatmap, error


def _both(first: tuple[Tensor, dict[str, Tensor]], second: tuple[Tensor, dict[str, Tensor]]) -> Maps:
    """Maps of both views, their details told apart by 1 and 2."""
    details = {f"{name}{view}": each for view, found in ((1, first), (2, second)) for name, each in found[1].items()}
    return Maps(first[0], second[0], details)


def draw_boxes(
    count: int,
    image_size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Random rectangles inside an image, ``(count, 4)`` integers (top, left, height, width).

    Args:
        scale: range of the area over the image's, uniform.
        ratio: range of height over width, log-uniform. Sides longer than the image's are cut to it.

    >>> draw_boxes(2, (64, 64), (0.25, 0.25), (1.0, 1.0), torch.Generator().manual_seed(0))[:, 2:]
    tensor([[32, 32],
            [32, 32]])
    """
    height, width = image_size
    drawn = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    area = (scale[0] + (scale[1] - scale[0]) * drawn[:, 0]) * height * width
    tallness = ratio[0] * (ratio[1] / ratio[0]) ** drawn[:, 1]
    tall = (area * tallness).sqrt().round().clamp(1, height)
    wide = (area / tallness).sqrt().round().clamp(1, width)
    top, left = (drawn[:, 2] * (height - tall + 1)).floor(), (drawn[:, 3] * (width - wide + 1)).floor()
    return torch.stack([top, left, tall, wide], dim=1).long()


def _checked_boxes(boxes: Any) -> Tensor:
    boxes = torch.as_tensor(boxes)
    if boxes.is_floating_point() or boxes.ndim != 3 or boxes.shape[1:] != (2, 4) or (boxes[..., 2:] < 1).any():
        raise UserError(
            "`boxes` must be (N, 2, 4) integers: top, left, height, width for each draw and view, "
            f"got {str(boxes.dtype).removeprefix('torch.')} {tuple(boxes.shape)}"
        )
    return boxes.cpu().long()


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
