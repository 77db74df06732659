"""Controls: maps that must lose against a genuine explanation, or must not follow it, where a metric means anything."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from twinsight.errors import UserError, unknown
from twinsight.explainers.base import EXPLAINERS, Cost, Explainer, Maps, Pair
from twinsight.explainers.geometry import MapGeometry
from twinsight.models import TwoViewModel


class RandomMap(Explainer):
    """Independent uniform noise per pixel, from the pair's seed.

    Not a fair opponent of smooth maps: scattered pixels destroy an image faster than coherent ones, so that it wins
    insertion and deletion curves against genuine coarse maps. :class:`MatchedRandom` is.

    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> RandomMap(small_two_view())(view1, view2).map1.shape
    torch.Size([1, 64, 64])
    """

    name = "random"
    title = "Random"
    source = "control"

    def __init__(self, model: TwoViewModel, protocol: str = "sound") -> None:
        super().__init__(model, protocol)

    def explain(self, pair: Pair) -> Maps:
        size = pair.view1.shape[-2:]
        map1, map2 = (torch.rand(size, generator=pair.generator("random", view)).to(pair.view1) for view in (1, 2))
        return Maps(map1, map2)

    def cost(self, image_size: tuple[int, int]) -> Cost:
        return Cost(2)


class LaFAM(Explainer):
    """Mean of the feature map over its channels: where the network is active, whatever the partner (Karjauv and
    Albayrak 2024).

    An explanation of a *pair* should do better than this, which does not look at the other view at all.

    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> LaFAM(small_two_view())(view1, view2).map1.shape
    torch.Size([1, 8, 8])
    """

    name = "lafam"
    title = "LaFAM"
    source = "control; Karjauv and Albayrak 2024"

    def __init__(self, model: TwoViewModel, protocol: str = "sound") -> None:
        super().__init__(model, protocol)

    def explain(self, pair: Pair) -> Maps:
        map1, map2 = (self.model.on_image(pair.features(view)).mean(dim=0) for view in (1, 2))
        return Maps(map1, map2)

    def cost(self, image_size: tuple[int, int]) -> Cost:
        return Cost(2)


class _Of(Explainer):
    """Shared by the controls of an explainer: how it is named and built.

    Args:
        model: the network to explain.
        of: name of the explainer (``twinsight info explainers`` lists them), or one built on ``model``.
        options: of that explainer, where it is given by name.
        protocol: handed on, where it is given by name.

    Raises:
        UserError: unknown name or option, an explainer of another model, or one that makes images instead of maps.
    """

    source = "control"

    def __init__(
        self,
        model: TwoViewModel,
        of: str | Explainer = "interaction_cam",
        options: Mapping[str, Any] | None = None,
        protocol: str = "sound",
    ) -> None:
        super().__init__(model, protocol)
        self.of = of if isinstance(of, Explainer) else _built(model, of, dict(options or {}), protocol)
        if self.of.model is not model:
            raise UserError("`of` was built on another model")
        if self.of.maps == 0:
            raise UserError(f"`of={self.of.name}` makes images, not maps: choose another explainer")
        self.maps, self.not_for = self.of.maps, self.of.not_for
        self.options["of"] = self.of.identity()

    @property
    def variant(self) -> str:
        return self.of.label

    def geometry(self, image_size: tuple[int, int]) -> MapGeometry:
        return self.of.geometry(image_size)

    def cost(self, image_size: tuple[int, int]) -> Cost:
        return self.of.cost(image_size)


class Inverted(_Of):
    """The maps of another explainer with their signs turned: least important first. Arguments as for all controls.

    A metric under which it does not lose against the original does not measure what is important.

    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> control = Inverted(small_two_view(), of="gradcam")
    >>> bool((control(view1, view2).map1 == -control.of(view1, view2).map1).all()), control.label
    (True, 'Inverted (Grad-CAM)')
    """

    def explain(self, pair: Pair) -> Maps:
        map1, map2 = Maps(*self.of.explain(pair))[:2]
        return Maps(-map1, None if map2 is None else -map2)


class PartnerSwapped(_Of):
    """The maps of another explainer when each view meets a view of another photo instead of its own partner.

    View 1 is explained against the second view of another pair, and view 2 against that same view. An explanation that
    hardly changes is not about the pair. Needs ``partner_view2``, which the data module delivers.

    Cost: at most twice that of the explainer; embeddings of the other photo's view are shared.

    >>> from twinsight.models import small_two_view
    >>> view1, view2, other = torch.rand(3, 1, 3, 64, 64)
    >>> PartnerSwapped(small_two_view(), of="gradcam")(view1, view2, partner_view2=other).map1.shape
    torch.Size([1, 8, 8])
    """

    needs_partner = True

    def explain(self, pair: Pair) -> Maps:
        if pair.partner_view2 is None:
            raise UserError("partner swapped needs `partner_view2`, (B, C, H, W) second views of other pairs")
        map1 = Maps(*self.of.explain(replace(pair, view2=pair.partner_view2))).map1
        if self.maps == 1:
            return Maps(map1, None)
        return Maps(map1, Maps(*self.of.explain(replace(pair, view1=pair.partner_view2))).map2)

    def cost(self, image_size: tuple[int, int]) -> Cost:
        one = self.of.cost(image_size)
        # The pair's own score needs the view that no explanation of one map meets.
        return Cost(2 * one.forwards, 2 * one.backwards) if self.maps == 2 else Cost(one.forwards + 1, one.backwards)


class MatchedRandom(_Of):
    """Gaussian noise as smooth as the maps of another explainer: what its metrics are worth without any insight.

    The noise is smoothed by the Gaussian whose autocorrelation, ``exp(-r^2 / 4 sigma^2)``, falls to 1/e at the radius
    at which that of the map, at image size, does. ``details`` hold these radii in pixels, ``correlation_radius1`` and
    ``correlation_radius2``; a map that ranks nothing has radius 0 and gets independent noise.

    Arguments as for all controls. Cost: that of the explainer.

    >>> from twinsight.models import small_two_view
    >>> view1, view2 = torch.rand(2, 1, 3, 64, 64)
    >>> MatchedRandom(small_two_view(), of="gradcam")(view1, view2).map1.shape
    torch.Size([1, 64, 64])
    """

    def explain(self, pair: Pair) -> Maps:
        size = (pair.view1.shape[-2], pair.view1.shape[-1])
        original = Maps(*self.of.explain(pair))
        noise: list[Tensor | None] = []
        details: dict[str, Tensor] = {}
        for view, heatmap in ((1, original.map1), (2, original.map2)):
            if heatmap is None:
                noise.append(None)
                continue
            large = self.of.geometry(size).resize(heatmap.unsqueeze(0), size)[0]
            radius = correlation_radius(large.cpu().double().numpy())
            drawn = torch.randn(size, generator=pair.generator("matched random", view), dtype=torch.float64)
            smooth = gaussian_filter(drawn.numpy(), radius / 2) if radius else drawn.numpy()
            noise.append(torch.from_numpy(smooth).to(pair.view1))
            details[f"correlation_radius{view}"] = pair.view1.new_tensor(radius)
        assert noise[0] is not None
        return Maps(noise[0], noise[1], details)

    def geometry(self, image_size: tuple[int, int]) -> MapGeometry:
        return MapGeometry()


def correlation_radius(heatmap: NDArray[np.float64]) -> float:
    """Distance in pixels at which the autocorrelation of an ``(H, W)`` map, averaged over directions, falls to 1/e.

    The shorter side where it does not fall so far, 0 for a map that is constant or not finite.

    >>> rows = np.add.outer(np.arange(64), np.zeros(64))
    >>> round(correlation_radius(np.sin(rows)), 1) < 3 < correlation_radius(np.sin(rows / 10))
    True
    """
    centred = heatmap - heatmap.mean()
    if not np.isfinite(centred).all() or np.ptp(heatmap) == 0:
        return 0.0
    height, width = heatmap.shape
    # Padded to twice the size, so that the map does not meet its own other end; divided by how many pixels overlap.
    spectrum = np.abs(np.fft.rfft2(centred, s=(2 * height, 2 * width))) ** 2
    overlap = np.abs(np.fft.rfft2(np.ones_like(centred), s=(2 * height, 2 * width))) ** 2
    padded = (2 * height, 2 * width)
    correlation = np.fft.irfft2(spectrum, s=padded) / np.maximum(np.fft.irfft2(overlap, s=padded), 1)
    rows, columns = np.fft.fftfreq(2 * height, 1 / (2 * height)), np.fft.fftfreq(2 * width, 1 / (2 * width))
    radius = np.hypot(rows[:, None], columns[None]).round().astype(int)
    reach = min(height, width)
    near = radius < reach
    counts = np.bincount(radius[near], minlength=reach)
    profile = np.bincount(radius[near], correlation[near], minlength=reach) / counts / correlation[0, 0]
    below = np.flatnonzero(profile < 1 / np.e)
    if not below.size:
        return float(reach)
    before, after = profile[below[0] - 1], profile[below[0]]
    return float(below[0] - 1 + (before - 1 / np.e) / (before - after))


def _built(model: TwoViewModel, name: str, options: dict[str, Any], protocol: str) -> Explainer:
    if name not in EXPLAINERS:
        raise unknown("`of`", name, sorted(EXPLAINERS))
    try:
        return EXPLAINERS[name](model, protocol=protocol, **options)
    except TypeError as error:
        raise UserError(f"`options` of {name}: {error}") from None
