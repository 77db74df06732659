"""Pairs of two different photos: tables that list them, pictures from Python, other libraries' data sets."""

import errno
import json
import os
import subprocess
import sys
import tempfile
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pyarrow import csv

from toy_cells import composed, only_cell, rows, write_photo
from twinsight.data import (
    BrokenPhoto,
    HuggingFacePhotos,
    ImagePairs,
    InMemoryPairs,
    NoViews,
    PairDataModule,
    TorchvisionPhotos,
    as_photo,
    as_pixels,
    tables,
)
from twinsight.errors import UserError
from twinsight.study import explain

PAIRS = [("a.png", "b.png", "same"), ("a.png", "sub/c.png", "different"), ("sub/c.png", "b.png", "different")]


@pytest.fixture
def folder(tmp_path):
    """Three photos, and a table of three pairs of them in each format."""
    (tmp_path / "sub").mkdir()
    for seed, name in enumerate(("a.png", "b.png", "sub/c.png")):
        write_photo(tmp_path / name, seed)
    columns = dict(zip(("image1", "image2", "label"), map(list, zip(*PAIRS, strict=True)), strict=True))
    columns = {"note": [1, 2, 3], **columns}
    lines = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    for ending, mark in (("csv", ","), ("tsv", "\t")):
        texts = [mark.join(columns), *(mark.join(map(str, line.values())) for line in lines)]
        (tmp_path / f"pairs.{ending}").write_text("\n".join(texts) + "\n", encoding="utf-8-sig")
    return tmp_path


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "jsonl"])
def test_a_table_of_any_format_lists_the_same_pairs(folder, ending):
    pairs = ImagePairs(folder / f"pairs.{ending}")
    assert [(pairs.called(n, 1), pairs.called(n, 2), pairs.label(n)) for n in range(len(pairs))] == PAIRS
    assert list(pairs.ids) == ["0", "1", "2"]
    assert pairs.digest() == ImagePairs(folder / "pairs.csv").digest()
    first, second = pairs.load_pair(1)
    assert first.tobytes() == Image.open(folder / "a.png").convert("RGB").tobytes()
    assert second.tobytes() == Image.open(folder / "sub/c.png").convert("RGB").tobytes()


def test_names_of_pairs_and_labels_are_kept_as_they_are_written(folder):
    (folder / "named.csv").write_text("label,pair_id,image2,image1\n1,007,b.png,a.png\n,8e1,a.png,b.png\n")
    pairs = ImagePairs(folder / "named.csv")
    assert list(pairs.ids) == ["007", "8e1"]
    assert [pairs.label(0), pairs.label(1)] == ["1", None]


def test_paths_are_relative_to_the_root_that_is_given(folder):
    (folder / "sub" / "pairs.csv").write_text("image1,image2\na.png,b.png\n")
    with pytest.raises(BrokenPhoto, match=r"a\.png: No such file"):
        ImagePairs(folder / "sub" / "pairs.csv").load_pair(0)
    assert ImagePairs(folder / "sub" / "pairs.csv", root=folder).load_pair(0)[0].size == (48, 40)


def test_a_limit_keeps_rows_evenly_spaced_with_their_own_names(folder):
    pairs = ImagePairs(folder / "pairs.csv", limit=2)
    assert list(pairs.ids) == ["0", "1"]
    assert pairs.called(1, 2) == "sub/c.png"


def test_the_digest_follows_contents_and_labels_but_not_where_things_lie(folder, tmp_path_factory):
    digest = ImagePairs(folder / "pairs.csv").digest()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("a.png", "b.png", "c.png"):
        seed = "abc".index(name[0])
        write_photo(elsewhere / name, seed)
    (elsewhere / "p.csv").write_text(
        "image1,image2,label\n" + "".join(",".join(p) + "\n" for p in PAIRS).replace("sub/", "")
    )
    assert ImagePairs(elsewhere / "p.csv").digest() == digest
    write_photo(elsewhere / "c.png", seed=9)
    assert ImagePairs(elsewhere / "p.csv").digest() != digest
    (folder / "pairs.csv").write_text((folder / "pairs.csv").read_text().replace("same", "alike"))
    assert ImagePairs(folder / "pairs.csv").digest() != digest


# What a table says, and what is said about it.
BAD = {
    "image1\na.png\n": r"has no column image2: it needs image1, image2, and has image1",
    "image1,image2\n": "has no rows",
    "image1,image2\na.png,b.png\na.png,\n": "row 1 has no `image2`",
    "image1,image2,pair_id\na.png,b.png,x\nb.png,a.png,x\n": "`pair_id` 'x' is there twice",
    "image1,image2,pair_id\na.png,b.png,x\nb.png,a.png,\n": "row 1 has no `pair_id`",
    "image1,image2\na.png,b.png,c.png\n": "cannot be read as a table",
}


@pytest.mark.parametrize("text", BAD)
def test_a_table_that_does_not_list_pairs_is_refused_with_the_reason(folder, text):
    (folder / "bad.csv").write_text(text)
    with pytest.raises(UserError, match=BAD[text]):
        ImagePairs(folder / "bad.csv")


def test_a_file_that_is_no_table_is_refused(folder):
    with pytest.raises(UserError, match="no such file"):
        ImagePairs(folder / "none.csv")
    with pytest.raises(UserError, match=r"unknown ending of .*: did you mean '\.parquet'|Valid: .*\.parquet"):
        ImagePairs(folder / "a.png")
    (folder / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read as a table"):
        ImagePairs(folder / "broken.parquet")


def test_a_pair_with_a_broken_photo_is_skipped_by_the_name_of_the_photo(folder):
    (folder / "b.png").write_bytes(b"no image")
    batches = PairDataModule(ImagePairs(folder / "pairs.csv"), NoViews(16)).predict_dataloader()
    found = [(batch.pair_id, [(one.pair_id, one.reason) for one in batch.skipped]) for batch in batches]
    reason = "b.png: not an image of a known format"
    assert found == [([], [("0", reason)]), (["1"], []), ([], [("2", reason)])]


def test_a_limit_of_pairs_with_names_keeps_those_rows_alone(folder):
    text = "pair_id,image1,image2,label\n" + "".join(f"n{n},{n}.png,{n}b.png,l{n}\n" for n in range(10))
    (folder / "ten.csv").write_text(text)
    pairs = ImagePairs(folder / "ten.csv", limit=3)
    assert list(pairs.ids) == ["n0", "n3", "n6"]
    assert [(pairs.called(n, 1), pairs.called(n, 2), pairs.label(n)) for n in range(3)] == [
        (f"{n}.png", f"{n}b.png", f"l{n}") for n in (0, 3, 6)
    ]


def many_pairs(path, count):
    """A table of so many pairs with names, written in pieces; 100 bytes of text a row in the columns that are kept."""
    formats = {".parquet": pq.ParquetWriter, ".csv": csv.CSVWriter}
    schema = pa.schema([(name, pa.string()) for name in ("pair_id", "image1", "image2", "note")])
    with path.open("w") if path.suffix == ".jsonl" else formats[path.suffix](path, schema) as file:
        for start in range(0, count, 100_000):
            names = [f"{n:020d}" for n in range(start, min(start + 100_000, count))]
            columns = [
                names,
                [f"photos/{name}/first.png" for name in names],
                [f"photos/{name}/2.png" for name in names],
            ]
            if path.suffix == ".jsonl":
                for pair, first, second in zip(*columns, strict=True):
                    file.write(f'{{"pair_id": "{pair}", "image1": "{first}", "image2": "{second}", "note": 7}}\n')
            else:
                file.write_table(pa.table([*columns, ["seven"] * len(names)], schema))
    return path


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_large_tables_are_read_piece_by_piece_and_kept_on_disk(tmp_path, monkeypatch, ending):
    count = 200_000
    path = many_pairs(tmp_path / f"many.{ending}", count)
    monkeypatch.setattr(tables, "_PIECE_BYTES", 1 << 18)
    monkeypatch.setattr(tables, "_HELD_BYTES", 1 << 18)
    as_text, arrow, before = tables._as_text, [0], pa.total_allocated_bytes()

    def watched(column):
        arrow.append(pa.total_allocated_bytes() - before)
        return as_text(column)

    monkeypatch.setattr(tables, "_as_text", watched)
    tracemalloc.start()
    pairs = ImagePairs(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pairs) == count
    assert (pairs.ids[123_456], pairs.called(123_456, 2)) == (f"{123_456:020d}", f"photos/{123_456:020d}/2.png")
    # Of 20 MB of text, while it is read; pages of Parquet's are some twelve, however long the file:
    assert max(arrow) < 16e6
    assert peak < 6e6
    # And afterwards; a list of numbers alone would hold eight bytes for each.
    assert held + pa.total_allocated_bytes() - before < count


def test_a_full_disk_for_a_large_table_is_said_with_the_way_out(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tables, "_HELD_BYTES", 10)
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", full)
    with pytest.raises(UserError, match=r"no room for a copy of the table in .* \(No space left .*TMPDIR"):
        ImagePairs(folder / "pairs.csv")


def test_columns_of_json_lines_are_read_alike_in_all_pieces(folder, monkeypatch):
    monkeypatch.setattr(tables, "_PIECE_BYTES", 10)  # a line each
    values = [None, 1, 2.5, 3]
    lines = [{"image1": "2020-01-01", "image2": "b.png", "label": value, "other": n} for n, value in enumerate(values)]
    del lines[0]["label"], lines[2]["other"]
    (folder / "p.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n \n")
    pairs = ImagePairs(folder / "p.jsonl")
    assert [pairs.label(n) for n in range(4)] == [None, "1", "2.5", "3"]
    assert pairs.called(0, 1) == "2020-01-01"  # which Arrow would take for a time
    (folder / "p.jsonl").write_text("".join(f'{{"image1": {one}, "image2": "b"}}\n' for one in ('"a"', "1")))
    with pytest.raises(UserError, match=r"cannot be read as a table: .*image1"):
        ImagePairs(folder / "p.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_ten_million_pairs_take_little_memory(tmp_path, ending):
    path = many_pairs(tmp_path / f"many.{ending}", 10_000_000)  # 1 GB of text, and as much on disk while it is used
    work = """
import re, sys, threading
from twinsight.data import ImagePairs, ShardSampler

def own_memory():  # without pages of files, which the system takes back when it needs them
    return int(re.search(r"^RssAnon:\\s+(\\d+) kB", open("/proc/self/status").read(), re.M)[1]) * 1024

done, seen = threading.Event(), [own_memory()]
def watch():
    while not done.wait(0.02):
        seen.append(own_memory())

watcher = threading.Thread(target=watch)
watcher.start()
pairs = ImagePairs(sys.argv[1])
order = iter(ShardSampler(len(pairs)))
assert [next(order), pairs.ids[9_999_999]] == [0, f"{9_999_999:020d}"]
few = ImagePairs(sys.argv[1], limit=10)
assert list(few.ids) == [f"{n}000000".zfill(20) for n in range(10)]
done.set()
watcher.join()
print(max(seen) - seen[0])
"""
    found = subprocess.run([sys.executable, "-c", work, path], check=True, capture_output=True, text=True).stdout
    assert int(found) < 400e6  # eight bytes for each id, and pieces; the text alone is three times as much


def test_pictures_from_python_are_photos_whatever_holds_them(tmp_path):
    write_photo(tmp_path / "a.png", 0)
    photo = Image.open(tmp_path / "a.png").convert("RGB")
    array = np.asarray(photo)
    tensor = torch.from_numpy(array.copy()).movedim(-1, 0)
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), photo, array, tensor, array / 255, tensor / 255]
    for form in forms:
        assert as_photo(form).tobytes() == photo.tobytes()
        torch.testing.assert_close(as_pixels(form), tensor / 255, rtol=0, atol=1e-6)
    pairs = InMemoryPairs(forms, forms[::-1], labels=["same"] * 7)
    assert len({pairs.fingerprint(index) for index in range(7)}) == 1
    assert pairs.label(3) == "same"


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (torch.zeros(4, 5, 5), r"tensor \(3, H, W\), got Tensor \(4, 5, 5\)"),
        (torch.full((3, 5, 5), 2.0), r"must lie in \[0, 1\], got 2 to 2: give images as they are"),
        (np.zeros((5, 5), np.int64), "8-bit integers or floats"),
        ("nowhere.png", r"cannot read the image nowhere\.png: No such file"),
    ],
)
def test_what_is_no_picture_is_refused(picture, message):
    with pytest.raises(UserError, match=message):
        as_pixels(picture)


def test_torchvision_data_sets_go_by_name(tmp_path):
    photos = TorchvisionPhotos("FakeData", options={"size": 3, "image_size": [3, 8, 6]}, limit=2)
    assert photos.ids == ["000000", "000001"]
    first, second = photos.load_pair(0)
    assert first is second
    with pytest.raises(
        UserError, match=r"unknown torchvision data set `data.name` 'FakeDatas': did you mean 'FakeData'"
    ):
        TorchvisionPhotos("FakeDatas")
    with pytest.raises(UserError, match=r"`data.name=CIFAR100`: Dataset not found"):
        TorchvisionPhotos("CIFAR100", root=tmp_path, split="test")
    with pytest.raises(UserError, match=r"`data.name=FakeData`: .*unexpected keyword argument 'split'"):
        TorchvisionPhotos("FakeData", split="val")
    with pytest.raises(UserError, match=r"see `data\.root`, `data\.split` and `data\.options`$"):
        TorchvisionPhotos("FakeData", options={"sizes": 3})
    with pytest.raises(UserError, match=r"`data\.on_error` must be 'skip' or 'raise', got 'ignore'"):
        TorchvisionPhotos("FakeData", on_error="ignore")


def test_torchvision_pairs_of_faces_keep_their_label(tmp_path):
    """The layout of Labeled Faces in the Wild, as torchvision reads it."""
    root = tmp_path / "lfw-py"
    for person in ("Ann", "Bob"):
        (root / "lfw-deepfunneled" / person).mkdir(parents=True)
        for number in (1, 2):
            path = root / "lfw-deepfunneled" / person / f"{person}_{number:04d}.jpg"
            Image.new("RGB", (5, 4), (number, 0, 0)).save(path)
    (root / "pairsDevTest.txt").write_text("1\nAnn\t1\t2\nAnn\t1\tBob\t2\n")
    import torchvision

    original = torchvision.datasets.LFWPairs._check_integrity
    torchvision.datasets.LFWPairs._check_integrity = lambda self: True  # of an archive that is not here
    try:
        photos = TorchvisionPhotos("LFWPairs", root=tmp_path, split="test", options={"image_set": "deepfunneled"})
    finally:
        torchvision.datasets.LFWPairs._check_integrity = original
    assert [photos.label(index) for index in range(len(photos))] == ["1", "0"]
    first, second = photos.load_pair(1)
    assert first.size == second.size == (5, 4)
    assert first is not second


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """A data set of Hugging Face with two images and a label in each row."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    photos = [Image.new("RGB", (6, 4), (20 * n, 0, 0)) for n in range(3)]
    features = datasets.Features(
        {"image": datasets.Image(), "other": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    return datasets.Dataset.from_dict({"image": photos, "other": photos[::-1], "label": [0, 1, 0]}, features=features)


def test_hugging_face_data_sets_are_read_from_disk(faces, tmp_path):
    faces.save_to_disk(str(tmp_path / "saved"))
    faces.to_parquet(str(tmp_path / "rows.parquet"))
    for path in (tmp_path / "saved", tmp_path / "rows.parquet"):
        single = HuggingFacePhotos(path)
        assert (single.labels, single.classes) == ([0, 1, 0], ["no", "yes"])
        assert single.load(2).getpixel((0, 0)) == (40, 0, 0)
        pairs = HuggingFacePhotos(path, image2="other")
        assert [pairs.label(index) for index in range(3)] == ["no", "yes", "no"]
        assert [photo.getpixel((0, 0)) for photo in pairs.load_pair(0)] == [(0, 0, 0), (40, 0, 0)]
    assert pairs.digest() == HuggingFacePhotos(tmp_path / "saved", image2="other").digest()
    with pytest.raises(UserError, match=r"unknown column `data.image2` 'others': did you mean 'other'"):
        HuggingFacePhotos(tmp_path / "saved", image2="others")
    with pytest.raises(UserError, match="no such file or folder"):
        HuggingFacePhotos(tmp_path / "nowhere")


def test_a_folder_of_images_is_a_hugging_face_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    pytest.importorskip("datasets")
    for seed, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / "test" / name).mkdir(parents=True)
        write_photo(tmp_path / "photos" / "test" / name / "0.png", seed)
    photos = HuggingFacePhotos(tmp_path / "photos")
    assert photos.classes == ["cat", "dog"]
    assert photos.load(1).size == (48, 40)


def test_a_run_on_pairs_gives_results_by_label(folder, capsys):
    config = composed(
        "data=pairs",
        f"data.file={folder / 'pairs.csv'}",
        "views=whole",
        "explainers=[gradcam,random]",
        f"paths.output_root={folder / 'out'}",
    )
    assert explain(config) == 0
    cell = next((folder / "out" / "cells").glob("*gradcam*"))
    assert [(row["pair_id"], row["label"]) for row in rows(cell)] == [
        ("0", "same"),
        ("1", "different"),
        ("2", "different"),
    ]
    labels = json.loads((cell / "metrics.json").read_text())["labels"]
    assert {label: part["pairs"] for label, part in labels.items()} == {"different": 2, "same": 1}
    expected = np.mean([row["ci"] for row in rows(cell) if row["label"] == "different"])
    assert labels["different"]["metrics"]["ci"]["mean"] == pytest.approx(expected)
    tables = next((folder / "out" / "sets").iterdir()) / "tables"
    text = (tables / "by_label.md").read_text()
    assert "## Pairs labelled different" in text
    assert "## Pairs labelled same" in text
    long = pq.read_table(tables / "by_label.parquet").to_pylist()
    found = {(row["label"], row["row"]): row for row in long if row["metric"] == "ci"}
    assert found["different", "gradcam"]["mean"] == pytest.approx(expected)
    assert found["same", "gradcam"]["n"] == 1
    assert "  different" in capsys.readouterr().out


def test_pairs_without_labels_have_no_tables_by_label(folder):
    (folder / "plain.csv").write_text("image1,image2\na.png,b.png\n")
    config = composed(
        "data=pairs", f"data.file={folder / 'plain.csv'}", "explainer=gradcam", f"paths.output_root={folder / 'out'}"
    )
    assert explain(config) == 0
    cell = only_cell(config)
    assert "label" not in rows(cell)[0]
    assert "labels" not in json.loads((cell / "metrics.json").read_text())
