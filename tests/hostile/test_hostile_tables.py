"""Tables of pairs that others wrote: each lists its pairs, or is refused in one line that names it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from twinsight.data import BrokenPhoto, ImagePairs
from twinsight.errors import UserError
from twinsight.exits import USER_ERROR, report

HEAD = b"image1,image2\n"
ROW = b"a.png,b.png\n"


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("a.png", "red"), ("b.png", "blue"), ("größe.png", "lime")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / name)
    return tmp_path


# The file's name, what is in it, and what is said.
REFUSED = {
    "nothing": ("p.csv", b"", "has no column image1 or image2"),
    "a head alone": ("p.csv", HEAD, "has no rows"),
    "a missing column": ("p.csv", b"image1,picture\n" + ROW, "has no column image2"),
    "columns in capitals": ("p.csv", b"Image1,IMAGE2\n" + ROW, "has no column image1 or image2"),
    "no head": ("p.csv", ROW, "has no column image1 or image2"),
    "semicolons": ("p.csv", b"image1;image2\na.png;b.png\n", "has no column image1 or image2"),
    "a column twice": ("p.csv", b"image1,image2,image1\na.png,b.png,a.png\n", "has the column image1 twice"),
    "UTF-16": ("p.csv", (HEAD + ROW).decode().encode("utf-16"), "cannot be read as a table"),
    "Latin-1": ("p.csv", HEAD + "größe.png,b.png\n".encode("latin-1"), "cannot be read as a table"),
    "Latin-1 in the head": ("p.csv", "image1,image2,größe\na,b,c\n".encode("latin-1"), "cannot be read as a table"),
    "a row too short": ("p.csv", HEAD + ROW + b"a.png\n", "cannot be read as a table"),
    "a row too long": ("p.csv", HEAD + ROW + b"a.png,b.png,c.png\n", "cannot be read as a table"),
    "an empty cell": ("p.csv", HEAD + ROW + b",b.png\n", "row 1 has no `image1`: give every pair two images"),
    "an id twice": ("p.csv", b"image1,image2,pair_id\na.png,b.png,x\nb.png,a.png,x\n", "'x' is there twice"),
    "no id": ("p.csv", b"image1,image2,pair_id\na.png,b.png,\n", "row 0 has no `pair_id`"),
    "a quote that never ends": ("p.csv", b'image1,"image2\na.png,b.png\n', "."),
    "zeros": ("p.csv", bytes(1000), "."),
    "a photo": ("p.csv", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "cannot be read as a table"),
    "a JSON list": ("p.jsonl", b'["a.png", "b.png"]\n', "cannot be read as a table"),
    "JSON that is cut": ("p.jsonl", b'{"image1": "a.png", "image2": ', "cannot be read as a table"),
    "JSON of other things": ("p.jsonl", b'{"image1": {"a": 1}, "image2": "b.png"}\n', "cannot be read as a table"),
    "JSON with null": ("p.jsonl", b'{"image1": null, "image2": "b.png"}\n', "row 0 has no `image1`"),
    "Parquet that is cut": ("p.parquet", b"PAR1" + bytes(40), "cannot be read as a table"),
    "text called Parquet": ("p.parquet", HEAD + ROW, "cannot be read as a table"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_lists_no_pairs_is_refused_in_one_line_that_names_it(folder, capsys, case):
    name, content, said = REFUSED[case]
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as refusal:
        ImagePairs(folder / name)
    assert report(refusal.value) == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert f"`data.file={folder / name}`" in line


@pytest.mark.parametrize(
    "values", [pa.array([float("nan")]), pa.array([None], pa.string()), pa.array([["a.png"]]), pa.array([b"\xff\xfe"])]
)
def test_a_cell_that_is_no_path_is_refused_or_broken(folder, values):
    pq.write_table(pa.table({"image1": values, "image2": ["b.png"]}), folder / "p.parquet")
    with pytest.raises((UserError, BrokenPhoto), match=r"p\.parquet|nan: No such file"):
        ImagePairs(folder / "p.parquet").load_pair(0)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_the_ends_of_lines_of_other_systems_are_read(folder, mark, end):
    (folder / "p.csv").write_bytes(f"{mark}image1,image2{end}größe.png,b.png{end}".encode())
    assert [photo.getpixel((0, 0)) for photo in ImagePairs(folder / "p.csv").load_pair(0)] == [(0, 255, 0), (0, 0, 255)]


def test_a_path_that_leaves_the_folder_is_opened_as_an_image_and_as_nothing_else(folder):
    (folder / "lists").mkdir()
    (folder / "secret.txt").write_text("the password is swordfish")
    rows = ["../a.png,b.png", f"{folder / 'a.png'},b.png", "../secret.txt,b.png", f"{'a' * 5000}.png,b.png"]
    table = folder / "lists" / "p.csv"
    table.write_text("\n".join(["image1,image2", *rows]))
    pairs = ImagePairs(table)
    assert pairs.load(0).getpixel((0, 0)) == pairs.load(1).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(BrokenPhoto, match=r"^2: \.\./secret\.txt: not an image of a known format$"):
        pairs.load(2)
    with pytest.raises(BrokenPhoto, match="File name too long"):
        pairs.load(3)


def test_a_path_with_a_null_byte_is_a_broken_photo(folder):
    pq.write_table(pa.table({"image1": ["a\0.png"], "image2": ["b.png"]}), folder / "p.parquet")
    pairs = ImagePairs(folder / "p.parquet")
    assert len(pairs.digest()) == 64
    with pytest.raises(BrokenPhoto, match="null byte"):
        pairs.load_pair(0)
