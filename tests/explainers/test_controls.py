"""Controls: random maps of a known smoothness, turned signs, and partners that do not belong."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from toy import tiny_model, tiny_pair
from twinsight.engine import PairBank
from twinsight.errors import UserError
from twinsight.explainers import (
    ConditionalOcclusion,
    Explainer,
    GradCAM,
    InteractionCAM,
    Inverted,
    LaFAM,
    MatchedRandom,
    PartnerSwapped,
    RandomMap,
)
from twinsight.explainers.controls import correlation_radius


@pytest.fixture
def model():
    return tiny_model(0)


@pytest.fixture
def views():
    return tiny_pair(0, 2)


def test_random_maps_are_uniform_independent_and_of_the_pair_alone(model):
    views = tiny_pair(0, 2, 64)
    explanation = RandomMap(tiny_model(0, input_size=64))(*views, seeds=torch.tensor([1, 2]))
    drawn = torch.stack([explanation.map1, explanation.map2]).flatten(2).flatten(0, 1)
    assert 0 <= drawn.min() < 0.001 < 0.999 < drawn.max() < 1
    correlation = torch.corrcoef(drawn) - torch.eye(4)
    assert correlation.abs().max() < 0.06  # 4 standard deviations of 4096 pixels
    again = RandomMap(model)(*views, seeds=torch.tensor([2, 1]))
    assert torch.equal(explanation.map1, again.map1.flip(0))


@pytest.mark.parametrize("sigma", [1.0, 2.5, 5.0])
def test_the_correlation_radius_of_smoothed_noise_is_twice_its_sigma(sigma):
    """The autocorrelation of white noise smoothed by a Gaussian is exp(-r^2 / 4 sigma^2): 1/e at r = 2 sigma."""
    random = np.random.default_rng(0)
    radii = [correlation_radius(gaussian_filter(random.standard_normal((160, 128)), sigma)) for _ in range(12)]
    assert np.mean(radii) == pytest.approx(2 * sigma, rel=0.08)


def test_the_correlation_radius_does_not_depend_on_scale_or_sign_and_survives_odd_maps():
    smooth = gaussian_filter(np.random.default_rng(0).standard_normal((48, 64)), 3)
    radius = correlation_radius(smooth)
    assert correlation_radius(5 - 1000 * smooth) == pytest.approx(radius)
    assert correlation_radius(smooth.T) == pytest.approx(radius)
    assert correlation_radius(np.ones((8, 8))) == 0
    assert correlation_radius(np.full((8, 8), np.nan)) == 0
    assert 0 < correlation_radius(np.random.default_rng(0).standard_normal((48, 64))) < 1.5
    assert correlation_radius(np.add.outer(np.arange(16.0), np.arange(16.0))) <= 16


def test_matched_noise_is_as_smooth_as_the_map_it_stands_in_for():
    model, views = tiny_model(0, input_size=64), tiny_pair(0, 6, 64)
    explainer = GradCAM(model, layer="trunk.4")
    control = MatchedRandom(model, of=explainer)(*views)
    maps, _ = explainer(*views).resized((64, 64))
    for view in (0, 1, 2):
        target = correlation_radius(maps[view].double().numpy())
        assert control.details["correlation_radius1"][view].item() == pytest.approx(target, rel=1e-5)
    wanted = control.details["correlation_radius1"].mean().item()
    found = np.mean([correlation_radius(noise.double().numpy()) for noise in control.map1])
    assert found == pytest.approx(wanted, rel=0.35)  # six draws of few blobs
    correlation = torch.corrcoef(torch.stack([control.map1.flatten(), maps.flatten()]))[0, 1]
    assert correlation.abs() < 0.35


def test_a_map_that_ranks_nothing_is_matched_by_independent_noise(model, views):
    class Flat(Explainer):
        def explain(self, pair):
            return torch.ones(4, 4), torch.full((4, 4), torch.nan)

    control = MatchedRandom(model, of=Flat(model))(*views)
    assert torch.isfinite(control.map1).all()
    assert control.details["correlation_radius1"].tolist() == [0, 0]
    assert correlation_radius(control.map1[0].double().numpy()) < 2


@pytest.mark.parametrize("of", ["conditional_occlusion", "gradcam", "interaction_cam"])
def test_inverted_maps_rank_the_other_way_round(model, views, of):
    control = Inverted(model, of=of)
    original, inverted = control.of(*views), control(*views)
    assert torch.equal(inverted.map1, -original.map1)
    assert torch.equal(inverted.resized((32, 32))[1], -original.resized((32, 32))[1])
    assert inverted.geometry == original.geometry


@pytest.mark.parametrize("asymmetric", [False, True])
def test_a_swapped_partner_is_explained_as_a_pair_of_its_own(views, asymmetric):
    model, other = tiny_model(0, asymmetric=asymmetric), tiny_pair(9, 2)[1]
    explainer = ConditionalOcclusion(model, window=9, stride=5)
    control, seeds = PartnerSwapped(model, of=explainer), torch.tensor([3, 4])
    found = control(*views, seeds=seeds, partner_view2=other)
    assert torch.equal(found.map1, explainer(views[0], other, seeds=seeds).map1)
    assert torch.equal(found.map2, explainer(other, views[1], seeds=seeds).map2)
    assert torch.equal(found.score, explainer(*views, seeds=seeds).score)


def test_lafam_does_not_look_at_the_partner(model, views):
    found = LaFAM(model)(*views)
    assert torch.equal(PartnerSwapped(model, of="lafam")(*views, partner_view2=views[1].flip(-1)).map1, found.map1)
    with torch.no_grad():
        torch.testing.assert_close(found.map1, model.features(views[0]).mean(dim=1))


@pytest.mark.parametrize("control", [Inverted, MatchedRandom, PartnerSwapped])
@pytest.mark.parametrize("of", ["conditional_occlusion", "gradcam"])
def test_controls_cost_what_they_say(model, control, of):
    views, bank = tiny_pair(0, 1), PairBank(model)
    explainer = control(model, of=of, options={"window": 9, "stride": 5} if of == "conditional_occlusion" else {})
    explainer(*views, bank=bank, partner_view2=views[1].flip(-1))
    expected = explainer.cost((32, 32)).forwards
    if control is PartnerSwapped:  # a symmetric model: the partner is encoded once, in either place
        expected = expected * 3 // 4
    assert bank.forwards == expected


def test_a_control_is_named_and_hashed_by_what_it_controls(model):
    one, other = Inverted(model, of="gradcam"), Inverted(model, of="gradcam", options={"form": "elementwise"})
    assert one.label == "Inverted (Grad-CAM)"
    assert Inverted(model, of=InteractionCAM(model, "max")).label == "Inverted (Interaction-CAM (max))"
    assert one.identity()["options"]["of"]["options"]["form"] == "canonical"
    assert one.identity() != other.identity()
    assert Inverted(model, of="gradcam", protocol="paper").of.options["form"] == "elementwise"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"of": "grad_cam"}, "unknown `of` 'grad_cam': did you mean 'gradcam'"),
        ({"of": "gradcam", "options": {"from": 1}}, "`options` of gradcam: .*'from'"),
        ({"of": "gradcam", "options": {"form": "round"}}, "`form`"),
        ({"of": GradCAM(tiny_model(1))}, "`of` was built on another model"),
    ],
)
def test_wrong_controls_are_refused(model, arguments, message):
    with pytest.raises(UserError, match=message):
        Inverted(model, **arguments)


def test_swapping_needs_a_partner(model, views):
    with pytest.raises(UserError, match="needs `partner_view2`"):
        PartnerSwapped(model)(*views)
    with pytest.raises(UserError, match="one shape"):
        PartnerSwapped(model)(*views, partner_view2=views[1][:, :, :8])
