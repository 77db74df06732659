"""What `python run.py` shows, on the bundled photos with the bundled weights."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from twinsight.data import DemoPhotos, PairDataModule, SimCLRViews
from twinsight.engine import PairBank
from twinsight.explainers import ConditionalOcclusion, GradCAM, InteractionCAM, MatchedRandom
from twinsight.metrics.functional import insertion_deletion
from twinsight.models import available_models, load_model


@pytest.fixture(scope="module")
def model():
    return load_model("demo_simclr")


@pytest.fixture(scope="module")
def batch(model):
    pairs = PairDataModule(DemoPhotos(), SimCLRViews(model.input_size), model.normalization, batch_size=64)
    return next(iter(pairs.predict_dataloader()))


@pytest.mark.parametrize("explainer", [InteractionCAM, GradCAM, ConditionalOcclusion])
def test_explanations_beat_random_maps_of_equal_smoothness_on_conditional_insertion(model, batch, explainer):
    options = {"stride": 4} if explainer is ConditionalOcclusion else {}
    bank, genuine = PairBank(model), explainer(model, **options)

    def conditional_insertion(method, seeds):
        maps = method(batch.view1, batch.view2, seeds=seeds, bank=bank).resized((64, 64))
        result = insertion_deletion(model, batch.view1, batch.view2, *maps, points=16, bank=bank)
        return result.ci.mean().item()

    control = MatchedRandom(model, of=genuine)
    draws = [conditional_insertion(control, batch.seeds + draw) for draw in range(4)]
    assert conditional_insertion(genuine, batch.seeds) > np.mean(draws)


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


@pytest.mark.parametrize(
    ("name", "method"),
    [("demo_simclr", "SimCLR"), ("demo_barlow_twins", "BarlowTwins"), ("demo_supervised", "Supervised")],
)
def test_the_bundled_weights_say_how_good_they_are(name, method):
    bundled = load_model(name)
    assert bundled.figures["method"] == method
    assert bundled.figures["knn_accuracy"] >= 0.55
    card = (Path(__file__).parents[1] / "docs" / "models" / f"{name}.md").read_text()
    assert f"**{100 * bundled.figures['knn_accuracy']:.1f} %**" in card


def test_the_bundled_networks_share_a_trunk_and_are_small_together():
    shapes = [
        {key: tuple(value.shape) for key, value in load_model(name).trunk.state_dict().items()}
        for name in available_models()
    ]
    assert len(shapes) == 3
    assert shapes[0] == shapes[1] == shapes[2]
    folder = files("twinsight") / "weights"
    assert sum(Path(str(path)).stat().st_size for path in folder.iterdir()) < 8e6
