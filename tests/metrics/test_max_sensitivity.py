"""Max-sensitivity where the change of a map can be written down, against its literal definition, and in any batch."""

import math

import pytest
import torch

from oracles import max_sensitivity as oracle
from toy import tiny_model, tiny_pair
from twinsight.engine import NonFiniteEmbedding, PairBank, generator
from twinsight.errors import UserError
from twinsight.explainers import (
    ConditionalOcclusion,
    Explainer,
    FeatureVisualization,
    GradCAM,
    InputXGradient,
    PartnerSwapped,
    RandomMap,
    SmoothGrad,
)
from twinsight.metrics.functional import max_sensitivity

SEEDS = torch.tensor([11, 12, 13])


def explainer(explain, maps=2, model=None):
    """An explainer that says ``explain(view1, view2)``, and keeps what it was asked in ``seen``."""

    class _Toy(Explainer):
        def explain(self, pair):
            self.seen.append((pair.view1, pair.view2, pair.seed))
            return explain(pair.view1, pair.view2)

    toy = _Toy(tiny_model(0) if model is None else model)
    toy.maps, toy.seen = maps, []
    return toy


def views_themselves(view1, view2):
    return view1[0], view2[0]


def constant(value, shape=(5, 4)):
    return lambda view1, view2: (torch.full(shape, value), torch.full(shape, value))


# What can be written down


def test_maps_that_never_change_have_none():
    assert max_sensitivity(explainer(constant(0.7)), *tiny_pair(0, 3)).tolist() == [0, 0, 0]


def test_the_change_is_relative_to_the_map_without_noise():
    """The map is the mean of the view: |mean(d)| / |mean(x)|, whatever the shape it is spread over."""

    def spread(view1, view2):
        return view1.mean().expand(3, 3), view2.mean().expand(7, 2)

    views = torch.full((1, 3, 32, 32), 0.5), torch.full((1, 3, 32, 32), -2.0)
    means = [noise(11, n).mean().abs().item() for n in range(4)]
    found = max_sensitivity(explainer(spread), *views, draws=4, seeds=SEEDS[:1], units="input")
    assert found.item() == pytest.approx((max(means) / 0.5 + max(means) / 2.0) / 2, rel=1e-4)


def test_noise_as_large_as_the_radius_is_what_a_linear_map_loses_at_most():
    """For views of one colour ``a``: the root mean square of uniform noise is ``radius / sqrt(3)``."""
    views = torch.full((1, 3, 32, 32), 0.5), torch.full((1, 3, 32, 32), 0.25)
    for radius in (0.01, 0.2, 3.0):
        found = max_sensitivity(explainer(views_themselves), *views, radius=radius, draws=1, units="input")
        assert found.item() == pytest.approx(radius / math.sqrt(3) * (1 / 0.5 + 1 / 0.25) / 2, rel=0.05)


def test_the_size_of_the_maps_does_not_matter():
    one, other = (
        max_sensitivity(explainer(lambda a, b, k=k: (k * a[0] ** 3, -k * b[0] ** 3)), *tiny_pair(0, 2), draws=3)
        for k in (1.0, 1e-20)
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=0)


def test_one_map_counts_alone():
    views = tiny_pair(0, 3)
    alone = max_sensitivity(explainer(lambda a, b: (a[0], None), maps=1), *views, draws=3, seeds=SEEDS)
    other = max_sensitivity(explainer(lambda a, b: (b[0], None), maps=1), *views, draws=3, seeds=SEEDS)
    both = max_sensitivity(explainer(views_themselves), *views, draws=3, seeds=SEEDS)
    torch.testing.assert_close(both, (alone + other) / 2)
    assert not torch.allclose(alone, other)


def test_each_map_has_a_largest_change_of_its_own():
    """Map 1 changes under the first draw only, map 2 under the second only."""
    calls = []

    def explain(view1, view2):
        calls.append(None)
        return torch.full((2, 2), {2: 3.0}.get(len(calls), 1.0)), torch.full((2, 2), {3: 2.0}.get(len(calls), 1.0))

    assert max_sensitivity(explainer(explain), *tiny_pair(0, 1), draws=3).item() == (2 + 1) / 2


@pytest.mark.parametrize(("protocol", "factor"), [("paper", 1), ("sound", 4)])
def test_the_protocol_decides_what_the_radius_is_in(protocol, factor):
    """Pixels are divided by the std, 0.25, on their way to the model."""
    toy = explainer(views_themselves)
    found = max_sensitivity(toy, *tiny_pair(0, 3), seeds=SEEDS, protocol=protocol, draws=2)
    (view1, _, _), (noisy, _, _) = toy.seen[0], toy.seen[3]
    assert (noisy - view1).abs().max().item() == pytest.approx(0.2 * factor, rel=0.01)
    units = {1: "input", 4: "pixels"}[factor]
    other = "paper" if protocol == "sound" else "sound"
    assert torch.equal(found, max_sensitivity(toy, *tiny_pair(0, 3), seeds=SEEDS, protocol=other, units=units, draws=2))


def test_units_are_the_same_without_normalisation():
    model = tiny_model(0)
    model.normalization = None
    one, other = (
        max_sensitivity(explainer(views_themselves, model=model), *tiny_pair(0, 2), units=units, draws=2)
        for units in ("input", "pixels")
    )
    assert torch.equal(one, other)


# The noise


def noise(seed, draw, radius=0.2, shape=(3, 32, 32)):
    return (2 * torch.rand(shape, generator=generator(seed, "max sensitivity", draw)) - 1) * radius


def test_both_views_get_the_same_noise_and_every_draw_another():
    toy = explainer(views_themselves)
    max_sensitivity(toy, *tiny_pair(0, 3), draws=4, seeds=SEEDS, units="input")
    assert len(toy.seen) == 3 * 5
    clean, drawn = toy.seen[:3], []
    for draw in range(4):
        for (view1, view2, seed), (noisy1, noisy2, again) in zip(clean, toy.seen[3 * draw + 3 :][:3], strict=True):
            assert again == seed
            torch.testing.assert_close(noisy1 - view1, noisy2 - view2, rtol=0, atol=1e-6)
            drawn.append(noisy1 - view1)
    for d in drawn:
        assert -0.2 <= d.min() < -0.19
        assert 0.19 < d.max() <= 0.2 + 1e-6
        assert d.mean().abs() < 0.01
    assert len({round(d.sum().item(), 3) for d in drawn}) == 12


def test_noise_may_leave_the_range_of_pixels():
    toy = explainer(views_themselves)
    views = ((torch.ones(1, 3, 32, 32) - 0.5) / 0.25,) * 2
    max_sensitivity(toy, *views, draws=1)
    assert (toy.seen[-1][0] * 0.25 + 0.5).max() > 1.19


def test_the_seeds_of_the_pairs_are_those_of_the_views_before_noise():
    toy = explainer(views_themselves)
    max_sensitivity(toy, *tiny_pair(0, 2), draws=2)
    assert [seed for *_, seed in toy.seen] == [seed for *_, seed in toy.seen[:2]] * 3


@pytest.mark.parametrize("kind", [RandomMap, SmoothGrad])
def test_the_randomness_of_a_method_is_not_sensitivity(kind):
    """A map that is drawn from the seed alone does not change; one that draws noise gets the same every time."""
    method, views = kind(tiny_model(0)), tiny_pair(0, 2)
    found = max_sensitivity(method, *views, radius=1e-6, draws=2, units="input")
    assert (found < 1e-2).all()
    if kind is RandomMap:
        assert found.tolist() == [0, 0]


# Literally


@pytest.mark.parametrize("protocol", ["paper", "sound"])
@pytest.mark.parametrize("kind", [GradCAM, InputXGradient, ConditionalOcclusion])
def test_it_equals_its_literal_definition(kind, protocol):
    options = {"window": 12, "stride": 10} if kind is ConditionalOcclusion else {}
    method = kind(tiny_model(3), protocol="sound", **options)
    view1, view2 = tiny_pair(3, 3)
    found = max_sensitivity(method, view1, view2, draws=3, seeds=SEEDS, protocol=protocol)
    for n, seed in enumerate(SEEDS.tolist()):

        def explain(a, b, seed=seed):
            explanation = method(a, b, seeds=torch.tensor([seed]))
            return explanation.map1, explanation.map2

        drawn = [noise(seed, draw)[None] / (1.0 if protocol == "paper" else 0.25) for draw in range(3)]
        expected = oracle.max_sensitivity(explain, view1[n : n + 1], view2[n : n + 1], drawn)
        assert found[n].item() == pytest.approx(expected, rel=1e-4)
        assert expected > 0.01


# Whatever the batch


@pytest.mark.parametrize("seeds", [None, SEEDS])
def test_a_batch_is_its_pairs_one_by_one_bit_for_bit(seeds):
    method, views = InputXGradient(tiny_model(0)), tiny_pair(0, 3)
    together = max_sensitivity(method, *views, draws=2, seeds=seeds)
    for n in range(3):
        one = None if seeds is None else seeds[n : n + 1]
        alone = max_sensitivity(method, *(view[n : n + 1] for view in views), draws=2, seeds=one)
        assert torch.equal(alone[0], together[n])


def test_chunk_sizes_agree_to_rounding():
    method, views = ConditionalOcclusion(tiny_model(0), window=12, stride=10), tiny_pair(0, 2)
    found = [max_sensitivity(method, *views, draws=2, bank=PairBank(method.model, size)) for size in (1, 5, 32)]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-5)


def test_swapping_the_views_changes_nothing():
    method, (view1, view2) = InputXGradient(tiny_model(0)), tiny_pair(0, 3)
    one, other = (max_sensitivity(method, *views, draws=2, seeds=SEEDS) for views in ((view1, view2), (view2, view1)))
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_more_draws_can_only_find_more():
    method, views = InputXGradient(tiny_model(0)), tiny_pair(0, 3)
    found = [max_sensitivity(method, *views, draws=draws, seeds=SEEDS) for draws in (1, 2, 5)]
    assert (found[0] <= found[1]).all()
    assert (found[1] <= found[2]).all()
    assert (found[0] < found[2]).any()


# Sharing


def test_a_known_explanation_and_a_shared_bank_change_nothing():
    model, views = tiny_model(0), tiny_pair(0, 2)
    method = InputXGradient(model)
    expected = max_sensitivity(method, *views, draws=3)
    bank = PairBank(model)
    explanation = method(*views, bank=bank)
    passes = bank.forwards, bank.backwards
    assert torch.equal(max_sensitivity(method, *views, draws=3, bank=bank, explanation=explanation), expected)
    assert (bank.forwards, bank.backwards) == tuple(4 * count for count in passes)


def test_noisy_views_are_not_kept():
    model, views = tiny_model(0), tiny_pair(0, 2)
    method, bank = ConditionalOcclusion(model, window=12, stride=10), PairBank(model)
    method(*views, bank=bank)
    kept, size, forwards = set(bank._kept), bank._bytes, bank.forwards
    max_sensitivity(method, *views, draws=3, bank=bank)
    assert (set(bank._kept), bank._bytes, bank.forwards) == (kept, size, 4 * forwards)


def test_a_chunk_halved_for_noisy_views_stays_halved():
    bank = PairBank(tiny_model(0), 8)

    def work():
        with bank.aside() as scratch:
            assert scratch.chunk_size == 8
            scratch.embedding(tiny_pair(0, 1)[0][0])
            scratch.chunk_size = 4
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        work()
    assert (bank.chunk_size, bank.forwards, bank._kept) == (4, 1, {})


def test_the_model_is_left_as_it_was():
    model = tiny_model(0).train().requires_grad_(True)
    with torch.inference_mode():
        found = max_sensitivity(InputXGradient(model), *tiny_pair(0, 1), draws=2)
    assert torch.equal(found, max_sensitivity(InputXGradient(tiny_model(0)), *tiny_pair(0, 1), draws=2))
    assert all(part.training for part in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_controls_get_the_views_of_other_pairs_with_the_same_noise():
    seen = []
    model, (view1, view2), (other, _) = tiny_model(0), tiny_pair(0, 1), tiny_pair(5, 1)

    class _Watched(PartnerSwapped):
        def explain(self, pair):
            seen.append(pair)
            return super().explain(pair)

    found = max_sensitivity(_Watched(model, of="gradcam"), view1, view2, draws=2, partner_view2=other)
    assert found.isfinite().all()
    for pair in seen[1:]:
        torch.testing.assert_close(pair.partner_view2 - other[0], pair.view2 - view2[0], rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="partner swapped needs `partner_view2`"):
        max_sensitivity(PartnerSwapped(model, of="gradcam"), view1, view2)


# Maps that allow no answer


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("view", [1, 2])
def test_a_map_without_a_size_has_no_relative_change(view, value):
    def explain(view1, view2):
        maps = [view1[0], view2[0]]
        maps[view - 1] = torch.full((4, 4), value)
        return tuple(maps)

    assert max_sensitivity(explainer(explain), *tiny_pair(0, 2), draws=2).isnan().all()


def test_one_undefined_pair_leaves_the_others_alone():
    def explain(view1, view2):
        return torch.where(view1[0] == 7, torch.nan, view1[0]), view2[0]

    view1, view2 = tiny_pair(0, 3)
    expected = max_sensitivity(explainer(explain), view1, view2, draws=2, seeds=SEEDS)
    view1[1, :, 0, 0] = 7
    found = max_sensitivity(explainer(explain), view1, view2, draws=2, seeds=SEEDS)
    assert found.isnan().tolist() == [False, True, False]
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_map_that_breaks_under_noise_is_not_a_number(value):
    """In the first of three draws only: a later draw must not hide it."""
    calls = []

    def explain(view1, view2):
        calls.append(None)
        return torch.full((2, 2), value if len(calls) == 2 else 1.0), torch.ones(2, 2)

    assert max_sensitivity(explainer(explain), *tiny_pair(0, 1), draws=3).isnan().all()


def test_a_map_of_zeros_that_noise_awakens_is_undefined_too():
    calls = []

    def explain(view1, view2):
        calls.append(None)
        return torch.full((2, 2), 0.0 if len(calls) == 1 else 1.0), torch.ones(2, 2)

    assert max_sensitivity(explainer(explain), *tiny_pair(0, 1), draws=1).isnan().all()


def test_constant_and_negative_maps_are_maps_like_others():
    found = max_sensitivity(explainer(lambda a, b: (-a.mean().expand(2, 2), -b[0].abs())), *tiny_pair(0, 2), draws=2)
    mirrored = max_sensitivity(explainer(lambda a, b: (a.mean().expand(2, 2), b[0].abs())), *tiny_pair(0, 2), draws=2)
    assert torch.equal(found, mirrored)
    assert (found > 0).all()


# What is refused


WRONG = {
    "radius zero": ({"radius": 0.0}, "`radius` must be a positive number, got 0.0"),
    "radius negative": ({"radius": -0.1}, "`radius` must be a positive number, got -0.1"),
    "radius not a number": ({"radius": math.nan}, "`radius` must be a positive number, got nan"),
    "no draws": ({"draws": 0}, "`draws` must be at least 1, got 0"),
    "half a draw": ({"draws": 1.5}, "`draws` must be at least 1, got 1.5"),
    "units": ({"units": "pixel"}, "unknown `units` 'pixel': did you mean 'pixels'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_option_out_of_range_is_refused_by_name(what):
    options, message = WRONG[what]
    with pytest.raises(UserError, match=message):
        max_sensitivity(GradCAM(tiny_model(0)), *tiny_pair(0, 1), **options)
    with pytest.raises(UserError, match=message):
        max_sensitivity.check_options((32, 32), options)


def test_what_explains_nothing_is_refused():
    model, views = tiny_model(0), tiny_pair(0, 1)
    with pytest.raises(TypeError, match="`explainer` must be an Explainer, got TwoViewModel"):
        max_sensitivity(model, *views)
    with pytest.raises(UserError, match="`explainer` makes images, not maps"):
        max_sensitivity(FeatureVisualization(model), *views)
    with pytest.raises(UserError, match="`bank` was made for another model"):
        max_sensitivity(GradCAM(model), *views, bank=PairBank(tiny_model(1)))
    with pytest.raises(UserError, match="unknown protocol 'papers'"):
        max_sensitivity(GradCAM(model), *views, protocol="papers")
    with pytest.raises(UserError, match="`explanation` must be of these 1 pairs, got 2"):
        max_sensitivity(GradCAM(model), *views, explanation=GradCAM(model)(*tiny_pair(0, 2)))
    with pytest.raises(UserError, match=r"`seeds` must be \(1,\)"):
        max_sensitivity(GradCAM(model), *views, seeds=SEEDS)


def test_a_network_that_answers_nan_says_so():
    model = tiny_model(0)
    model.head[0].weight.data[0, 0] = math.nan
    with pytest.raises(NonFiniteEmbedding):
        max_sensitivity(GradCAM(model), *tiny_pair(0, 1), draws=1)
