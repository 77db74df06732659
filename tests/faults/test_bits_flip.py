"""One bit of a file flips: it is noticed, computed again, or refused by the file's name; never taken for a result."""

import random
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from toy_studies import TWO, assert_as_plain, planned, run
from twinsight.api import given_maps
from twinsight.engine import PairBank
from twinsight.errors import UserError
from twinsight.models import small_two_view
from twinsight.report.arrays import Arrays
from twinsight.report.html import build_report, collect
from twinsight.sealed import Damaged, check_seal, read_sealed
from twinsight.study.aggregate import tabulate_study
from twinsight.study.evaluation import Evaluation
from twinsight.study.job import Order, run_job
from twinsight.study.records import read
from twinsight.study.shards import Shard
from twinsight.study.status import read_status

pytestmark = pytest.mark.faults
SLOW = pytest.mark.slow


def flip(path: Path, place: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


def flips(path: Path, seed: int = 0):
    """The file with one bit of each of its bytes flipped in turn, and whole again at the end."""
    draw = random.Random(seed)
    for place in range(path.stat().st_size):
        bit = draw.randrange(8)
        flip(path, place, bit)
        yield place
        flip(path, place, bit)


def footer(path: Path) -> int:
    """Where a table's footer begins, which Parquet keeps no checksum of."""
    content = path.read_bytes()
    return len(content) - 8 - int.from_bytes(content[-8:-4], "little")


def name_of_a_column(path: Path, name: str) -> int:
    """Where the footer spells the name of a column: flipped there, a whole column would be missing in silence."""
    return path.read_bytes().index(name.encode(), footer(path))


def report(study):
    return build_report(collect([study.name], study.root))


@pytest.fixture
def study(tmp_path, photos):
    return planned(tmp_path, photos, *TWO)


@pytest.fixture
def computed(monkeypatch):
    """Pairs that are computed."""
    pairs, genuine = [], Evaluation._run

    def counting(self, cell, writer, batch):
        pairs.extend((cell.name, index) for index in batch.index)
        genuine(self, cell, writer, batch)

    monkeypatch.setattr(Evaluation, "_run", counting)
    return pairs


@pytest.mark.parametrize("table", ["records", "timings"])
def test_no_bit_of_a_table_flips_unnoticed(explained, table, record_property):
    folder = explained("explainer=gradcam", "data.limit=2")
    path, whole = folder / f"{table}.parquet", repr(read(folder, table))
    refused, unnoticed = [], 0
    for _ in flips(path):
        try:
            check_seal(path)
            found = read(folder, table)
        except Damaged as error:
            refused.append(str(error))
        else:  # a bit of what says that there is a seal: all else is as it was
            unnoticed += 1
            assert repr(found) == whole
    assert unnoticed <= 20
    assert all(str(path) in message for message in refused)
    record_property("injected", len(refused) + unnoticed)


def test_a_table_without_a_seal_is_read_as_before(tmp_path, explained):
    folder = explained("explainer=gradcam", "data.limit=2")
    table = pq.read_table(folder / "records.parquet")
    pq.write_table(table.replace_schema_metadata({}), tmp_path / "old.parquet")
    assert read_sealed(tmp_path / "old.parquet").to_pylist() == read(folder)


@pytest.mark.parametrize(
    ("table", "place"),
    [
        ("records", "footer"),
        pytest.param("records", "page", marks=SLOW),
        pytest.param("timings", "footer", marks=SLOW),
    ],
)
def test_a_finished_cell_of_which_a_bit_flipped_is_computed_again(study, plain, computed, table, place):
    run(study)
    cell, computed[:] = study.cells[0], []
    path = cell.folder / f"{table}.parquet"
    flip(path, 60 if place == "page" else name_of_a_column(path, "pair_id" if table == "records" else "forwards"))
    if table == "records":
        assert f"{path} is damaged" in tabulate_study(study).missing[cell.name]
    with pytest.raises(Damaged, match=rf"{table}\.parquet is damaged"):
        report(study)
    assert run(study) == [0]
    assert computed == [(cell.name, index) for index in range(5)]
    assert_as_plain(study, plain)


@pytest.mark.parametrize("table", ["arrays", *(pytest.param(each, marks=SLOW) for each in ("records", "timings"))])
def test_a_fragment_of_which_the_footer_flipped_is_computed_again(study, plain, caplog, table):
    order = Order(str(study.root), study.name, 0, Shard(0, 2))
    assert run_job(order) == 0
    (fragment,) = (study.cells[0].folder / "fragments" / table).iterdir()
    flip(fragment, name_of_a_column(fragment, "map1" if table == "arrays" else "index"))
    assert run(study) == [0, 0, 0, 0]
    assert f"{fragment} is damaged" in caplog.text
    assert_as_plain(study, plain)


@pytest.mark.parametrize("place", ["page", pytest.param("footer", marks=SLOW)])
def test_flipped_maps_of_a_finished_cell_are_refused_by_name_until_they_are_removed(study, plain, place):
    run(study)
    path = study.cells[0].folder / "arrays.parquet"
    flip(path, 60 if place == "page" else name_of_a_column(path, "map1"))
    for reader in (partial(read, path.parent, "arrays"), partial(Arrays, path.parent), partial(report, study)):
        with pytest.raises(UserError, match=r"arrays\.parquet is damaged .*remove it and run again"):
            reader()
    path.unlink()
    assert run(study) == [0]
    assert_as_plain(study, plain)


@pytest.mark.slow
def test_no_bit_of_a_status_makes_a_cell_look_other_than_done_or_not_begun(study, plain, computed, record_property):
    run(study)
    cell, computed[:] = study.cells[0], []
    path = cell.folder / "status.json"
    for _ in flips(path):
        assert read_status(cell.folder)["state"] in ("done", "planned")
    record_property("injected", path.stat().st_size)
    flip(path, path.read_bytes().index(b'"done"') + 1)
    assert read_status(cell.folder) == {"state": "planned"}
    assert run(study) == [0]
    assert computed == []  # all of it is there
    assert_as_plain(study, plain)


def test_a_frozen_configuration_of_which_a_bit_flipped_is_not_computed(study):
    cell = study.cells[0]
    content = yaml.safe_load(cell.frozen.read_text())
    assert content["config"]["seed"] == 0
    flip(cell.frozen, cell.frozen.read_bytes().rindex(b"seed: 0") + len("seed: "))
    assert yaml.safe_load(cell.frozen.read_text())["config"]["seed"] == 1
    assert run(study) == [1, 0, 0, 0]
    assert "planned for something else: the weights and seed changed since" in cell.status()["error"]
    assert not (cell.folder / "records.parquet").exists()


def test_no_bit_of_a_file_of_maps_flips_unnoticed(tmp_path, record_property):
    path = tmp_path / "maps.npz"
    draw, view = np.random.default_rng(0), torch.zeros(1, 3, 32, 32)
    maps = [draw.random((1, 4, 4), dtype=np.float32) for _ in range(2)]
    np.savez(path, map1=maps[0], map2=maps[1])
    model = small_two_view(widths=(8, 16), blocks=1, input_size=32).eval()
    bank, refused = PairBank(model), []
    for _ in flips(path):
        try:
            found = given_maps(path, model, view, view, bank)
        except UserError as error:
            refused.append(str(error))
        else:  # a bit that says nothing of the arrays, as the date
            assert [found.map1.tolist(), found.map2.tolist()] == [each.tolist() for each in maps]
    assert len(refused) > path.stat().st_size / 2
    assert all(str(path) in message for message in refused)
    record_property("injected", path.stat().st_size)
