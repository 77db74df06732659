"""Averages over pairs as torchmetrics classes: state, and no mathematics."""

import copy
import json
import multiprocessing
import pickle
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import torch

from toy import tiny_maps, tiny_model, tiny_pair
from twinsight.errors import UserError
from twinsight.explainers import ConditionalOcclusion, FeatureVisualization, GradCAM, Inverted, PixelInvariance
from twinsight.metrics import ALL_METRICS, METRICS, MaxSensitivity, PairMetric
from twinsight.metrics.functional import average_drop, insertion_deletion, max_sensitivity

LOWER_IS_BETTER = {"sd", "cd", "sad", "cad", "ms", "randomization", "full_randomization"}


@pytest.fixture(params=ALL_METRICS)
def field(request):
    return request.param


@pytest.fixture
def metric(field):
    return ALL_METRICS[field]()


def result(field, *values):
    return SimpleNamespace(**{field: torch.tensor(values)})


def test_the_table_of_metrics_names_the_fields_of_the_functionals():
    pair, maps = tiny_pair(0, 2), tiny_maps(0, 2)
    curves = insertion_deletion(tiny_model(0), *pair, *maps, points=8)
    drops = average_drop(tiny_model(0), *pair, *maps)
    sensitivity = max_sensitivity(GradCAM(tiny_model(0)), *pair, draws=2)
    results = {insertion_deletion: curves, average_drop: drops, max_sensitivity: SimpleNamespace(ms=sensitivity)}
    assert list(METRICS) == ["si", "sd", "ci", "cd", "sad", "sic", "cad", "cic", "ms"]
    assert [column for functional in results for column in functional.columns] == list(METRICS)
    for functional, source in results.items():
        for name in functional.columns:
            metric = METRICS[name]()
            metric.update(source)
            assert metric.compute().item() == pytest.approx(getattr(source, name).double().mean().item(), abs=1e-12)


def test_max_sensitivity_takes_the_tensor_of_its_functional():
    metric = MaxSensitivity()
    metric.update(torch.tensor([1.0, 2.0, float("nan")]))
    metric.update(result("ms", 6.0))
    assert (metric.compute().item(), metric.missing.item()) == (3.0, 1)
    assert max_sensitivity.field == MaxSensitivity.field


def test_other_metrics_take_no_bare_tensor():
    with pytest.raises(UserError, match="needs a result with the field 'ci'"):
        METRICS["ci"]().update(torch.ones(2))


def test_uneven_shards_and_a_rank_without_pairs_equal_one_process(field):
    values = torch.rand(1000, generator=torch.Generator().manual_seed(1)).mul(100).tolist()
    values[::7] = [float("nan")] * len(values[::7])
    whole, merged = ALL_METRICS[field](), ALL_METRICS[field]()  # `merged` is the rank without pairs
    whole.update(result(field, *values))
    for start, stop in ((0, 1), (1, 700), (700, 700), (700, 1000)):
        shard = ALL_METRICS[field]()
        if start < stop:
            shard.update(result(field, *values[start:stop]))
        merged.merge_state(shard)
    assert merged.compute().item() == pytest.approx(whole.compute().item(), rel=0, abs=1e-12)
    assert (merged.count.item(), merged.missing.item()) == (857, 143)


@pytest.mark.slow
def test_processes_agree_on_the_mean_of_one_even_where_one_has_no_pair(tmp_path):
    """Through PyTorch's own collectives: pairs split 1 to 699 to none to 300."""
    context = multiprocessing.get_context("spawn")
    shards = [(0, 1), (1, 700), (700, 700), (700, 1000)]
    ranks = [
        context.Process(target=_compute_on_a_rank, args=(rank, shards, str(tmp_path))) for rank in range(len(shards))
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=600)
    assert [process.exitcode for process in ranks] == [0] * len(shards)
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(len(shards))]
    for name, metric in ALL_METRICS.items():
        whole = metric()
        whole.update(result(name, *_scores(name)))
        for of_rank in found:
            assert of_rank[name] == pytest.approx(whole.compute().item(), rel=0, abs=1e-12)


def _scores(name):
    values = torch.rand(1000, generator=torch.Generator().manual_seed(len(name))).mul(100)
    values[::7] = float("nan")
    return values.tolist()


def _compute_on_a_rank(rank, shards, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=len(shards))
    metrics = {name: metric() for name, metric in ALL_METRICS.items()}
    start, stop = shards[rank]
    for name, metric in metrics.items():
        if start < stop:
            metric.update(result(name, *_scores(name)[start:stop]))
    means = {name: metric.compute().item() for name, metric in metrics.items()}
    Path(folder, f"rank{rank}.json").write_text(json.dumps(means))
    torch.distributed.destroy_process_group()


PAPER = list(METRICS)
NEED_TWO_MAPS = {"si", "sd", "sad", "sic"}
REASONS = {  # explainer: (columns, part of the reason)
    "gradcam": {},
    "conditional_occlusion": {"ms": "not define it for occlusion"},
    "pixel_invariance": dict.fromkeys(NEED_TWO_MAPS, "both views need a map") | {"ms": "for pixel invariance"},
    "feature_visualization": dict.fromkeys(PAPER, "makes images, not maps"),
    "inverted": {"ms": "not define it for occlusion"},  # a control of an occlusion
}


@pytest.mark.parametrize("explainer", REASONS)
def test_what_makes_no_sense_for_an_explainer_has_a_reason(explainer):
    model = tiny_model(0)
    classes = (GradCAM, ConditionalOcclusion, PixelInvariance, FeatureVisualization)
    subjects = {kind.name: kind for kind in classes} | {"inverted": Inverted(model, of="conditional_occlusion")}
    found = {name: METRICS[name].why_not(subjects[explainer]) for name in PAPER}
    assert {name for name, reason in found.items() if reason} == set(REASONS[explainer])
    for name, part in REASONS[explainer].items():
        assert part in found[name]


def test_the_mean_is_over_all_pairs_of_all_updates(metric, field):
    metric.update(result(field, 1.0, 2.0, 3.0))
    metric.update(result(field, 10.0))
    assert metric.compute().item() == 4.0
    assert metric.compute().dtype == torch.float64


def test_the_mean_does_not_depend_on_how_pairs_are_split(metric, field):
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)).tolist()
    metric.update(result(field, *values))
    single = ALL_METRICS[field]()
    for value in values:
        single.update(result(field, value))
    assert single.compute().item() == pytest.approx(metric.compute().item(), abs=1e-14)


def test_pairs_without_a_finite_value_are_left_out_and_counted(metric, field):
    metric.update(result(field, 0.5, float("nan"), float("inf"), 0.25))
    assert metric.compute().item() == 0.375
    assert (metric.count.item(), metric.missing.item()) == (2, 2)


def test_without_any_value_the_mean_is_nan(metric, field):
    metric.update(result(field, float("nan")))
    assert metric.compute().isnan()


def test_calling_a_metric_gives_the_value_of_the_batch_and_keeps_the_sum(metric, field):
    assert metric(result(field, 1.0)).item() == 1.0
    assert metric(result(field, 3.0)).item() == 3.0
    assert metric.compute().item() == 2.0


def test_a_reset_metric_starts_anew(metric, field):
    metric.update(result(field, 1.0, float("nan")))
    metric.reset()
    metric.update(result(field, 5.0))
    assert (metric.compute().item(), metric.missing.item()) == (5.0, 0)


def test_copies_and_pickles_keep_the_state_and_go_their_own_ways(metric, field):
    metric.update(result(field, 1.0, float("nan")))
    for other in (metric.clone(), copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert type(other) is type(metric)
        other.update(result(field, 3.0))
        assert (other.compute().item(), other.missing.item()) == (2.0, 1)
    assert metric.compute().item() == 1.0


def test_states_of_two_processes_merge_to_that_of_one(field):
    first, second, whole = (ALL_METRICS[field]() for _ in range(3))
    first.update(result(field, 1.0, float("nan")))
    second.update(result(field, 2.0, 6.0))
    for values in ((1.0, float("nan")), (2.0, 6.0)):
        whole.update(result(field, *values))
    first.merge_state(second)
    assert first.compute().item() == whole.compute().item() == 3.0
    assert (first.count.item(), first.missing.item()) == (3, 1)
    assert {state: str(reduction.__name__) for state, reduction in first._reductions.items()} == dict.fromkeys(
        ("total", "count", "missing"), "dim_zero_sum"
    )


def test_memory_does_not_grow_with_the_pairs(metric, field):
    for _ in range(3):
        metric.update(result(field, *[1.0] * 100))
    assert [getattr(metric, state).numel() for state in metric._defaults] == [1, 1, 1]


def test_the_class_knows_which_way_is_better(metric, field):
    assert metric.higher_is_better is (field not in LOWER_IS_BETTER)
    assert metric.is_differentiable is False


@pytest.mark.parametrize("wrong", [None, 0.5, "result", SimpleNamespace(other=torch.ones(1))])
def test_a_result_without_the_field_is_refused(metric, field, wrong):
    with pytest.raises(UserError, match=f"{type(metric).__name__} needs a result with the field '{field}'"):
        metric.update(wrong)


def test_a_field_that_is_no_tensor_is_refused(metric, field):
    with pytest.raises(UserError, match=f"needs a result with the field '{field}'"):
        metric.update(SimpleNamespace(**{field: 0.5}))


def test_values_can_be_plotted(metric, field):
    matplotlib.use("Agg")
    metric.update(result(field, 0.25, 0.75))
    figure, _ = metric.plot()
    figure.canvas.draw()
    _, axes = metric.plot([torch.tensor(0.1), torch.tensor(0.2)])
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([0.1, 0.2])
    matplotlib.pyplot.close("all")


def test_a_metric_of_ones_own_needs_a_field_and_a_direction():
    class Score(PairMetric):
        """Mean similarity."""

        field = "score"
        higher_is_better = True

    metric = Score()
    metric.update(SimpleNamespace(score=torch.tensor([0.5, 1.0])))
    assert metric.compute().item() == 0.75
