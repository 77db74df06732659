"""Records on disk: fragments, what survives a crash, and the one file at the end."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from twinsight.files import write_atomically, write_json
from twinsight.study.records import TABLES, RecordWriter, compact, done_indices, packed_array, read, unpacked_array


def record(index, **more):
    """What a cell writes for an explained pair, in short."""
    return {"index": index, "pair_id": f"pair{index}", "box": [0, index], "score": index / 8, "skipped": None, **more}


def skipped(index):
    return {"index": index, "pair_id": f"pair{index}", "skipped": "broken"}


def arrays(index, map2=True):
    maps = packed_array("map1", torch.full((2, 3), float(index)))
    return {"index": index, **maps, **packed_array("map2", torch.ones(2, 3) if map2 else None)}


def write(folder, *indices, rank=0):
    """One fragment per table with the records of these pairs."""
    writer = RecordWriter(folder, rank)
    for index in indices:
        writer.add(record(index), arrays(index), {"index": index, "seconds": 0.5})
    writer.flush()


def fragments(folder, table="records"):
    return sorted((folder / "fragments" / table).iterdir())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_a_file_appears_under_its_name_only_when_it_is_complete(tmp_path):
    path = tmp_path / "folder" / "file.txt"

    def write_in_two_steps(partial):
        assert partial.parent == path.parent
        partial.write_text("half")
        assert not path.exists()
        partial.write_text("whole")

    write_atomically(path, write_in_two_steps)
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.faults
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail_half_way(partial):
        partial.write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, fail_half_way)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_checked_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", {"mean": float("nan")})
    assert not list(tmp_path.iterdir())
    write_json(tmp_path / "file.json", {"mean": None})
    assert json.loads((tmp_path / "file.json").read_text()) == {"mean": None}


def test_nothing_is_on_disk_before_the_writer_flushes(tmp_path):
    writer = RecordWriter(tmp_path)
    writer.add(record(0), arrays(0), {"index": 0})
    assert not list(tmp_path.iterdir())
    writer.flush()
    assert [len(fragments(tmp_path, table)) for table in TABLES] == [1, 1, 1]
    writer.flush()
    assert [len(fragments(tmp_path, table)) for table in TABLES] == [1, 1, 1]


def test_the_writer_flushes_by_itself_after_ten_seconds(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("twinsight.study.records.time.monotonic", lambda: now[0])
    writer = RecordWriter(tmp_path)
    for index, moment in enumerate([105.0, 109.9, 110.1, 115.0]):
        now[0] = moment
        writer.add(record(index), arrays(index), {"index": index})
    assert done_indices(tmp_path) == {0, 1, 2}


def test_fragments_of_ranks_do_not_meet(tmp_path):
    for rank in (0, 1):
        write(tmp_path, rank, rank=rank)
    assert [path.name[:5] for path in fragments(tmp_path)] == ["0000-", "0001-"]
    assert done_indices(tmp_path) == {0, 1}


@pytest.mark.faults
@pytest.mark.parametrize("table", TABLES)
def test_pairs_whose_fragment_could_not_be_written_are_not_done_even_if_flushed_again(tmp_path, monkeypatch, table):
    writer = RecordWriter(tmp_path)
    writer.add(record(0), arrays(0), {"index": 0})
    genuine = write_atomically

    def full_disk(path, write):
        if path.parent.name == table:
            raise OSError("no space left")
        genuine(path, write)

    monkeypatch.setattr("twinsight.study.records.write_atomically", full_disk)
    with pytest.raises(OSError, match="no space left"):
        writer.flush()
    assert not list(tmp_path.glob("fragments/records/*"))  # they come last: where one is, its maps are
    monkeypatch.undo()
    writer.flush()
    assert done_indices(tmp_path) == set()
    write(tmp_path, 0)
    compact(tmp_path, {})
    assert [read(tmp_path, name)[0]["index"] for name in TABLES] == [0, 0, 0]


@pytest.mark.faults
@pytest.mark.parametrize("table", TABLES)
def test_a_truncated_fragment_is_removed_and_its_pairs_are_not_done(tmp_path, caplog, table):
    write(tmp_path, 0, 1)
    write(tmp_path, 2)
    first = next(path for path in fragments(tmp_path, table) if pq.read_table(path).num_rows == 2)
    first.write_bytes(first.read_bytes()[:-20])
    assert done_indices(tmp_path) == {2}
    assert not first.exists()
    assert first.name in caplog.text
    write(tmp_path, 0, 1)
    assert done_indices(tmp_path) == {0, 1, 2}
    compact(tmp_path, {})
    for name in TABLES:
        assert [row["index"] for row in read(tmp_path, name)] == [0, 1, 2]


def test_an_empty_folder_has_nothing_done(tmp_path):
    assert done_indices(tmp_path / "absent") == set()


def test_compaction_sorts_pairs_and_keeps_each_once(tmp_path):
    write(tmp_path, 3, 1)
    write(tmp_path, 2, 1)
    write(tmp_path, 0, rank=1)
    compact(tmp_path, {"cell": "abc"})
    for table in TABLES:
        assert [row["index"] for row in read(tmp_path, table)] == [0, 1, 2, 3]
    assert [row["score"] for row in read(tmp_path)] == [0, 1 / 8, 2 / 8, 3 / 8]
    assert not (tmp_path / "fragments").exists()
    assert pq.read_schema(tmp_path / "records.parquet").metadata[b"cell"] == b"abc"


def test_compaction_again_changes_nothing(tmp_path):
    write(tmp_path, 1, 0)
    compact(tmp_path, {"cell": "abc"})
    before = contents(tmp_path)
    compact(tmp_path, {"cell": "abc"})
    assert contents(tmp_path) == before


def test_compacted_files_are_the_same_bytes_however_the_pairs_were_split(tmp_path):
    splits = {"whole": [(0, 1, 2, 3)], "ranks": [(0, 2), (1, 3)], "single": [(3,), (1,), (0,), (2,)], "again": [(1, 0)]}
    for name, parts in splits.items():
        for rank, part in enumerate(parts):
            write(tmp_path / name, *part, rank=rank)
        if name == "again":
            compact(tmp_path / name, {"cell": "abc"})
            write(tmp_path / name, 3, 2)
        compact(tmp_path / name, {"cell": "abc"})
    expected = contents(tmp_path / "whole")
    assert set(expected) == {f"{table}.parquet" for table in TABLES}
    for name in splits:
        assert contents(tmp_path / name) == expected, name


@pytest.mark.faults
def test_a_crash_between_the_tables_of_a_compaction_loses_nothing(tmp_path, monkeypatch):
    write(tmp_path, 1, 0)
    genuine = write_atomically

    def crash_at_records(path, write):
        if path.name == "records.parquet":
            raise KeyboardInterrupt
        genuine(path, write)

    monkeypatch.setattr("twinsight.study.records.write_atomically", crash_at_records)
    with pytest.raises(KeyboardInterrupt):
        compact(tmp_path, {})
    monkeypatch.undo()
    assert not (tmp_path / "records.parquet").exists()
    assert done_indices(tmp_path) == {0, 1}
    compact(tmp_path, {})
    for table in TABLES:
        assert [row["index"] for row in read(tmp_path, table)] == [0, 1]


def test_a_pair_that_was_skipped_first_does_not_hide_the_columns_of_the_others(tmp_path):
    writer = RecordWriter(tmp_path)
    writer.add(skipped(0), {"index": 0}, {"index": 0})
    writer.add(record(1), arrays(1), {"index": 1, "seconds": 0.5})
    writer.flush()
    compact(tmp_path, {})
    first, second = read(tmp_path)
    assert first == {"index": 0, "pair_id": "pair0", "box": None, "score": None, "skipped": "broken"}
    assert second == record(1)
    assert unpacked_array(read(tmp_path, "arrays")[1], "map1").tolist() == [[1.0] * 3] * 2
    assert read(tmp_path, "timings")[1]["seconds"] == 0.5


def test_null_number_and_text_columns_of_fragments_unify_in_any_order(tmp_path):
    """A fragment of skipped pairs knows no scores, one of explained pairs no reasons."""
    for name, order in {"skipped first": (0, 1, 2), "skipped last": (2, 1, 0), "mixed": (1, 0, 2)}.items():
        for rank, index in enumerate(order):
            writer = RecordWriter(tmp_path / name, rank)
            if index == 0:
                writer.add(skipped(0), {"index": 0}, {"index": 0})
            else:
                writer.add(record(index), arrays(index, map2=index == 2), {"index": index, "seconds": 0.5})
            writer.flush()
        compact(tmp_path / name, {})
    expected = contents(tmp_path / "mixed")
    for name in ("skipped first", "skipped last"):
        assert contents(tmp_path / name) == expected
    table = pq.read_table(tmp_path / "mixed" / "records.parquet")
    assert table.column_names == ["index", "pair_id", "box", "score", "skipped"]
    assert table.schema.field("score").type == pa.float64()
    assert table.schema.field("skipped").type == pa.string()
    assert [row["skipped"] for row in table.to_pylist()] == ["broken", None, None]
    maps = [unpacked_array(row, "map2") for row in read(tmp_path / "mixed", "arrays")]
    assert [None if heatmap is None else heatmap.shape for heatmap in maps] == [None, None, (2, 3)]


def stored_and_back(tmp_path, heatmap):
    """A map as it is read back from the files of a finished cell."""
    writer = RecordWriter(tmp_path)
    writer.add(record(0), {"index": 0, **packed_array("map1", heatmap)}, {"index": 0})
    writer.flush()
    compact(tmp_path, {})
    return unpacked_array(read(tmp_path, "arrays")[0], "map1")


@pytest.mark.parametrize("magnitude", [1e-30, 1e-9, 1.0, 7e4, 1e30])
def test_maps_survive_half_precision_at_any_magnitude(tmp_path, magnitude):
    heatmap = magnitude * torch.tensor([[-1.0, 0.5, 0.25], [0.1, 0.0, 0.001]], dtype=torch.float64)
    found = stored_and_back(tmp_path, heatmap)
    assert found.dtype == np.float32
    # Half precision has 11 significant bits: half a unit in the last place is 2^-12 of the value at most.
    np.testing.assert_allclose(found, heatmap.numpy(), rtol=2**-11, atol=magnitude * 2**-24)
    assert (pq.read_table(tmp_path / "arrays.parquet").schema.field("map1").type.value_type) == pa.float16()


def test_maps_keep_nan_and_infinity_in_their_places(tmp_path):
    nan, inf = float("nan"), float("inf")
    found = stored_and_back(tmp_path, torch.tensor([[nan, inf, -inf], [0.5, -0.25, 0.0]]))
    np.testing.assert_array_equal(found, [[nan, inf, -inf], [0.5, -0.25, 0.0]])


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, float("nan"), float("inf")])
def test_constant_maps_stay_what_they_are(tmp_path, value):
    found = stored_and_back(tmp_path, torch.full((2, 2), value))
    np.testing.assert_array_equal(found, np.full((2, 2), value, np.float32))


def test_a_map_that_does_not_exist_is_none(tmp_path):
    assert stored_and_back(tmp_path, None) is None
