"""Statistics against closed forms, scipy called directly, and examples worked by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from twinsight.errors import UserError
from twinsight.report.statistics import comparisons, difference, gain, holm, interval, intervals, paired, rank_agreement

NAN = float("nan")


def scores(n=40, seed=1, skewed=False):
    draw = np.random.default_rng(seed)
    return draw.exponential(size=n) if skewed else draw.normal(size=n)


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_of_a_mean_is_scipys_bca(skewed, level):
    values = scores(skewed=skewed)
    found = interval(values, level=level, resamples=999, seed=3)
    expected = stats.bootstrap(
        (values,),
        np.mean,
        method="BCa",
        confidence_level=level,
        n_resamples=999,
        random_state=np.random.default_rng(3),
    )
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=1e-9)
    assert found.mean == pytest.approx(values.mean(), abs=1e-15)
    assert found.method == "BCa"


def test_the_interval_of_a_normal_sample_is_near_the_textbooks():
    values = scores(n=400)
    half = 1.96 * values.std() / 20
    found = interval(values)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bca_leans_to_the_long_tail():
    found = interval(scores(skewed=True), resamples=999)
    assert found.high - found.mean > 1.1 * (found.mean - found.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    samples = draw.exponential(size=(300, 40))
    found = intervals(list(samples), ["mean"] * 300, level=0.9, resamples=499)
    assert 0.83 < np.mean([one.low < 1 < one.high for one in found]) < 0.95


@pytest.mark.parametrize("kind", ["mean", "share"])
def test_the_interval_of_a_share_covers_the_truth_about_as_often_as_it_says(kind):
    draw = np.random.default_rng(0)
    samples = (draw.random((300, 60)) < 0.2).astype(float)
    found = intervals(list(samples), [kind] * 300, level=0.9, resamples=499)
    assert 0.83 < np.mean([one.low < 0.2 < one.high for one in found]) < 0.97


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (7, 20), (20, 20)])
def test_a_share_has_wilsons_interval(successes, n):
    found = interval([1.0] * successes + [0.0] * (n - successes), "share")
    low, high = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    assert found.low <= found.mean <= found.high
    assert found.method == "Wilson"


def test_wilsons_interval_when_every_pair_succeeds_follows_the_formula():
    z2 = stats.norm.ppf(0.975) ** 2
    found = interval([1] * 8, "share")
    assert (found.mean, found.high) == (1, 1)
    assert found.low == pytest.approx(8 / (8 + z2))


def test_halves_of_two_directions_count_as_one_trial_per_pair():
    halves = interval([0.5] * 10, "share")
    trials = interval([0.0, 1.0] * 5, "share")
    assert (halves.low, halves.high) == pytest.approx((trials.low, trials.high))


def test_equal_values_have_an_interval_of_one_point():
    found = interval([0.1] * 7)
    assert (found.mean, found.low, found.high, found.method) == (0.1, 0.1, 0.1, "percentile")


def test_values_equal_but_for_rounding_have_a_finite_interval():
    found = interval([0.3, 0.1 + 0.2, 0.3, 0.3])
    assert found.low == pytest.approx(0.3)
    assert found.high == pytest.approx(0.3)


@pytest.mark.parametrize("kind", ["mean", "share"])
@pytest.mark.parametrize(
    ("values", "mean", "n"), [([], NAN, 0), ([0.5], 0.5, 1), ([NAN, 0.5], 0.5, 1), ([NAN], NAN, 0)]
)
def test_fewer_than_two_values_have_no_interval(values, mean, n, kind):
    found = interval(values, kind)
    assert found.mean == pytest.approx(mean, nan_ok=True)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert (found.n, found.missing) == (n, len(values) - n)


def test_missing_values_are_left_out_and_counted():
    whole = interval(scores(9), resamples=199)
    gappy = interval(np.insert(scores(9), [0, 4, 9], [NAN, np.inf, -np.inf]), resamples=199)
    assert (gappy.n, gappy.missing) == (9, 3)
    assert (gappy.mean, gappy.low, gappy.high) == (whole.mean, whole.low, whole.high)


def test_columns_together_are_what_they_are_alone():
    columns = [scores(12, seed) * 10.0 ** (seed - 3) for seed in range(7)]
    columns[2][3] = columns[4][3] = NAN
    columns[5][:] = 1
    columns.append((scores(12) > 0).astype(float))
    kinds = ["mean"] * 7 + ["share"]
    together = intervals(columns, kinds, resamples=199)
    for one, column, kind in zip(together, columns, kinds, strict=True):
        assert one == interval(column, kind, resamples=199)


def test_the_same_values_give_the_same_interval_and_another_seed_another():
    assert interval(scores(), resamples=99) == interval(scores(), resamples=99)
    assert interval(scores(), resamples=99, seed=1) != interval(scores(), resamples=99, seed=2)


def test_one_seed_in_a_column_is_a_plain_vector():
    assert interval(scores()[:, None], resamples=99) == interval(scores(), resamples=99)


def test_seeds_that_disagree_widen_the_interval():
    pairs = scores(30)
    agreeing = pairs[:, None] + np.zeros(5)
    shifted = pairs[:, None] + np.array([-2, -1, 0, 1, 2])
    plain, same, wide = (interval(values, resamples=999) for values in (pairs, agreeing, shifted))
    assert same.method == wide.method == "two-level"
    # Copies of the pairs under other seeds bring no information.
    assert same.high - same.low == pytest.approx(plain.high - plain.low, rel=0.15)
    assert wide.high - wide.low > 2 * (same.high - same.low)


def test_the_two_level_interval_has_the_variance_of_pairs_plus_that_of_seeds():
    draw = np.random.default_rng(4)
    of_pairs, of_seeds = draw.normal(size=(50, 1)), draw.normal(size=(1, 8))
    found = interval(of_pairs + of_seeds, resamples=4999)
    expected = 1.96 * math.sqrt(of_pairs.var() / 50 + of_seeds.var() / 8)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.08)


def test_a_pair_that_has_one_of_its_seeds_counts():
    values = np.column_stack([scores(6), scores(6, 2)])
    values[0, 0] = values[1] = NAN
    found = interval(values, resamples=199)
    assert (found.n, found.missing) == (5, 1)
    assert found.mean == pytest.approx(np.nanmean(values))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": [1.0], "level": 1.0}, "`level` must lie between 0 and 1, got 1.0"),
        ({"values": [1.0], "resamples": 0}, "`resamples` must be at least 1, got 0"),
        ({"values": [1.0], "kind": "median"}, "unknown `kind` 'median'"),
        ({"values": [0.5, 1.5], "kind": "share"}, r"a share lies in \[0, 1\], got 0.5 to 1.5"),
        ({"values": np.zeros((2, 2, 2))}, r"scores must be \(N,\) or \(N, S\), got \(2, 2, 2\)"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        interval(**arguments)


def test_the_sign_flip_test_by_hand():
    differences = np.array([1.0, 2.0, 4.0, -0.5])
    flips = [np.dot(signs, differences) for signs in itertools.product([1, -1], repeat=4)]
    larger = sum(flip >= differences.sum() for flip in flips)
    assert larger == 2  # as observed, and with the small one turned
    assert paired(differences, np.zeros(4), resamples=99).p == 2 * 2 / 16


@pytest.mark.parametrize("resamples", [99, 2000])
def test_the_sign_flip_test_is_scipys(resamples):
    draw = np.random.default_rng(5)
    differences = draw.normal(0.4, 1, 10)  # 1024 flips: random ones, or all
    expected = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=resamples,
        random_state=np.random.default_rng(0),
    )
    assert paired(differences, np.zeros(10), resamples=resamples).p == pytest.approx(expected.pvalue, abs=1e-12)


def test_the_sign_flip_test_holds_its_level_and_finds_what_is_there():
    draw = np.random.default_rng(6)
    null = comparisons(list(draw.normal(size=(400, 20))), resamples=499)
    effect = comparisons(list(draw.normal(1, 1, size=(50, 20))), resamples=499)
    assert 0.02 < np.mean([one.p < 0.05 for one in null]) < 0.08
    assert np.mean([one.p < 0.05 for one in effect]) > 0.9


def test_only_pairs_that_both_have_are_compared():
    found = paired([1.0, NAN, 3.0, 4.0], [0.0, 1.0, np.inf, 2.0], resamples=99)
    assert (found.difference.n, found.difference.missing, found.difference.mean) == (2, 2, 1.5)
    assert math.isnan(paired([1.0, NAN], [NAN, 1.0], resamples=99).p)
    with pytest.raises(UserError, match=r"same pairs and seeds, got \(2, 1\) and \(3, 1\)"):
        difference([1, 2], [1, 2, 3])


def test_explainers_that_agree_everywhere_do_not_differ():
    found = paired(scores(), scores(), resamples=99)
    assert (found.difference.mean, found.difference.low, found.difference.high, found.p) == (0, 0, 0, 1)


def test_both_directions_of_a_comparison_have_one_p_value():
    one, other = (paired(*pair, resamples=499) for pair in ((scores(), scores(seed=2)), (scores(seed=2), scores())))
    assert one.p == other.p
    assert one.difference.mean == -other.difference.mean


def test_the_p_value_of_several_seeds_flips_their_mean():
    first = np.column_stack([scores(8), scores(8, 2)])
    found = paired(first, np.zeros((8, 2)), resamples=999)
    assert found.p == paired(first.mean(axis=1), np.zeros(8), resamples=999).p
    assert found.difference.method == "two-level"


def test_holm_by_hand():
    # 0.01 x 4; 0.02 x 3; 0.03 x 2 = 0.06, no smaller than the one before; 0.5 x 1.
    assert holm([0.03, 0.01, 0.5, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.01, 0.015]).tolist() == pytest.approx([0.02, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1, 1]
    assert holm([]).tolist() == []


def test_what_was_not_tested_does_not_weigh_on_the_rest():
    assert holm([0.01, NAN, 0.02]).tolist() == pytest.approx([0.02, NAN, 0.02], nan_ok=True)


def test_a_gain_is_positive_where_the_explainer_is_better():
    values, control = np.array([0.3, 0.5, 0.4]), np.array([0.1, 0.2, 0.3])
    assert gain(values, control, higher_is_better=True, resamples=99).mean == pytest.approx(0.2)
    worse = gain(values, control, higher_is_better=False, resamples=99)
    assert worse.mean == pytest.approx(-0.2)
    assert worse.low <= worse.mean <= worse.high < 0


def test_kendalls_tau_by_hand():
    # Of the six pairs of explainers, the rankings disagree about (0, 1) and (2, 3): (4 - 2) / 6.
    (found,) = rank_agreement({"si": [0.1, 0.2, 0.3, 0.4], "ci": [2, 1, 4, 3]}, {"si": True, "ci": True})
    assert found.tau == pytest.approx(1 / 3)
    assert (found.first, found.second, found.n) == ("si", "ci", 4)


def test_metrics_that_call_opposite_explainers_good_disagree_whatever_their_direction():
    means = {"si": [0.1, 0.2, 0.3], "sd": [0.1, 0.2, 0.3], "cd": [0.3, 0.2, NAN], "sad": [1, 1, 1]}
    found = {
        (one.first, one.second): one
        for one in rank_agreement(means, {"si": True, "sd": False, "cd": False, "sad": False})
    }
    assert found["si", "sd"].tau == pytest.approx(-1)
    assert (found["si", "cd"].tau, found["si", "cd"].n) == (pytest.approx(1), 2)
    assert math.isnan(found["si", "sad"].tau)
