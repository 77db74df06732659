"""Whether maps follow the weights and the partner: networks forget from the head down, views meet other views."""

import copy

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from toy import AsymmetricModel, tiny_model, tiny_pair
from toy_cells import NotFinite, OneMap
from twinsight.engine import PairBank
from twinsight.errors import UserError
from twinsight.explainers import (
    ConditionalOcclusion,
    FeatureVisualization,
    GradCAM,
    InputXGradient,
    InteractionCAM,
    Inverted,
    LaFAM,
    MatchedRandom,
    PartnerSwapped,
    RandomMap,
    SmoothGrad,
)
from twinsight.explainers.base import Explainer
from twinsight.metrics.functional import cascading_randomization, partner_sensitivity
from twinsight.metrics.functional.randomization import randomization_stages
from twinsight.models import TwoViewModel, small_two_view


class Constant(Explainer):
    """Maps that rank nothing once the head has changed, the first channel of the view before."""

    def __init__(self, model, **options):
        super().__init__(model, **options)
        self.known = model.head[0].weight.clone()

    def explain(self, pair):
        same = torch.equal(self.model.head[0].weight, self.known)
        return (pair.view1[0], pair.view2[0]) if same else (torch.zeros(4, 4), torch.zeros(4, 4))


class Weights(Explainer):
    """The first weights of the trunk as a map: it follows the network and nothing else."""

    def explain(self, pair):
        return self.model.trunk[0].weight[0].flatten(1), self.model.head[0].weight


def other_views(batch):
    return tiny_pair(9, batch)[1]


# Randomisation


def test_maps_that_ignore_the_network_correlate_fully():
    view1, view2 = tiny_pair(0, 2)
    result = cascading_randomization(RandomMap(tiny_model(0)), view1, view2)
    for name in ("randomization", "full_randomization"):
        for view in ("", "1", "2"):
            assert getattr(result, f"{name}{view}").tolist() == pytest.approx([1, 1])
    assert result.arrays["randomization1"].shape == (2, len(result.stages))


def test_stages_go_from_the_head_down_and_add_up():
    model = tiny_model(0)
    result = cascading_randomization(Weights(model), *tiny_pair(0, 1), stages=8)
    assert result.stages == ("head.3", "head.0-1", "trunk.6-7", "trunk.3-4", "trunk.0-1")
    # Map 1 is the first layer of the trunk, randomised last; map 2 is that of the head, randomised second.
    assert result.arrays["randomization1"][0, :4].tolist() == pytest.approx([1] * 4)
    assert abs(result.arrays["randomization1"][0, 4]) < 0.6
    assert result.arrays["randomization2"][0, 0].item() == pytest.approx(1)
    later = result.arrays["randomization2"][0, 1:]
    assert (later.abs() < 0.5).all()
    assert (later == later[0]).all()  # and not drawn again at later stages
    assert result.full_randomization1.item() == result.arrays["randomization1"][0, -1]
    assert result.randomization2.item() == pytest.approx(result.arrays["randomization2"].mean().item())
    expected = (result.randomization1 + result.randomization2) / 2
    assert result.randomization.item() == pytest.approx(expected.item())


def test_the_correlation_is_scipys_of_native_maps_on_the_network_randomised_by_hand():
    model, (view1, view2) = tiny_model(1), tiny_pair(1, 1)
    result = cascading_randomization(GradCAM(model), view1, view2, seed=3)
    by_hand = copy.deepcopy(model)
    before = GradCAM(model)(view1, view2)
    for place, stage in enumerate(randomization_stages(by_hand)):
        stage.randomize(3)
        after = GradCAM(by_hand)(view1, view2)
        for view in (1, 2):
            maps = [getattr(explanation, f"map{view}").flatten() for explanation in (before, after)]
            expected = spearmanr(*maps).statistic
            assert result.arrays[f"randomization{view}"][0, place].item() == pytest.approx(expected, abs=1e-6)


def test_absolute_compares_magnitudes():
    class SignFlips(Explainer):
        """A map whose signs are turned where the head has changed."""

        def __init__(self, model, **options):
            super().__init__(model, **options)
            self.known = model.head[0].weight.clone()

        def explain(self, pair):
            sign = 1 if torch.equal(self.model.head[0].weight, self.known) else -1
            return sign * pair.view1[0], None

    explainer, views = SignFlips(tiny_model(0)), tiny_pair(0, 1)
    assert cascading_randomization(explainer, *views).full_randomization.item() == pytest.approx(-1)
    assert cascading_randomization(explainer, *views, absolute=True).full_randomization.item() == pytest.approx(1)


@pytest.mark.parametrize("kind", [GradCAM, InputXGradient, SmoothGrad, ConditionalOcclusion])
def test_the_network_is_left_bit_equal(kind):
    model = tiny_model(0)
    model.head.train()
    model.trunk[0].weight.requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    explainer = kind(model, window=16, stride=16) if kind is ConditionalOcclusion else kind(model)
    random_state = torch.random.get_rng_state()
    cascading_randomization(explainer, *tiny_pair(0, 1), stages=2)
    assert explainer.model is model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert model.trunk[0].weight.requires_grad
    assert model.trunk[0].weight.grad is None
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_results_depend_on_the_pair_and_the_seed_and_on_nothing_else():
    explainer, (view1, view2) = SmoothGrad(tiny_model(0), samples=2), tiny_pair(0, 3)
    seeds = torch.tensor([4, 5, 6])
    together = cascading_randomization(explainer, view1, view2, seeds=seeds, stages=2)
    torch.manual_seed(1)
    for pair in range(3):
        one = slice(pair, pair + 1)
        alone = cascading_randomization(explainer, view1[one], view2[one], seeds=seeds[one], stages=2)
        assert torch.equal(alone.arrays["randomization1"], together.arrays["randomization1"][one])
    other = cascading_randomization(explainer, view1, view2, seeds=seeds, stages=2, seed=1)
    assert not torch.equal(other.randomization, together.randomization)


def test_a_given_explanation_is_not_made_again_and_passes_are_counted():
    model, (view1, view2) = tiny_model(0), tiny_pair(0, 2)
    bank, explainer = PairBank(model), GradCAM(model)
    explanation = explainer(view1, view2, bank=bank)
    assert bank.forwards == 4
    given = cascading_randomization(explainer, view1, view2, stages=3, bank=bank, explanation=explanation)
    assert bank.forwards == 4 + 3 * 4  # two views of two pairs at each stage
    assert torch.equal(given.randomization, cascading_randomization(explainer, view1, view2, stages=3).randomization)


def test_gradients_are_taken_in_inference_mode_too():
    explainer, views = InputXGradient(tiny_model(0)), tiny_pair(0, 1)
    expected = cascading_randomization(explainer, *views, stages=2)
    with torch.inference_mode():
        assert torch.equal(cascading_randomization(explainer, *views, stages=2).randomization, expected.randomization)


def test_a_map_that_becomes_constant_has_forgotten_all():
    result = cascading_randomization(Constant(tiny_model(0)), *tiny_pair(0, 1))
    assert result.arrays["randomization1"][0].tolist() == pytest.approx([1, 0, 0, 0, 0])


def test_maps_that_are_missing_or_broken_are_nan():
    views = tiny_pair(0, 1)
    single = cascading_randomization(OneMap(tiny_model(0)), *views)
    assert single.randomization2.isnan().all()
    assert single.randomization.item() == single.randomization1.item() == pytest.approx(1)
    broken = cascading_randomization(NotFinite(tiny_model(0)), *views)
    assert broken.randomization.isnan().all()
    change = partner_sensitivity(NotFinite(tiny_model(0)), *views, other_views(1))
    assert change.partner_sensitivity.isnan().all()


def test_a_network_that_answers_nan_when_random_leaves_the_others_alone():
    class Fragile(nn.Module):
        """NaN for bright images once its weight is no longer 1."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 1))

        def reset_parameters(self):
            self.weight.fill_(2)

        def forward(self, x):
            bright = x.mean(dim=(1, 2, 3), keepdim=True) > 0
            return torch.where(bright & (self.weight != 1), torch.nan, x)

    model = TwoViewModel(nn.Sequential(Fragile(), nn.Conv2d(3, 4, 3)), input_size=8).eval()
    view1 = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    view1[0], view1[1] = view1[0] - view1[0].mean() - 1, view1[1] - view1[1].mean() + 1
    result = cascading_randomization(LaFAM(model), view1, view1 - 2.5)
    assert result.full_randomization1.isnan().tolist() == [False, True]


# Stages


def test_the_network_is_taken_apart_as_far_as_the_limit_allows():
    model = small_two_view()
    names = {limit: [stage.name for stage in randomization_stages(model, limit)] for limit in (1, 2, 3, 8, 99)}
    assert names[1] == ["model"]
    assert names[2] == ["head", "trunk"]
    assert names[3] == ["head.3-4", "head.0-1", "trunk"]
    assert len(names[8]) <= 8
    assert names[99][-1] == "trunk.stem-stem_norm"
    assert len(names[99]) > 8
    for limit in names:
        layers = [layer for stage in randomization_stages(model, limit) for layer in stage.layers]
        owners = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
        assert len(layers) == len(set(layers)) == len(owners)
        assert set(layers) == set(owners)


def test_every_weight_and_statistic_is_randomised_in_the_end():
    model = tiny_model(0)
    forgotten = copy.deepcopy(model)
    for stage in randomization_stages(forgotten):
        stage.randomize(0)
    for name, value in forgotten.state_dict().items():
        assert not torch.equal(value, model.state_dict()[name]), name
    norm = forgotten.trunk[1]
    assert torch.equal(norm.running_mean, torch.zeros(6))
    assert torch.equal(norm.weight, torch.ones(6))


def test_predictors_come_before_the_head_and_loose_parameters_are_drawn_with_their_own_spread():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.position = nn.Parameter(5 + 0.1 * torch.randn(64, 64))
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.layer(x) + self.position.mean()

    model = AsymmetricModel(Tokens(), nn.Linear(4, 4), predictor=nn.Linear(4, 4), input_size=8)
    stages = randomization_stages(model)
    assert [stage.name for stage in stages] == ["predictor", "head", "trunk.layer", "trunk"]
    before = model.trunk.position.detach().clone()
    with torch.no_grad():
        stages[-1].randomize(0)
    after = model.trunk.position.detach()
    assert (after.mean().item(), after.std().item()) == pytest.approx((5, 0.1), rel=0.05)
    assert abs(torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]) < 0.1


def test_normalisations_without_weights_lose_their_statistics():
    head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False))
    head[1].running_mean += 3
    model = TwoViewModel(nn.Conv2d(3, 4, 3), head, input_size=8).eval()
    assert [stage.name for stage in randomization_stages(model)] == ["head.0-1", "trunk"]
    with torch.no_grad():
        randomization_stages(model)[0].randomize(0)
    assert torch.equal(head[1].running_mean, torch.zeros(4))


# Partners


def test_maps_that_do_not_look_at_the_partner_are_not_sensitive_to_it():
    views, other = tiny_pair(0, 2), other_views(2)
    for kind in (LaFAM, RandomMap):
        result = partner_sensitivity(kind(tiny_model(0)), *views, other, seeds=torch.tensor([1, 2]))
        for view in ("", "1", "2"):
            assert getattr(result, f"partner_sensitivity{view}").tolist() == pytest.approx([0, 0], abs=1e-6)


def test_the_change_is_one_minus_scipys_correlation_with_the_partner_swapped_control():
    model, (view1, view2), other = tiny_model(2), tiny_pair(2, 2), other_views(2)
    result = partner_sensitivity(InteractionCAM(model), view1, view2, other)
    own = InteractionCAM(model)(view1, view2)
    swapped = PartnerSwapped(model, of="interaction_cam")(view1, view2, partner_view2=other)
    for pair in range(2):
        changes = [
            1 - spearmanr(getattr(own, name)[pair].flatten(), getattr(swapped, name)[pair].flatten()).statistic
            for name in ("map1", "map2")
        ]
        assert result.partner_sensitivity1[pair].item() == pytest.approx(changes[0], abs=1e-6)
        assert result.partner_sensitivity2[pair].item() == pytest.approx(changes[1], abs=1e-6)
        assert result.partner_sensitivity[pair].item() == pytest.approx(sum(changes) / 2, abs=1e-6)
    assert (result.partner_sensitivity > 0.01).all()


def test_swapping_the_views_swaps_the_changes():
    model, (view1, view2), other = tiny_model(2), tiny_pair(2, 1), other_views(1)
    forth, back = (
        partner_sensitivity(InteractionCAM(model), *views, other) for views in ((view1, view2), (view2, view1))
    )
    assert forth.partner_sensitivity1.item() == pytest.approx(back.partner_sensitivity2.item(), abs=1e-6)


def test_a_pair_that_is_its_own_partner_says_nothing():
    view1, view2 = tiny_pair(0, 2)
    other = other_views(2)
    other[1] = view2[1]
    result = partner_sensitivity(GradCAM(tiny_model(0)), view1, view2, other)
    assert result.partner_sensitivity.isnan().tolist() == [False, True]


# Explainers on other networks


@pytest.mark.parametrize("wrapper", [Inverted, PartnerSwapped, MatchedRandom])
def test_wrappers_move_with_what_they_wrap(wrapper):
    model, (view1, view2), other = tiny_model(0), tiny_pair(0, 1), other_views(1)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        randomization_stages(copied)[0].randomize(0)
    explainer = wrapper(model, of="gradcam")
    moved = explainer.on(copied)
    assert type(moved) is wrapper
    assert (moved.model, moved.of.model) == (copied, copied)
    assert (explainer.model, explainer.of.model) == (model, model)
    assert moved.identity() == explainer.identity()
    expected = wrapper(copied, of="gradcam")(view1, view2, partner_view2=other)
    assert torch.equal(moved(view1, view2, partner_view2=other).map1, expected.map1)


def test_another_network_that_an_explainer_holds_stays_the_same_object():
    class Comparing(LaFAM):
        def __init__(self, model, reference):
            super().__init__(model)
            self.reference = reference

    reference = tiny_model(1)
    assert Comparing(tiny_model(0), reference).on(tiny_model(2)).reference is reference


# What is refused


@pytest.mark.parametrize("call", [cascading_randomization, lambda *args: partner_sensitivity(*args, args[1])])
def test_what_makes_no_maps_is_refused(call):
    views = tiny_pair(0, 1)
    with pytest.raises(UserError, match="makes images, not maps"):
        call(FeatureVisualization(tiny_model(0)), *views)
    with pytest.raises(TypeError, match="`explainer` must be an Explainer, got str"):
        call("gradcam", *views)


def test_stages_out_of_range_and_networks_without_weights_are_refused():
    views = tiny_pair(0, 1)
    with pytest.raises(UserError, match="`stages` must be at least 1, got 0"):
        cascading_randomization(GradCAM(tiny_model(0)), *views, stages=0)
    empty = TwoViewModel(nn.AvgPool2d(2), input_size=32)
    with pytest.raises(UserError, match="no parameters"):
        cascading_randomization(LaFAM(empty), *views)
