"""Well-kept libraries on the same work, as their documentation says to use them; those not installed are named."""

from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.items import (
    OURS,
    POINTS,
    SIDE,
    STRIDE,
    WINDOW,
    Compared,
    Item,
    Setting,
    boxes,
    by_cones,
    by_windows,
    chunked,
)
from benchmarks.measure import Passes, Work
from twinsight.explainers import ConditionalOcclusion, SmoothGrad
from twinsight.metrics.functional import insertion_deletion
from twinsight.models import TwoViewModel

DISTRIBUTIONS = ("captum", "torchcam", "quantus")


def installed() -> dict[str, str | None]:
    """Versions of the peers, None for those that are missing."""
    found: dict[str, str | None] = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def peer_items(setting: Setting) -> list[Item]:
    """One row for each thing that an installed peer can do."""
    makers = {"captum": (_captum_occlusion, _captum_noise_tunnel), "torchcam": (_torchcam,), "quantus": (_quantus,)}
    return [make(setting) for name, found in installed().items() if found is not None for make in makers[name]]


class _Counted(nn.Module):
    """Counts the images that pass through a network."""

    def __init__(self, model: TwoViewModel) -> None:
        super().__init__()
        self.model = model
        self.forwards = 0

    def encode(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        return self.model(x)


class _OfBothViews(_Counted):
    """Cosine of two images, ``(B,)``: what attributes both views at once is given."""

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return F.cosine_similarity(self.encode(x1), self.encode(x2))


class _ToPartner(_Counted):
    """Cosine to a fixed embedding as the only class of a classifier, ``(B, 1)``."""

    def __init__(self, model: TwoViewModel, partner: Tensor) -> None:
        super().__init__(model)
        with torch.no_grad():
            self.register_buffer("partner", model(partner))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.partner, Tensor)
        return F.cosine_similarity(self.encode(x), self.partner).unsqueeze(1)


def _captum_occlusion(setting: Setting) -> Item:
    from captum.attr import Occlusion

    def run() -> Passes:
        both = _OfBothViews(setting.model)
        shapes, strides = (
            ((3, WINDOW, WINDOW),) * 2,
            ((3, WINDOW, WINDOW),) * 2 if setting.quick else ((3, 40, 40),) * 2,
        )
        with torch.no_grad():
            Occlusion(both).attribute(setting.views, shapes, strides, baselines=(0, 0), perturbations_per_eval=16)
        return Passes(both.forwards)

    row = Compared(
        "Conditional occlusion beside Captum's Occlusion on both views",
        aim=3.0,
        whole=not by_cones(setting),
        other="captum",
    )
    ours = by_windows(setting, ConditionalOcclusion)
    return Item({OURS: ours, row.other: Work(run, Passes(2 + 4 * len(boxes(STRIDE))))}, [row])


def _captum_noise_tunnel(setting: Setting) -> Item:
    from captum.attr import NoiseTunnel, Saliency

    def run() -> Passes:
        both = _OfBothViews(setting.model)
        NoiseTunnel(Saliency(both)).attribute(
            setting.views, nt_type="smoothgrad", nt_samples=4, nt_samples_batch_size=4, stdevs=0.15, abs=False
        )
        return Passes(both.forwards, both.forwards)

    explainer = SmoothGrad(setting.model, samples=16)
    row = Compared("SmoothGrad, 50 samples, beside Captum's NoiseTunnel", other="captum")
    ours = Work(setting.explained(explainer, views_known=True), Passes(100, 100))
    return Item({OURS: ours, row.other: Work(run, Passes(100, 100))}, [row])


def _conditional(setting: Setting, times: float) -> Work:
    """This package's insertion and deletion on one map: 2 paths of view 1, of which ``times`` are counted."""
    view1, view2 = setting.views

    def ours() -> Passes:
        return setting.counted(
            lambda bank: insertion_deletion(
                setting.model, view1, view2, setting.maps[0], None, points=setting.points, protocol="paper", bank=bank
            )
        )()

    whole = times * (2 * (POINTS - 1) + 4)
    done, of = chunked(setting, setting.points - 1, POINTS - 1, 2)
    return Work(ours, Passes(whole), (done, times * of), setting.once(ends=2))


def _torchcam(setting: Setting) -> Item:
    from torchcam.methods import GradCAM
    from torchcam.metrics import DeletionInsertionMetric

    steps = 4 if setting.quick else 12

    def run() -> Passes:
        model = _ToPartner(setting.model, setting.views[1])
        layer = next(reversed(list(setting.model.trunk.named_children())))[0]
        with GradCAM(model, target_layer=f"model.trunk.{layer}", input_shape=(3, SIDE, SIDE)) as extractor:
            metric = DeletionInsertionMetric(extractor, steps=steps)
            metric.update(setting.views[0], class_idx=0)
        return Passes(model.forwards)

    row = Compared("CI and CD of one view beside torch-cam's", other="torchcam")
    return Item({OURS: _conditional(setting, 1), row.other: Work(run, Passes(2 * (POINTS - 1) + 2))}, [row])


def _quantus(setting: Setting) -> Item:
    from quantus import PixelFlipping

    def run() -> Passes:
        model = _ToPartner(setting.model, setting.views[1]).eval()
        metric = PixelFlipping(features_in_step=SIDE * SIDE // 8, disable_warnings=True, normalise=False)
        device = setting.views[0].device
        attribution = setting.maps[0].unsqueeze(0).cpu().numpy()
        metric(
            model,
            setting.views[0].cpu().numpy(),
            np.array([0]),
            attribution,
            channel_first=True,
            softmax=False,
            device=str(device),
        )
        return Passes(model.forwards)

    row = Compared("CD of one view beside Quantus' PixelFlipping", other="quantus")
    return Item({OURS: _conditional(setting, 0.5), row.other: Work(run, Passes(POINTS))}, [row])
