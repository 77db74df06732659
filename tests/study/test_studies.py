"""Studies in process: planned once, run job by job, the same records however the work is cut."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import struct
import time
from contextlib import suppress

import hydra
import pyarrow.parquet as pq
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from toy_cells import TINY, cells, composed, rows, write_photo
from toy_studies import TWO, assert_as_plain, planned, run
from twinsight.config import conf_folder, register_schema
from twinsight.data import ImageFolder
from twinsight.errors import UserError
from twinsight.exits import INTERRUPTED, TERMINATED, Terminated, exit_code
from twinsight.models import TwoViewModel
from twinsight.study import Planner, Study
from twinsight.study.aggregate import flat_records, tabulate_study
from twinsight.study.children import run_in_child, warm_up
from twinsight.study.driver import _planned
from twinsight.study.evaluation import Evaluation
from twinsight.study.job import Order, has_work, run_job
from twinsight.study.progress import Progress, cost_lines, status_lines
from twinsight.study.prune import prune
from twinsight.study.shards import Shard
from twinsight.study.status import read_status, write_status


@pytest.fixture
def study(tmp_path, photos):
    return planned(tmp_path, photos, *TWO)


def test_a_plan_names_every_cell_and_freezes_its_configuration(study):
    assert len(study.cells) == 4
    assert [cell.axes for cell in study.cells] == [
        {"explainer": explainer, "seed": seed} for explainer in ("gradcam", "lafam") for seed in (0, 1)
    ]
    assert [cell.job for cell in study.cells] == [0, 1, 2, 3]
    for cell in study.cells:
        frozen = yaml.safe_load(cell.frozen.read_text())
        assert frozen["config"]["seed"] == cell.axes["seed"] == frozen["identity"]["seed"]
        assert cell.status() == {"state": "planned"}
        assert cell.line.forwards == cell.pairs * (2 + 4 * 7 + 2)  # two views, four paths of 8 intervals, two masks
    assert not (study.root / "cells").exists()


def test_the_order_of_words_does_not_count(tmp_path, photos):
    one = planned(tmp_path, photos, "explainer=gradcam,lafam", "seed=0,1", name="one")
    other = planned(tmp_path, photos, "seed=1,0", "explainer=lafam,gradcam", name="other")
    assert {cell.name for cell in one.cells} == {cell.name for cell in other.cells}


def test_planning_more_keeps_what_was_planned_and_finds_cells_again(study, photos):
    before = [cell.name for cell in study.cells]
    more = planned(study.root, photos, "explainer=lafam,random", "seed=0,1")
    assert [cell.name for cell in more.cells][:4] == before
    assert [cell.label for cell in more.cells] == ["gradcam", "gradcam", "lafam", "lafam", "random", "random"]
    assert len({cell.job for cell in more.cells}) == 6


def test_what_more_words_add_is_known_to_the_run_that_planned_it(tmp_path, photos):
    def planned_by(*more):
        words = [*TINY, f"data.root={photos}", f"paths.output_root={tmp_path}", "study=toy", "explainer=gradcam", *more]
        with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            master = loader.load_configuration("config", words, run_mode=RunMode.MULTIRUN)
            return _planned(master, words, loader)

    register_schema()
    assert [len(planned_by(seeds).cells) for seeds in ("seed=0", "seed=0,1")] == [1, 2]


def test_each_model_and_each_data_set_is_built_once_for_a_plan(tmp_path, photos, monkeypatch):
    built, digested = [], []
    check, digest = TwoViewModel.check, ImageFolder.digest
    monkeypatch.setattr(TwoViewModel, "check", lambda self: (built.append(self), check(self)))
    monkeypatch.setattr(ImageFolder, "digest", lambda self: digested.append(self) or digest(self))
    study = planned(tmp_path, photos, "explainer=gradcam,lafam,random", "protocol=sound,paper", "data.limit=2,3")
    assert len(study.cells) == 12
    assert (len(built), len(digested)) == (1, 2)


def test_combinations_that_make_no_sense_are_skipped_with_the_reason(tmp_path, photos):
    study = planned(tmp_path, photos, "explainer=gradcam,partner_swapped", "data.limit=1,2")
    skipped = [cell for cell in study.cells if cell.status()["state"] == "skipped"]
    assert len(study.cells) == 4
    assert len(skipped) == 1
    assert "needs two photos" in skipped[0].status()["reason"]
    assert run(study) == [0, 0, 0]


def test_a_combination_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, photos):
    with pytest.raises(Exception, match="`window=33` is larger than the image"):
        planned(tmp_path, photos, "explainer=conditional_occlusion", "explainer.window=8,33")
    with pytest.raises(UserError, match=r"trainer\.devices=1 with -m"):
        planned(tmp_path, photos, *TWO, "trainer.devices=2")
    with pytest.raises(UserError, match="cannot name a study"):
        planned(tmp_path, photos, *TWO, name="cells")
    assert not list(tmp_path.iterdir())


def test_a_study_that_is_run_again_has_nothing_left_to_do(study, plain, monkeypatch):
    assert run(study) == [0, 0, 0, 0]
    assert_as_plain(study, plain)
    monkeypatch.setattr(Planner, "plan", lambda *given: pytest.fail("something was built"))
    assert run(study) == []


def test_studies_share_cells_of_equal_hash(study, photos):
    run(study)
    other = planned(study.root, photos, "explainer=gradcam,random", name="other")
    assert [cell.status()["state"] for cell in other.cells] == ["done", "planned"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shards_give_the_records_of_the_whole_bit_for_bit(study, plain, count):
    for job in study.jobs:
        for index in range(count):
            assert run_job(Order(str(study.root), study.name, job, Shard(index, count))) == 0
    assert_as_plain(study, plain)
    # Merging once more changes nothing.
    assert run_job(Order(str(study.root), study.name, 0, Shard(0, count))) == 0
    assert_as_plain(study, plain)


def test_a_cell_of_which_a_shard_is_missing_is_not_done(study):
    assert run_job(Order(str(study.root), study.name, 0, Shard(0, 2))) == 0
    status = read_status(study.cells[0].folder)
    assert (status["state"], status["done"], status["pairs"]) == ("interrupted", 3, 5)
    assert not (study.cells[0].folder / "records.parquet").exists()


@pytest.mark.faults
def test_a_failing_cell_stops_neither_its_job_nor_the_others(tmp_path, photos, monkeypatch):
    study = planned(tmp_path, photos, "explainers=[gradcam,lafam]", "seed=0,1")
    genuine = Evaluation._run

    def fail_once(self, cell, writer, batch):
        if cell.label == "gradcam" and cell.identity["seed"] == 0 and batch.index == [2]:
            raise RuntimeError("a fault of ours\nwith a second line")
        genuine(self, cell, writer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "_run", fail_once)
        assert run(study) == [1, 0]
    states = {(cell.label, cell.config["seed"]): cell.status()["state"] for cell in study.cells}
    assert states == {("gradcam", 0): "failed", ("lafam", 0): "done", ("gradcam", 1): "done", ("lafam", 1): "done"}
    failed = study.cells[0].status()
    assert failed["error"].startswith("RuntimeError: a fault of ours")
    assert "fail_once" in failed["traceback"]
    assert failed["done"] == 2  # the pairs before the one at fault
    assert run(study) == []
    assert run(study, retry_failed=True) == [0]
    assert {cell.status()["state"] for cell in study.cells} == {"done"}


@pytest.mark.faults
def test_what_changed_since_it_was_planned_is_not_computed_under_its_name(tmp_path, photos):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    study = planned(tmp_path / "out", folder, "explainer=gradcam")
    write_photo(folder / "cat.png", seed=99)
    assert run(study) == [1]
    assert "planned for something else: the photos changed since" in study.cells[0].status()["error"]


@pytest.mark.faults
def test_a_view_that_cannot_be_made_costs_no_record(study, monkeypatch):
    monkeypatch.setattr("twinsight.study.job.publish", lambda *given: 1 / 0)
    assert run_job(Order(str(study.root), study.name, 0)) == 0
    assert study.cells[0].status()["state"] == "done"
    monkeypatch.undo()
    assert has_work(study.cells[0])  # the view is still owed
    assert run_job(Order(str(study.root), study.name, 0)) == 0
    assert not has_work(study.cells[0])


@pytest.mark.faults
def test_random_cuts_and_interruptions_give_the_plain_records(study, plain, monkeypatch):
    """Batch size, workers, shards, their order and the moment of a break are drawn."""
    draw = random.Random(0)
    genuine = Evaluation.predict_step
    for cell in study.cells:
        shards, batch = draw.choice([1, 2, 3]), draw.choice([1, 2, 5])
        content = yaml.safe_load(cell.frozen.read_text())
        content["config"]["loader"] = {"batch_size": batch, "num_workers": draw.choice([0, 0, 1])}
        cell.frozen.write_text(yaml.safe_dump(content, sort_keys=False))
        parts = [Shard(index, shards) for index in range(shards)]
        draw.shuffle(parts)
        for part in parts:
            broken = draw.choice([None, 0, 1])

            def step(self, batch, index, broken=broken):
                if index == broken:
                    raise RuntimeError("broken at random")
                return genuine(self, batch, index)

            with monkeypatch.context() as patch:
                patch.setattr(Evaluation, "predict_step", step)
                run_job(Order(str(study.root), study.name, cell.job, part))
            run_job(Order(str(study.root), study.name, cell.job, part, retry_failed=True))
    assert_as_plain(study, plain)


def killed_at_random(study, kills, longest):
    """Jobs forked from a preloaded process, each of which gets SIGKILL at a random moment; how many it met at work."""
    draw, met = random.Random(1), 0
    warm_up()
    for number in range(kills):
        order = Order(str(study.root), study.name, number % len(study.jobs))
        job = multiprocessing.get_context("forkserver").Process(target=run_job, args=(order,))
        job.start()
        job.join(draw.uniform(0.0, longest))
        job.kill()
        job.join()
        met += job.exitcode == -signal.SIGKILL
    return met


def _job_in_child(study, job):
    return run_in_child(run_job, Order(str(study.root), study.name, job))


def finish(study):
    deadline = time.monotonic() + 120
    while any(has_work(cell, retry_failed=True) for cell in study.cells) and time.monotonic() < deadline:
        for job in study.jobs:
            assert _job_in_child(study, job) in (0, 1)


@pytest.mark.faults
@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_jobs_killed_at_random_moments_lose_nothing_that_was_finished(study, plain, kills):
    assert killed_at_random(study, kills, longest=1.2) > kills // 4
    finish(study)
    assert_as_plain(study, plain)


@pytest.mark.faults
def test_a_child_that_is_killed_is_told_apart_from_one_that_failed(tmp_path):
    assert run_in_child(_kill_yourself, None) == -signal.SIGKILL
    assert run_in_child(_return, 3) == 3


@pytest.mark.faults
@pytest.mark.parametrize("beside", ["explainer=lafam", "explainers=[lafam,gradcam]"])
def test_ctrl_c_that_compiled_code_turns_into_another_error_is_no_failure(tmp_path, photos, beside):
    """A module that is being imported raises ImportError then: nothing is wrong with the cell, and it goes on later."""
    turning = "toy_cells.TurnsCtrlC"
    target = f"explainers.options.lafam._target_={turning}" if "s=" in beside else f"explainer._target_={turning}"
    study = planned(tmp_path, photos, beside, target)
    assert _job_in_child(study, 0) == INTERRUPTED
    assert {cell.status()["state"] for cell in study.cells} == {"interrupted"}
    assert all(has_work(cell) for cell in study.cells)


def _terminated(*arguments, **options):
    raise Terminated


def _turned(*arguments, **options):
    with suppress(Terminated):
        signal.raise_signal(signal.SIGTERM)
    raise OSError("interrupted system call")


@pytest.mark.faults
@pytest.mark.parametrize("end", [_terminated, _turned])
@pytest.mark.parametrize("place", ["PairDataModule", "make_trainer", "compact"])
def test_a_cell_interrupted_before_or_after_its_pairs_does_not_stay_running(study, plain, monkeypatch, place, end):
    (cell,) = study.jobs[0]
    write_status(cell.folder, "running")  # as somebody left it who was killed
    where = "job" if place == "make_trainer" else "run"
    with monkeypatch.context() as patch:
        patch.setattr(f"twinsight.study.{where}.{place}", end)
        assert exit_code(lambda: run_job(Order(str(study.root), study.name, 0))) == TERMINATED
    state = cell.status()["state"]
    assert state == ("running" if (place, end) == ("make_trainer", _terminated) else "interrupted")  # nobody was at it
    assert has_work(cell)
    assert run(study) == [0] * 4
    assert_as_plain(study, plain)


def _kill_yourself(order):
    os.kill(os.getpid(), signal.SIGKILL)


def _return(code):
    return code


def rows_of(fragment):
    return pq.read_table(fragment).to_pylist()


@pytest.mark.faults
def test_a_fragment_whose_bytes_were_flipped_is_computed_again(study, plain):
    assert run_job(Order(str(study.root), study.name, 0, Shard(0, 2))) == 0
    folder = study.cells[0].folder
    (fragment,) = (folder / "fragments" / "records").iterdir()
    content = bytearray(fragment.read_bytes())
    place = content.index(struct.pack("<d", rows_of(fragment)[1]["si"]))  # a score, which stays a readable number
    content[place] ^= 0x01
    fragment.write_bytes(content)
    (other,) = (folder / "fragments" / "arrays").iterdir()
    other.write_bytes(other.read_bytes()[:-40])
    assert run(study) == [0, 0, 0, 0]
    assert_as_plain(study, plain)


@pytest.mark.faults
def test_a_full_disk_fails_the_cell_and_room_lets_it_go_on(study, plain, tmp_path, monkeypatch):
    def full(*given, **options):
        raise OSError(28, "No space left on device", "records")

    with monkeypatch.context() as patch:
        patch.setattr("twinsight.study.records.pq.write_table", full)
        assert run_job(Order(str(study.root), study.name, 0)) == 1
    status = study.cells[0].status()
    assert status["state"] == "failed"
    assert "No space left" in status["error"]
    assert run(study, retry_failed=True) == [0, 0, 0, 0]
    assert_as_plain(study, plain)


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_really_full_loses_nothing(photos, plain, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=200k tmpfs {disk} 2>/dev/null") != 0:
        pytest.skip("this machine lets nobody mount")
    try:
        study = planned(disk, photos, *TWO)
        rest = os.open(disk / "rest", os.O_CREAT | os.O_WRONLY)
        with suppress(OSError):
            while True:
                os.write(rest, bytes(512))
        os.close(rest)
        assert run(study) == [1, 1, 1, 1]
        (disk / "rest").unlink()
        os.system(f"mount -o remount,size=20m {disk}")
        assert run(study, retry_failed=True) == [0, 0, 0, 0]
        assert_as_plain(study, plain)
    finally:
        os.system(f"umount {disk}")


def test_a_table_has_the_axes_that_vary_and_means_over_pairs_and_seeds(study):
    run(study)
    table = tabulate_study(study)
    assert (table.by, table.over) == (["explainer"], ["seed"])
    for group in table.groups:
        values = [row["si"] for cell in group.cells for row in rows(cell.folder)]
        assert len(values) == 10
        assert group.scores["si"].mean == pytest.approx(sum(values) / 10, abs=1e-12)
        assert group.scores["si"].n == 5
        assert group.scores["si"].method == "two-level"
    text = table.grid().markdown()
    assert "| explainer | pairs | SI ↑ | SD ↓ |" in text
    assert "seed" in table.grid().caption
    assert [path.suffix for path in table.write(study.folder / "tables")] == [".md", ".csv", ".parquet"]


def test_a_table_names_the_cells_that_are_missing(study):
    with pytest.raises(UserError, match="no cell of study toy is done yet"):
        tabulate_study(study)
    run_job(Order(str(study.root), study.name, 0))
    write_status(study.cells[1].folder, "failed", error="RuntimeError: this\nand that")
    table = tabulate_study(study)
    assert list(table.missing.values()) == ["failed, RuntimeError: this", "planned", "planned"]
    assert f"{study.cells[1].name} is missing: failed, RuntimeError: this." in table.grid().notes


def test_a_table_can_be_by_any_axis_and_of_some_cells(study):
    run(study)
    assert [group.values for group in tabulate_study(study, by=["seed"]).groups] == [(0,), (1,)]
    some = tabulate_study(study, where=["explainer=lafam"])
    assert [cell.label for group in some.groups for cell in group.cells] == ["lafam", "lafam"]
    with pytest.raises(UserError, match=r"unknown axis of study toy 'sed': did you mean 'seed'"):
        tabulate_study(study, by=["sed"])
    with pytest.raises(UserError, match=r"unknown value of explainer 'grad'"):
        tabulate_study(study, where=["explainer=grad"])


def test_every_record_can_be_had_in_one_flat_table(study):
    run(study)
    flat = list(flat_records(study))
    assert len(flat) == 20
    assert {(row["explainer"], row["seed"]) for row in flat} == {(e, s) for e in ("gradcam", "lafam") for s in (0, 1)}
    assert flat[0]["pair_seed"] == rows(study.cells[0].folder)[0]["seed"]
    assert {row["cell"] for row in flat} == {cell.name for cell in study.cells}


def test_progress_counts_what_statuses_say(study):
    write_status(study.cells[0].folder, "done", pairs=5, done=5)
    write_status(study.cells[1].folder, "failed", pairs=5, done=2, error="ValueError: no\nmore")
    write_status(study.cells[2].folder, "running", pairs=5, done=3, before=1, seconds=4.0)  # whose process is gone
    progress = Progress.of(study)
    assert progress.counts == {"done": 1, "failed": 1, "interrupted": 1, "planned": 1}
    assert (progress.recorded, progress.pairs) == (10, 20)
    lines = status_lines(progress)
    assert lines[0] == "study toy: 4 cells: 1 planned, 1 done, 1 failed, 1 interrupted"
    assert f"  failed {study.cells[1].name}: ValueError: no" in lines
    assert any("its process is gone" in line for line in lines)


def test_a_plan_says_what_it_costs(study):
    lines = cost_lines(
        [cell.line for cell in study.cells],
        [cell.config for cell in study.cells],
        {cell.name: 64.0 for cell in study.cells},
    )
    assert lines[0] == "  explainer=gradcam, seed=0: 5 pairs, 160 forwards"
    assert lines[-3] == "forwards: 640"
    assert lines[-2].startswith("time: about 10 s on one process like this, at 64 forwards a second")


def test_pruning_removes_results_that_nobody_else_planned(study, photos):
    run(study)
    planned(study.root, photos, "explainer=gradcam", name="other")
    kept = study.cells[0].folder
    assert prune(study)[0].startswith("would remove (add --yes): results of 3 cells")
    assert len(cells(study.root)) == 2
    assert prune(study, remove=True)[0].startswith("removed: results of 3 cells")
    assert [folder.name for folder in (study.root / "cells").iterdir()] == [kept.name]


def test_only_failed_results_are_pruned_where_that_is_asked_for(study):
    run(study)
    write_status(study.cells[2].folder, "failed", error="RuntimeError")
    prune(study, only_failed=True, remove=True)
    assert [cell.folder.exists() for cell in study.cells] == [True, True, False, True]


def test_the_plan_file_is_plain_json_lines(study):
    lines = [json.loads(line) for line in (study.folder / "plan.jsonl").read_text().splitlines()]
    assert [line["cell"] for line in lines] == [cell.name for cell in study.cells]
    facts = study.facts()
    assert facts["name"] == "toy"
    assert facts["commands"][0][-2:] == list(TWO)


def test_an_unknown_study_names_those_there_are(study):
    with pytest.raises(UserError, match=r"unknown study below .* 'toi': did you mean 'toy'"):
        Study.open(study.root, "toi")
    with pytest.raises(UserError, match="no study has been planned below"):
        Study.open(study.root / "nowhere", "toy")


def test_who_plans_a_study_already_is_said(study):
    with (
        study.planning(),
        pytest.raises(UserError, match=r"study toy is being planned by .*: wait a moment"),
        Study(study.root, study.name).planning(),
    ):
        pass


def test_a_condition_without_a_value_is_refused(study):
    with pytest.raises(UserError, match="`--where gradcam` must be AXIS=VALUE"):
        tabulate_study(study, where=["gradcam"])


def test_a_set_of_which_nothing_fits_says_why(photos):
    with pytest.raises(UserError, match="no member of the set fits: attention_rollout: "):
        Planner().plan(composed(f"data.root={photos}", "explainers=[attention_rollout,gradient_attention]"))


def test_models_are_built_for_every_seed_until_two_seeds_agree_on_the_weights(photos):
    planner, data = Planner(), f"data.root={photos}"
    untrained = [planner.model(composed(data, f"seed={seed}")) for seed in (0, 1, 2, 2)]
    assert len({id(model) for model in untrained}) == 3
    from_file = {"_target_": "twinsight.models.load_model", "name": "demo_simclr"}
    loaded = [planner.model(composed(data, f"seed={seed}", model=from_file)) for seed in range(4)]
    assert len({id(model) for model in loaded}) == 1
