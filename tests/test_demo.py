"""What `python run.py` shows, on the bundled photos with the bundled weights."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from twinsight.data import DemoPhotos, PairDataModule, SimCLRViews
from twinsight.engine import PairBank
from twinsight.explainers import ConditionalOcclusion, GradCAM, InteractionCAM
from twinsight.metrics.functional import insertion_deletion
from twinsight.models import load_model


@pytest.fixture(scope="module")
def model():
    return load_model("demo_simclr")


@pytest.fixture(scope="module")
def batch(model):
    pairs = PairDataModule(DemoPhotos(), SimCLRViews(model.input_size), model.normalization, batch_size=64)
    return next(iter(pairs.predict_dataloader()))


def correlation_radius(heatmap: np.ndarray) -> float:
    """Distance in pixels at which the autocorrelation of a map falls to 1/e."""
    centred, side = heatmap - heatmap.mean(), len(heatmap)
    spectrum = np.abs(np.fft.rfft2(centred, s=(2 * side, 2 * side))) ** 2
    overlap = np.abs(np.fft.rfft2(np.ones_like(heatmap), s=(2 * side, 2 * side))) ** 2
    correlation = np.fft.irfft2(spectrum) / np.maximum(np.fft.irfft2(overlap), 1)
    rows, columns = np.mgrid[:side, :side]
    radius = np.hypot(rows, columns).round().astype(int)
    profile = np.array([correlation[:side, :side][radius == r].mean() for r in range(side)]) / correlation[0, 0]
    beyond = int(np.argmax(profile < 1 / np.e))
    before, after = profile[beyond - 1], profile[beyond]
    return beyond - 1 + (before - 1 / np.e) / (before - after)


def random_map_as_smooth_as(heatmap: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Gaussian noise whose autocorrelation falls to 1/e where the map's does: exp(-r^2 / 4 sigma^2) at r = 2 sigma."""
    sigma = correlation_radius(heatmap.double().numpy()) / 2
    return torch.from_numpy(gaussian_filter(random.standard_normal(heatmap.shape), sigma)).float()


@pytest.mark.parametrize("explainer", [InteractionCAM, GradCAM, ConditionalOcclusion])
def test_explanations_beat_random_maps_of_equal_smoothness_on_conditional_insertion(model, batch, explainer):
    options = {"stride": 4} if explainer is ConditionalOcclusion else {}
    random, bank = np.random.default_rng(0), PairBank(model)
    explanation = explainer(model, **options)(batch.view1, batch.view2, seeds=batch.seeds, bank=bank)
    map1, map2 = explanation.resized((64, 64))

    def conditional_insertion(first, second):
        result = insertion_deletion(model, batch.view1, batch.view2, first, second, points=32, bank=bank)
        return result.ci.mean().item()

    draws = []
    for _ in range(4):
        controls = [torch.stack([random_map_as_smooth_as(one, random) for one in maps]) for maps in (map1, map2)]
        draws.append(conditional_insertion(*controls))
    assert conditional_insertion(map1, map2) > np.mean(draws)


def test_heatmaps_differ_between_photos(model, batch):
    map1 = InteractionCAM(model)(batch.view1, batch.view2).map1.flatten(1)
    correlations = torch.corrcoef(map1)
    off_diagonal = correlations[~torch.eye(len(map1), dtype=torch.bool)]
    assert off_diagonal.mean() < 0.5


def test_heatmaps_follow_the_content_when_the_photo_is_mirrored(model, batch):
    explainer = InteractionCAM(model)
    plain = explainer(batch.view1, batch.view2).map1
    mirrored = explainer(batch.view1.flip(-1), batch.view2).map1.flip(-1)
    agreement = [
        torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in zip(plain, mirrored, strict=True)
    ]
    # The network is not mirror-symmetric by construction, but what it looks at moves with the object.
    assert np.median(agreement) > 0.7


def test_the_bundled_weights_are_small_and_say_how_good_they_are(model):
    assert model.figures["knn_accuracy"] >= 0.55
    assert model.figures["method"] == "SimCLR"
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
