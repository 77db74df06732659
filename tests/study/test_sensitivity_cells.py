"""Max-sensitivity in cells: computed where it applies, with what it cost, and left out with a reason where not."""

import importlib
import json
import re

import pytest
import pytorch_lightning as pl

from toy_cells import COLUMNS, assert_same_results, cells, only_cell, rows
from twinsight.data import PairDataset
from twinsight.metrics.functional import max_sensitivity
from twinsight.study import explain, plan

PAPER = ("metrics=paper", "metrics.insertion_deletion.points=8", "metrics.max_sensitivity.draws=3", "data.limit=3")
SENSITIVE = ("explainer=input_x_gradient", *PAPER)
OCCLUSION = ("explainer=conditional_occlusion", "explainer.window=12", "explainer.stride=10", *PAPER)
REASON = "the paper does not define it for occlusion"


def summary(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("protocol", ["sound", "paper"])
def test_a_record_has_what_the_function_says_of_its_pair(tiny, protocol):
    config = tiny(*SENSITIVE, f"protocol={protocol}", "loader.batch_size=2")
    assert explain(config) == 0
    pl.seed_everything(config.seed, verbose=False)
    planned = plan(config)
    ((cell,), model) = planned.cells, planned.model
    pairs = PairDataset(planned.photos, planned.views, model.normalization, config.seed)
    for pair, record in zip(pairs, rows(cell.folder), strict=True):
        expected = max_sensitivity(
            cell.explainer, pair.view1, pair.view2, draws=3, seeds=pair.seeds, protocol=protocol
        ).item()
        assert record["ms"] == expected > 0
        assert all(record[name] is not None for name in COLUMNS)
    found = summary(cell.folder)
    assert found["metrics"]["ms"]["pairs"] == 3
    assert found["not_applicable"] == {}


def test_it_costs_as_many_explanations_as_it_draws_noise(tiny):
    found = []
    for left_out in ("~metrics.max_sensitivity", "metrics.max_sensitivity.radius=0.2"):
        config = tiny(*SENSITIVE, left_out, "~metrics.insertion_deletion", "~metrics.average_drop")
        assert explain(config) == 0
        found.append([row["forwards"] for row in rows(only_cell(config), "timings")])
    assert found[1] == [without + 3 * 2 for without in found[0]]


def test_records_do_not_depend_on_batches(tiny):
    folders = []
    for size in (1, 3):
        config = tiny(*SENSITIVE, f"loader.batch_size={size}")
        assert explain(config) == 0
        folders.append(only_cell(config))
    assert_same_results(*folders)


def test_where_it_does_not_apply_it_is_not_run_and_the_reason_is_kept(tiny, monkeypatch, capsys):
    module = importlib.import_module(max_sensitivity.__module__)  # the package calls its function the same
    monkeypatch.setattr(module, "_noise", lambda *arguments: 1 / 0)
    config = tiny(*OCCLUSION)
    assert explain(config) == 0
    folder = only_cell(config)
    assert all("ms" not in row for row in rows(folder))
    assert summary(folder)["not_applicable"] == {"ms": REASON}
    assert re.search(f"conditional_occlusion: MS left out: {REASON}", capsys.readouterr().out)


def test_controls_of_an_occlusion_leave_it_out_too(tiny):
    config = tiny("explainer=inverted", "explainer.of=conditional_occlusion", *PAPER)
    assert plan(config).cells[0].not_applicable == {"ms": REASON}


def test_a_control_against_another_photo_has_one(tiny):
    config = tiny("explainer=partner_swapped", "explainer.of=input_x_gradient", *PAPER)
    assert explain(config) == 0
    assert summary(only_cell(config))["metrics"]["ms"]["pairs"] == 3


def test_a_set_has_it_for_the_members_it_makes_sense_for(tiny):
    config = tiny("explainers=[input_x_gradient,conditional_occlusion]", *PAPER)
    assert explain(config) == 0
    found = {name: summary(folder) for name, folder in cells(config.paths.output_root).items()}
    assert "ms" in found["input_x_gradient"]["metrics"]
    assert "ms" not in found["conditional_occlusion"]["metrics"]
    assert {name: facts["not_applicable"] for name, facts in found.items()} == {
        "input_x_gradient": {},
        "conditional_occlusion": {"ms": REASON},
    }


def test_reasons_are_given_for_chosen_metrics_only(tiny):
    def reasons(*overrides):
        (cell,) = plan(tiny(*overrides)).cells
        return cell.not_applicable

    assert reasons("explainer=conditional_occlusion") == {}
    assert set(reasons("explainer=pixel_invariance")) == {"si", "sd", "sad", "sic"}
    assert set(reasons("explainer=pixel_invariance", "~metrics.insertion_deletion")) == {"sad", "sic"}
    assert set(reasons("explainer=pixel_invariance", "metrics=paper")) == {"si", "sd", "sad", "sic", "ms"}
    assert list(reasons("explainer=feature_visualization", "metrics=paper")) == [*COLUMNS, "ms"]


def test_a_metric_of_which_nothing_applies_is_no_part_of_the_cell(tiny):
    (cell,) = plan(tiny(*OCCLUSION)).cells
    assert set(cell.metrics) == set(cell.identity["metrics"]) == {"insertion_deletion", "average_drop"}
    (cell,) = plan(tiny(*SENSITIVE)).cells
    assert (
        set(cell.metrics)
        == set(cell.identity["metrics"])
        == {*("insertion_deletion", "average_drop", "max_sensitivity")}
    )
    assert cell.identity["metrics"]["max_sensitivity"]["options"] == {"radius": 0.2, "draws": 3, "units": "pixels"}
