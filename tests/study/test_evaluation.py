"""Cells as they run: the same records however the work is cut, and nothing that looks finished when it is not."""

import importlib
import json
import math
import os
import socket
from contextlib import contextmanager

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml

from toy_cells import COLUMNS, assert_same_results, by_command_line, cells, composed, finished, only_cell, rows
from twinsight.data import PairDataset, ShardSampler
from twinsight.engine import PairBank
from twinsight.errors import UserError
from twinsight.metrics import ALL_METRICS, METRICS
from twinsight.metrics.functional import average_drop, insertion_deletion
from twinsight.models import TwoViewModel
from twinsight.study import Evaluation, explain, plan
from twinsight.study.publish import summarize
from twinsight.study.records import unpacked_array
from twinsight.study.status import write_status

GRADCAM = ("explainer=gradcam",)
# Noise is drawn per pair; 25 windows fill one chunk and leave a second to be filled up.
OCCLUSION = (
    "explainer=conditional_occlusion",
    "explainer.window=12",
    "explainer.stride=5",
    "explainer.baseline=noise",
)


def in_a_set(*overrides):
    """Overrides of an explainer alone as they are written for the member of a set."""
    return [text.replace("explainer.", "explainers.options.conditional_occlusion.") for text in overrides[1:]]


SET = ("explainers=[gradcam,conditional_occlusion]", *in_a_set(*OCCLUSION))


@pytest.fixture(scope="module")
def reference(photos, tmp_path_factory):
    """Both cells of five pairs, each computed alone in batches of two, by the name of the explainer."""
    root = tmp_path_factory.mktemp("reference")
    for explainer in (GRADCAM, OCCLUSION):
        config = composed(f"data.root={photos}", f"paths.output_root={root}", "loader.batch_size=2", *explainer)
        assert explain(config) == 0
    return cells(root)


@pytest.fixture
def forwards(monkeypatch):
    """Sizes of the batches that go through a model's trunk, but for the check of the model when it is built."""
    sizes = []
    genuine = TwoViewModel.features

    def recording(self, x, view=1):
        sizes.append(len(x))
        return genuine(self, x, view)

    monkeypatch.setattr(TwoViewModel, "check", lambda self: None)
    monkeypatch.setattr(TwoViewModel, "features", recording)
    return sizes


@pytest.fixture
def computed(monkeypatch):
    """Indices of the pairs that are computed, by the name of the explainer."""
    indices = {"gradcam": [], "conditional_occlusion": []}
    genuine = Evaluation._run

    def run(self, cell, writer, batch):
        indices[cell.explainer.name].extend(batch.index)
        genuine(self, cell, writer, batch)

    monkeypatch.setattr(Evaluation, "_run", run)
    return indices


@contextmanager
def stopped_before(batch_index, error):
    """Runs inside the block raise when they come to a batch."""
    genuine = Evaluation.predict_step

    def step(self, batch, batch_idx):
        if batch_idx == batch_index:
            raise error
        return genuine(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluation, "predict_step", step)
        yield


def test_there_is_one_record_per_pair_in_order(reference):
    for folder in reference.values():
        records = rows(folder)
        assert [row["index"] for row in records] == [0, 1, 2, 3, 4]
        assert [row["pair_id"] for row in records] == ["ant.png", "bee.png", "cat.png", "dog.png", "eel.png"]
        assert [row["partner_id"] for row in records] == ["bee.png", "cat.png", "dog.png", "eel.png", "ant.png"]
        assert len({row["score"] for row in records}) == 5
        assert all(row["chunk_size"] == 16 and row["skipped"] is None for row in records)
        assert [row["index"] for row in rows(folder, "arrays")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("ties", [False, True])
def test_a_record_is_what_the_public_functions_say_of_its_pair(tiny, ties):
    config = tiny(explainer={"_target_": "toy_cells.Constant"}) if ties else tiny(*OCCLUSION)
    assert explain(config) == 0
    pl.seed_everything(config.seed, verbose=False)
    planned = plan(config)
    ((cell,), model) = planned.cells, planned.model
    pairs = PairDataset(planned.photos, planned.views, model.normalization, config.seed)
    for pair, record, arrays in zip(pairs, rows(cell.folder), rows(cell.folder, "arrays"), strict=True):
        explanation = cell.explainer(pair.view1, pair.view2, seeds=pair.seeds)
        maps = explanation.resized((32, 32))
        curves = insertion_deletion(model, pair.view1, pair.view2, *maps, points=8, seeds=pair.seeds)
        drops = average_drop(model, pair.view1, pair.view2, *maps, seeds=pair.seeds)
        assert record["score"] == explanation.score.item()
        assert record["seed"] == pair.seeds.item()
        for name in COLUMNS:
            assert record[name] == getattr(curves if hasattr(curves, name) else drops, name).item()
        for view, heatmap in ((1, explanation.map1[0]), (2, explanation.map2[0])):
            kept = unpacked_array(arrays, f"map{view}")
            np.testing.assert_allclose(kept, heatmap, rtol=2**-11, atol=2**-24 * heatmap.abs().max().item())
        np.testing.assert_allclose(unpacked_array(arrays, "curve_si"), curves.curves["si"][0], rtol=2**-10)


@pytest.mark.parametrize(
    "cut",
    [
        ("loader.batch_size=1",),
        ("loader.batch_size=5",),
        ("loader.batch_size=2", "loader.num_workers=2"),
    ],
)
def test_records_do_not_depend_on_batches_and_workers(tiny, reference, cut):
    for name, explainer in {"gradcam": GRADCAM, "conditional_occlusion": OCCLUSION}.items():
        config = tiny(*explainer, *cut)
        assert explain(config) == 0
        assert_same_results(only_cell(config), reference[name])


def test_records_do_not_depend_on_the_order_of_the_data(tiny, reference, monkeypatch):
    order = ShardSampler.__iter__
    monkeypatch.setattr(ShardSampler, "__iter__", lambda self: iter([*order(self)][::-1]))
    config = tiny(*OCCLUSION, "loader.batch_size=2")
    assert explain(config) == 0
    assert_same_results(only_cell(config), reference["conditional_occlusion"])


def test_records_of_an_explainer_do_not_depend_on_the_others_of_its_set(tiny, reference):
    config = tiny(*SET)
    assert explain(config) == 0
    found = cells(config.paths.output_root)
    assert set(found) == set(reference)
    for name, folder in found.items():
        assert folder.name == reference[name].name
        assert_same_results(folder, reference[name])


def test_a_set_encodes_each_view_once_for_all_its_members(tiny, forwards):
    assert explain(tiny("explainers=[gradcam,interaction_cam]", "data.limit=3", metrics={})) == 0
    assert [count for count in forwards if count != 2] == [1] * 6  # two go through when the network is folded


@pytest.mark.parametrize("done", [0, 1, 3])
@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_a_run_that_broke_continues_at_the_first_missing_pair(tiny, reference, computed, done, state):
    config = tiny(*SET, "loader.batch_size=1")
    error = RuntimeError("the device is gone") if state == "failed" else KeyboardInterrupt()
    # Lightning answers Ctrl-C with an orderly exit of its own.
    with stopped_before(done, error), pytest.raises(RuntimeError if state == "failed" else SystemExit):
        explain(config)
    for folder in cells(config.paths.output_root).values():
        status = json.loads((folder / "status.json").read_text())
        assert status["state"] == state
        assert (status["done"], status["pairs"]) == (done, 5)
        assert not (folder / "records.parquet").exists()
        assert not (folder / "metrics.json").exists()
    assert explain(config) == 0
    assert computed == {"gradcam": [0, 1, 2, 3, 4], "conditional_occlusion": [0, 1, 2, 3, 4]}
    for name, folder in cells(config.paths.output_root).items():
        assert_same_results(folder, reference[name])
        assert not (folder / "fragments").exists()


def test_the_members_of_a_set_continue_each_where_it_stopped(tiny, reference, computed):
    alone, together = tiny(*GRADCAM, "loader.batch_size=1"), tiny(*SET, "loader.batch_size=5")
    together.paths.output_root = alone.paths.output_root
    with stopped_before(2, RuntimeError("the device is gone")), pytest.raises(RuntimeError):
        explain(alone)
    assert computed == {"gradcam": [0, 1], "conditional_occlusion": []}
    assert explain(together) == 0
    assert computed == {"gradcam": [0, 1, 2, 3, 4], "conditional_occlusion": [0, 1, 2, 3, 4]}
    for name, folder in cells(together.paths.output_root).items():
        assert_same_results(folder, reference[name])


def test_a_finished_member_of_a_set_is_not_computed_again(tiny, reference, computed, capsys):
    alone, together = tiny(*GRADCAM), tiny(*SET)
    together.paths.output_root = alone.paths.output_root
    assert explain(alone) == 0
    computed["gradcam"].clear()
    capsys.readouterr()
    assert explain(together) == 0
    output = capsys.readouterr().out
    assert "gradcam: computed before" in output
    assert "conditional_occlusion: computed before" not in output
    assert computed == {"gradcam": [], "conditional_occlusion": [0, 1, 2, 3, 4]}
    for name, folder in cells(together.paths.output_root).items():
        assert_same_results(folder, reference[name])


def test_two_ranks_give_the_records_of_one_process_even_where_one_has_no_pair(photos, reference, tmp_path, tiny):
    ddp = ("trainer.devices=2", "trainer.strategy=ddp")
    uneven, lonely = tmp_path / "uneven", tmp_path / "lonely"
    for root in (uneven, lonely):
        root.mkdir()
    processes = [
        by_command_line(uneven, photos, *SET, *ddp, "loader.batch_size=2"),
        by_command_line(lonely, photos, *GRADCAM, *ddp, "data.limit=1"),
    ]
    outputs = [finished(process) for process in processes]
    for name, folder in cells(uneven).items():
        assert_same_results(folder, reference[name])
        assert {row["index"]: row["rank"] for row in rows(folder, "timings")} == {0: 0, 1: 1, 2: 0, 3: 1, 4: 0}
        assert not (folder / "fragments").exists()
    alone = tiny(*GRADCAM, "data.limit=1")
    assert explain(alone) == 0
    assert_same_results(cells(lonely)["gradcam"], only_cell(alone))
    for output in outputs:
        assert output.count("Two-image metrics") == 1  # one rank speaks


EVERY_METRIC = (
    "explainer=smoothgrad",  # noise is drawn per pair
    "explainer.samples=2",
    "metrics=[paper,localization,sanity]",
    "metrics.max_sensitivity.draws=2",
    "metrics.cascading_randomization.stages=2",
)


@pytest.mark.parametrize("pairs", [3, pytest.param(1, marks=pytest.mark.slow)])  # of one pair, one rank has none
def test_two_ranks_record_every_metric_as_one_process_does(photos, tmp_path, tiny, pairs):
    limit = f"data.limit={pairs}"
    process = by_command_line(tmp_path, photos, *EVERY_METRIC, limit, "trainer.devices=2", "trainer.strategy=ddp")
    alone = tiny(*EVERY_METRIC, limit)
    assert explain(alone) == 0
    finished(process)
    folder = only_cell(alone)
    assert_same_results(cells(tmp_path)["smoothgrad"], folder)
    assert set(ALL_METRICS) <= set(rows(folder)[0])


def test_scores_agree_across_chunk_sizes(tiny):
    found = {}
    for size in (4, 32, 64):
        config = tiny(*OCCLUSION, f"engine.chunk_size={size}", "data.limit=2")
        assert explain(config) == 0
        found[size] = rows(only_cell(config))
        assert {row["chunk_size"] for row in found[size]} == {size}
    for size in (4, 64):
        for row, expected in zip(found[size], found[32], strict=True):
            assert row["score"] == pytest.approx(expected["score"], abs=1e-5)
            assert row["seed"] == expected["seed"]


def test_the_status_says_running_with_signs_of_life_while_it_runs_and_done_afterwards(tiny, monkeypatch):
    config = tiny(*GRADCAM, "loader.batch_size=2")
    seen = []
    genuine = Evaluation.predict_step

    def step(self, batch, batch_idx):
        folder = only_cell(config)
        seen.append(json.loads((folder / "status.json").read_text()))
        assert not (folder / "records.parquet").exists()
        return genuine(self, batch, batch_idx)

    monkeypatch.setattr(Evaluation, "predict_step", step)
    assert explain(config) == 0
    name = only_cell(config).name
    alive = {"host": socket.gethostname(), "pid": os.getpid(), "beat": 0}
    expected = {"state": "running", "cell": name, "pairs": 5, "done": 0, "before": 0, **alive}
    assert [{key: status[key] for key in expected} for status in seen] == [expected] * 3
    status = json.loads((only_cell(config) / "status.json").read_text())
    assert status["versions"].pop("torch") == torch.__version__
    assert (status["state"], status["cell"], status["done"]) == ("done", name, 5)


def test_an_explainer_that_fails_leaves_its_error_and_nothing_that_looks_finished(tiny):
    config = tiny(explainer={"_target_": "toy_cells.Failing"})
    with pytest.raises(RuntimeError, match="the method is broken"):
        explain(config)
    folder = only_cell(config)
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["error"], status["done"]) == ("failed", "RuntimeError: the method is broken", 0)
    assert "in explain" in status["traceback"]
    assert {path.name for path in folder.iterdir()} == {"status.json", "config.yaml", "locks"}


def test_the_first_error_of_several_processes_stays_in_the_status(tiny, monkeypatch):
    """A second rank sees only that the first is gone; its message must not replace the reason."""
    config = tiny(*GRADCAM)
    genuine = Evaluation.flush

    def another_rank_was_faster(self):
        write_status(self.cells[0].folder, "failed", error="the reason, said by another rank")
        genuine(self)

    monkeypatch.setattr(Evaluation, "flush", another_rank_was_faster)
    with stopped_before(0, RuntimeError("the connection is closed")), pytest.raises(RuntimeError, match="connection"):
        explain(config)
    assert json.loads((only_cell(config) / "status.json").read_text())["error"] == "the reason, said by another rank"


def test_a_finished_cell_is_shown_and_not_computed_again(tiny, forwards, capsys):
    config = tiny(*GRADCAM, "data.limit=2")
    assert explain(config) == 0
    assert "computed before" not in capsys.readouterr().out
    folder, counted = only_cell(config), len(forwards)
    assert counted > 0
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.parquet")}
    assert explain(config) == 0
    assert len(forwards) == counted
    assert "gradcam: computed before, nothing was run" in capsys.readouterr().out
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.parquet")} == before


@pytest.fixture
def broken_photos(photos, tmp_path):
    """The five photos, the first and the fourth cut short."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in sorted(photos.iterdir()):
        content = path.read_bytes()
        (folder / path.name).write_bytes(content[: len(content) // 2] if path.stem in ("ant", "dog") else content)
    return folder


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_photo_that_cannot_be_read_is_named_skipped_and_counted(tiny, broken_photos, capsys, batch_size):
    config = tiny(*GRADCAM, f"data.root={broken_photos}", f"loader.batch_size={batch_size}")
    assert explain(config) == 0
    folder = only_cell(config)
    records = rows(folder)
    assert [row["pair_id"] for row in records if row["skipped"]] == ["ant.png", "dog.png"]
    assert all(row["score"] is None for row in records if row["skipped"])
    explained = [row for row in records if not row["skipped"]]
    assert [row["partner_id"] for row in explained] == ["cat.png", "eel.png", "bee.png"]
    assert all(isinstance(row[name], float) for row in explained for name in ("score", *COLUMNS))
    summary = json.loads((folder / "metrics.json").read_text())
    assert summary["pairs"] == 3
    assert set(summary["skipped"]) == {"ant.png", "dog.png"}
    assert all(summary["skipped"].values())
    assert summary["metrics"]["si"]["pairs"] == 3
    output = capsys.readouterr().out
    assert "skipped ant.png: " in output
    assert "skipped dog.png: " in output


def test_records_beside_skipped_pairs_do_not_depend_on_batches(tiny, broken_photos):
    folders = []
    for batch_size in (1, 2, 5):
        config = tiny(*OCCLUSION, f"data.root={broken_photos}", f"loader.batch_size={batch_size}")
        assert explain(config) == 0
        folders.append(only_cell(config))
    assert_same_results(folders[1], folders[0])
    assert_same_results(folders[2], folders[0])


def test_a_cell_without_any_readable_photo_fails_softly(tiny, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("ant", "bee"):
        (folder / f"{name}.png").write_bytes(b"no picture")
    config = tiny(*GRADCAM, f"data.root={folder}", "pictures.limit=2")
    assert explain(config) == 1
    summary = json.loads((only_cell(config) / "metrics.json").read_text())
    assert (summary["pairs"], summary["metrics"]) == (0, {})
    assert set(summary["skipped"]) == {"ant.png", "bee.png"}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_cannot_be_read_stops_the_run_where_that_is_asked_for(tiny, broken_photos, workers):
    config = tiny(
        *GRADCAM,
        f"data.root={broken_photos}",
        "data.on_error=raise",
        "loader.batch_size=2",
        f"loader.num_workers={workers}",
    )
    with pytest.raises(UserError, match=r"cannot read ant\.png.*data\.on_error=skip"):
        explain(config)
    folder = only_cell(config)
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    assert {path.name for path in folder.iterdir()} == {"status.json", "config.yaml", "locks"}


STAINED, BLIND = (
    {"model": {"_target_": f"toy_cells.{model}"}, "views": {"_target_": "twinsight.data.SimCLRViews", "size": 32}}
    for model in ("stained_model", "blind_model")
)


@pytest.mark.parametrize("explainer", ["gradcam", "conditional_occlusion"])
def test_an_embedding_that_is_not_a_number_names_its_pair(tiny, explainer):
    config = tiny(f"explainer={explainer}", "loader.batch_size=5", **STAINED)
    with pytest.raises(UserError, match=r"pair ant\.png: the embedding of view 1 holds NaN.*model\.checkpoint"):
        explain(config)
    folder = only_cell(config)
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    assert not (folder / "records.parquet").exists()


@pytest.mark.parametrize("protocol", ["sound", "paper"])
def test_similarities_of_zero_are_flagged_and_no_mean_is_infinite(tiny, protocol):
    config = tiny(*GRADCAM, f"protocol={protocol}", **BLIND)
    assert explain(config) == 0
    summary = json.loads((only_cell(config) / "metrics.json").read_text())
    assert summary["flags"]["nonpositive"] == 5
    assert summary["metrics"]["score"]["mean"] == 0
    numbers = 0 if protocol == "sound" else None
    expected = dict.fromkeys(("mean", "std", "low", "high"), numbers) | {"pairs": 5 if protocol == "sound" else 0}
    assert summary["metrics"]["sad"] == expected


def test_a_relative_drop_that_is_infinite_does_not_hide_the_others():
    values = [0.5, math.inf, math.nan, 0.25]
    records = [{"pair_id": str(index), "skipped": None, "sad": value} for index, value in enumerate(values)]
    facts = summarize(records)["metrics"]["sad"]
    assert facts == {"mean": 0.375, "std": pytest.approx(0.125 * math.sqrt(2)), "pairs": 2}


@pytest.mark.parametrize("error", [None, RuntimeError("the device is gone")], ids=["success", "error"])
def test_the_model_is_left_as_it_was(tiny, monkeypatch, error):
    models = []
    task = importlib.import_module("twinsight.study.explain")  # the module: the package calls its function the same
    genuine = task.plan

    def planning(config):
        planned = genuine(config)
        planned.model.train()
        planned.model.head.eval()
        next(planned.model.parameters()).requires_grad_(False)
        models.append((planned.model, state(planned.model)))
        return planned

    monkeypatch.setattr(task, "plan", planning)
    config = tiny(*GRADCAM, "explainer.layer=trunk.stages.1", "loader.batch_size=2")
    if error:
        with stopped_before(1, error), pytest.raises(RuntimeError):
            explain(config)
    else:
        assert explain(config) == 0
    ((model, before),) = models
    assert state(model) == before


def state(model):
    """Modes, gradients and hooks of all parts of a model."""
    return (
        [(name, module.training, len(module._forward_hooks)) for name, module in model.named_modules()],
        [(name, parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()],
    )


def test_means_are_those_of_the_records(reference):
    for folder in reference.values():
        summary = json.loads((folder / "metrics.json").read_text())
        records = rows(folder)
        assert summary["pairs"] == 5
        assert summary["skipped"] == {}
        assert set(summary["metrics"]) >= {"score", *COLUMNS}
        for name, facts in summary["metrics"].items():
            values = np.array([row[name] for row in records])
            low, high = facts.pop("low"), facts.pop("high")
            assert low <= facts["mean"] <= high
            assert facts == {
                "mean": pytest.approx(values.mean(), abs=1e-12),
                "std": pytest.approx(values.std(ddof=1), abs=1e-12),
                "pairs": 5,
            }
        for name in ("degenerate1", "degenerate2", "nonpositive"):
            assert summary["flags"][name] == sum(row[name] for row in records)
        assert not {"seed", "index", "chunk_size"} & set(summary["metrics"])


def test_the_configuration_is_kept_with_every_option_resolved(reference):
    kept = yaml.safe_load((reference["conditional_occlusion"] / "config.yaml").read_text())
    assert kept["identity"]["explainer"] == {
        "name": "conditional_occlusion",
        "target": "twinsight.explainers.occlusion.ConditionalOcclusion",
        "protocol": "sound",
        "options": {
            "window": [12, 12],
            "stride": [5, 5],
            "baseline": "noise",
            "geometry": "window_average",
            "flush": True,
            "coarse": None,
        },
    }
    assert kept["identity"]["metrics"]["insertion_deletion"]["options"]["points"] == 8
    assert kept["config"]["explainer"]["window"] == 12
    assert kept["config"]["seed"] == 0


def test_what_a_pair_cost_is_kept_apart_from_its_records(reference):
    for folder in reference.values():
        timings = rows(folder, "timings")
        assert [row["index"] for row in timings] == [0, 1, 2, 3, 4]
        for row in timings:
            assert row["explain_seconds"] > 0
            assert row["metrics_seconds"] > 0
            assert row["device"] == "cpu"
            assert row["host"]
        assert not {"host", "rank", "device", "forwards", "backwards"} & set(rows(folder)[0])
        assert not any("seconds" in name for table in ("records", "arrays") for name in rows(folder, table)[0])


@pytest.mark.parametrize(
    ("protocol", "ends"),
    [
        ("sound", 2),  # insertion starts in the blur that deletion ends in
        ("paper", 3),  # each view's blur, and one black image for both
    ],
)
def test_the_forwards_of_a_pair_are_those_of_the_formula(tiny, forwards, protocol, ends):
    config = tiny("explainer=gradcam", f"protocol={protocol}", "loader.batch_size=1", "data.limit=3")
    assert explain(config) == 0
    folder = only_cell(config)
    assert not any(row["degenerate1"] or row["degenerate2"] for row in rows(folder))
    intervals, views, masked = 8, 2, 2
    paths = 4 * (intervals - 1)
    assert [row["forwards"] for row in rows(folder, "timings")] == [paths + views + ends + masked] * 3
    # Each path of 7 goes in half a chunk, everything else alone, but for checks of the folded copy in twos.
    assert sorted(size for size in forwards if size != 2) == [1] * 3 * (views + ends + masked) + [8] * 3 * 4


def test_the_forwards_of_an_occlusion_are_its_windows(tiny):
    config = tiny(*OCCLUSION, "data.limit=2", metrics={})
    assert explain(config) == 0
    assert [row["forwards"] for row in rows(only_cell(config), "timings")] == [2 * 25 + 2] * 2
    assert [row["backwards"] for row in rows(only_cell(config), "timings")] == [0] * 2


@pytest.mark.parametrize(
    ("words", "precision"),
    [((), "fp32"), (("engine.precision=bf16",), "bf16"), (("trainer.precision=bf16-mixed",), "bf16-mixed")],
)
def test_records_say_in_what_precision_they_were_made(tiny, words, precision):
    config = tiny(*GRADCAM, "data.limit=1", *words)
    assert explain(config) == 0
    assert [row["precision"] for row in rows(only_cell(config))] == [precision]


def test_a_cell_without_metrics_has_scores_and_maps(explained):
    folder = explained(*GRADCAM, "data.limit=2", metrics={})
    assert set(rows(folder)[0]) >= {"score", "seed", "view1_box"}
    assert not set(METRICS) & set(rows(folder)[0])
    assert rows(folder, "arrays")[0]["map1_shape"] == [4, 4]


def test_one_map_gives_the_metrics_of_one_direction(tiny, capsys):
    config = tiny(explainer={"_target_": "toy_cells.OneMap"})
    assert explain(config) == 0
    folder = only_cell(config)
    assert all(
        row["map2"] is None and np.isnan(unpacked_array(row, "curve_si")).all() for row in rows(folder, "arrays")
    )
    summary = json.loads((folder / "metrics.json").read_text())
    assert {name: facts["pairs"] for name, facts in summary["metrics"].items() if name in METRICS} == {
        **dict.fromkeys(("ci", "cd", "cad", "cic"), 5),
        **dict.fromkeys(("si", "sd", "sad", "sic"), 0),
    }
    assert summary["metrics"]["si"]["mean"] is None
    assert summary["flags"]["degenerate2"] == 0
    assert " - " in capsys.readouterr().out


@pytest.mark.parametrize("explainer", ["Constant", "NotFinite"])
def test_maps_that_rank_nothing_are_flagged(tiny, capsys, explainer):
    config = tiny(explainer={"_target_": f"toy_cells.{explainer}"})
    assert explain(config) == 0
    flags = json.loads((only_cell(config) / "metrics.json").read_text())["flags"]
    assert (flags["degenerate1"], flags["degenerate2"]) == (5, 5)
    assert "5 pairs have a constant or non-finite map of view 1: their ranking is chance" in capsys.readouterr().out


def test_memory_that_forces_a_smaller_chunk_is_said_in_the_records(tiny, monkeypatch):
    genuine = PairBank._encode

    def small_device(self, perturbation, view):
        versions = perturbation.versions

        def limited(indices):
            if len(indices) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return versions(indices)

        perturbation.versions = limited
        return genuine(self, perturbation, view)

    expected = tiny(*GRADCAM, "data.limit=2")
    assert explain(expected) == 0
    monkeypatch.setattr(PairBank, "_encode", small_device)
    config = tiny(*GRADCAM, "data.limit=2")
    assert explain(config) == 0
    for row, whole in zip(rows(only_cell(config)), rows(only_cell(expected)), strict=True):
        assert (row["chunk_size"], whole["chunk_size"]) == (4, 16)
        assert row["ci"] == pytest.approx(whole["ci"], abs=1e-5)
