"""The study report as a file: what is in it, what it weighs, what it refuses."""

import base64
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from toy_study import EXPLAINERS, corner_map, explainer, write_study
from twinsight import __main__ as command_line
from twinsight.errors import UserError
from twinsight.explainers.geometry import MapGeometry
from twinsight.plotting import color_limits, shared_scale
from twinsight.report.command import main
from twinsight.report.html import build_report, collect
from twinsight.report.html.maps import eight_bits, small_map, spread_map


class Blocks(HTMLParser):
    """Text of every script with an id, and addresses that the page asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.asked: list[str] = []
        self._id: str | None = None

    def handle_starttag(self, tag, attributes):
        facts = dict(attributes)
        self._id = facts.get("id") if tag == "script" else None
        addresses = [facts[key] for key in ("src", "href") if facts.get(key)]
        self.asked += [address for address in addresses if not address.startswith(("#", "data:"))]

    def handle_data(self, data):
        if self._id:
            self.found[self._id] = self.found.get(self._id, "") + data


def parsed(path: Path) -> Blocks:
    blocks = Blocks()
    blocks.feed(path.read_text(encoding="utf-8"))
    return blocks


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder with a study of five explainers on two models, one of whose cells failed."""
    root = tmp_path_factory.mktemp("outputs")
    markup = explainer("markup", "</script><b>Own & $x_1$</b>")
    explainers = [*EXPLAINERS, explainer("lafam", "LaFAM", is_control=True), markup]
    states = {"lafam": {"state": "failed", "error": "RuntimeError: out of memory </script>"}}
    write_study(root, models=("demo_simclr", "demo_barlow_twins"), explainers=explainers, states=states)
    return root


@pytest.fixture(scope="module")
def page(toy: Path) -> Path:
    output = toy / "page" / "report.html"
    assert main(["toy", "--root", str(toy), "--output", str(output), "--no-figures"]) == 0
    return output


def test_the_page_asks_for_nothing_but_what_it_holds(page):
    assert parsed(page).asked == []
    assert "default-src 'none'" in page.read_text(encoding="utf-8")


def test_the_page_says_what_was_run_and_what_came_out(page):
    data = json.loads(parsed(page).found["study"])
    assert data["about"]["commit"] == "0123abc"
    assert data["about"]["commands"] == ["model=demo_simclr explainer=gradcam"]
    assert data["about"]["versions"] == {"twinsight": "0.1.0", "torch": "2.9.0", "python": "3.11"}
    assert data["about"]["hardware"] == ["bench, cpu"]
    groups = [group["name"] for group in data["groups"]]
    assert groups == ["demo_simclr on demo_photos", "demo_barlow_twins on demo_photos"]
    rows = [row for row in data["rows"] if row["group"] == 0]
    assert [row["title"] for row in rows if row["control"]] == ["Matched random (Grad-CAM)", "Random"]
    assert "</script><b>Own & $x_1$</b>" in [row["title"] for row in rows]
    assert data["skippedPairs"][0][1:] == ["broken.jpg", "truncated file"]
    failed = [cell for cell in data["cells"] if cell["state"] == "failed"]
    assert [cell["error"] for cell in failed] == ["RuntimeError: out of memory </script>"] * 2


def test_the_best_of_each_model_is_marked_and_controls_never_are(page):
    data = json.loads(parsed(page).found["study"])
    for group in (0, 1):
        rows = [row for row in data["rows"] if row["group"] == group]
        means = {row["title"]: row["values"]["ci"]["is"][0] for row in rows if not row["control"]}
        best = [row["title"] for row in rows if row["values"]["ci"]["best"]]
        assert best == [max(means, key=means.get)]


def test_gains_are_over_the_matched_control_of_the_same_family(page):
    data = json.loads(parsed(page).found["study"])
    row = next(row for row in data["rows"] if row["title"] == "Grad-CAM")
    control = next(row for row in data["rows"] if row["title"].startswith("Matched"))
    facts = row["values"]["cd"]
    assert facts["against"] == "Matched random (Grad-CAM)"
    assert facts["gain"][0] == pytest.approx(control["values"]["cd"]["is"][0] - facts["is"][0], abs=1e-4)


def test_maps_in_the_page_are_those_of_the_records(page):
    blocks = parsed(page).found
    data = json.loads(blocks["study"])
    for title, side in (("Grad-CAM", 8), ("SmoothGrad", 64)):
        place = next(place for place, cell in enumerate(data["cells"]) if cell["title"] == title)
        facts = data["cells"][place]["maps"][0]
        pixels = np.frombuffer(zlib.decompress(base64.b64decode(blocks[f"maps-{place}"])), np.uint8)
        shown = min(side, 32)
        for view, corner in enumerate([(0, 0), (1, 1)]):
            height, width, low, high, signed, _, _, flaw, reduced = facts[view]
            assert (height, width, signed, flaw, reduced) == (shown, shown, 0, None, int(side > 32))
            own = pixels[view * shown**2 : (view + 1) * shown**2].reshape(shown, shown)
            found = low + (own.astype(float) - 1) / 254 * (high - low)
            expected = corner_map(side, corner).numpy()
            expected = expected.reshape(shown, side // shown, shown, side // shown).mean(axis=(1, 3))
            np.testing.assert_allclose(found, expected, atol=0.003)


def test_maps_beside_the_page_are_as_large_as_the_method_made_them(page):
    text = (page.parent / "report_files" / "maps" / "pair-0-0.js").read_text()
    scene, place, content = json.loads(re.sub(r"^twinsightLarge\((.*)\)\n$", r"[\1]", text))
    assert (scene, place) == (0, 0)
    cells = json.loads(parsed(page).found["study"])["cells"]
    titles = {cells[int(key)]["title"]: maps for key, maps in content["maps"].items()}
    assert [each and each[:2] for each in titles["SmoothGrad"]] == [[64, 64]] * 2
    assert titles["Pixel invariance"][1] is None
    height, width, low, high, packed = titles["SmoothGrad"][0]
    pixels = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8).reshape(height, width)
    found = low + (pixels.astype(float) - 1) / 254 * (high - low)
    np.testing.assert_allclose(found, corner_map(64).numpy(), atol=0.003)
    assert base64.b64decode(content["views"][0])[:3] == b"\xff\xd8\xff"


def test_scales_are_those_of_the_figures_which_draw_maps_at_the_size_of_the_views(page):
    cells = json.loads(parsed(page).found["study"])["cells"]
    facts = next(cell for cell in cells if cell["title"] == "Grad-CAM")
    maps = [corner_map(8, corner)[None] for corner in ((0, 0), (1, 1))]
    drawn = [MapGeometry().resize(each, (64, 64))[0].numpy() for each in maps]
    signed, limits = shared_scale(drawn)
    assert facts["scales"][0] == pytest.approx([int(signed), *limits], rel=1e-3)
    assert facts["maps"][0][0][5:7] == pytest.approx(color_limits(drawn[0], signed=False), rel=1e-3)


def test_degenerate_maps_are_named(page):
    data = json.loads(parsed(page).found["study"])
    flaws = {cell["title"]: cell["flaws"] for cell in data["cells"] if cell["flaws"]}
    assert flaws == {"SmoothGrad": [["bull_moose.jpg", 1, "constant at 0"]]}


def test_cells_that_differ_by_their_seed_alone_are_one_row(tmp_path):
    write_study(tmp_path, seeds=(0, 1, 2), explainers=EXPLAINERS[:2])
    report = build_report(collect(["toy"], tmp_path))
    assert [(row["title"], len(row["cells"])) for row in report.data["rows"]] == [("Grad-CAM", 3), ("SmoothGrad", 3)]
    assert report.data["groups"][0]["seeds"] == 3
    assert [scene["name"][-6:] for scene in report.data["scenes"]] == ["seed 0", "seed 1", "seed 2"]
    assert report.data["rows"][0]["values"]["ci"]["is"][4] == "two-level"


def test_figures_for_print_lie_beside_the_page(tmp_path):
    write_study(tmp_path)
    assert main(["toy", "--root", str(tmp_path), "--no-full-maps"]) == 0
    folder = tmp_path / "toy" / "report_files" / "figures"
    names = {path.name for path in folder.iterdir()}
    assert {"scores.pdf", "scores.png", "curves.pdf", "rank_agreement.pdf", "sweep.pdf"} <= names
    data = json.loads(parsed(tmp_path / "toy" / "report.html").found["study"])
    assert ["Scores", "report_files/figures/scores.pdf"] in data["figures"]
    assert data["files"] is None


def test_folders_of_cells_need_no_study(toy, tmp_path):
    cells = sorted((toy / "cells").glob("*simclr-gradcam*"))
    collection = collect([str(cell) for cell in cells], tmp_path)
    assert [cell.label for cell in collection.cells] == ["gradcam"]
    assert collect([str(toy / "cells")], tmp_path).name == "14 cells"


def test_a_study_of_which_nothing_is_done_has_a_report_too(tmp_path):
    states = {each["label"]: {"state": "running"} for each in EXPLAINERS}
    write_study(tmp_path, states=states)
    report = build_report(collect(["toy"], tmp_path))
    assert report.data["rows"] == []
    assert {cell["state"] for cell in report.data["cells"]} == {"running"}
    report.write(tmp_path / "report.html")


TRAP = "${oc.create:{_target_: os.mkdir, path: sprung}}"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"_target_": "twinsight.data.ImageFolder", "root": "gone"}, "the photos are not where they were: .*gone"),
        ({"_target_": "os.system", "command": "true"}, r"photos are read by os\.system, which a report does not run"),
        ({"_target_": "twinsight.exits.os.system", "command": "touch sprung"}, r"twinsight\.exits\.os\.system, which"),
        ({"_target_": "twinsight.data.ImageFolder", "root": TRAP}, r"photos are read by .*os\.mkdir.*, which a report"),
        ({"_target_": "twinsight.data.ImageFolder", "root": {"_target_": "os.mkdir"}}, r"os\.mkdir, which a report"),
        ({"_target_": "twinsight.data.DemoPhotos", "limit": 1}, "the photos are others"),
    ],
)
def test_without_its_photos_a_report_shows_maps_alone_and_says_why(tmp_path, monkeypatch, data, reason):
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path, explainers=EXPLAINERS[:1], data=data)
    report = build_report(collect(["toy"], tmp_path))
    assert re.search(reason, report.data["scenes"][0]["missing"])
    assert not [key for key in report.blocks if key.startswith("views")]
    assert not Path("sprung").exists()


def test_a_cell_of_before_says_what_the_class_of_its_explainer_is_called(tmp_path):
    study = write_study(tmp_path, explainers=EXPLAINERS[:1])
    (cell,) = (tmp_path / "cells").iterdir()
    (cell / "metrics.json").write_text('{"not_applicable": {}}')
    assert collect([str(cell)], tmp_path).cells[0].explainer["title"] == "Grad-CAM"
    assert collect([study.name], tmp_path).cells[0].explainer["title"] == "Grad-CAM"


def test_a_cell_that_makes_images_instead_of_maps_says_where_they_are(tmp_path):
    write_study(tmp_path, explainers=[EXPLAINERS[0], explainer("feature_visualization", maps=0)])
    report = build_report(collect(["toy"], tmp_path))
    assert [cell["images"] for cell in report.data["cells"]] == [False, True]
    assert report.data["scenes"][0]["cells"] == [0]


def test_a_status_that_was_never_finished_is_none_and_a_broken_plan_is_said_to_be(tmp_path):
    study = write_study(tmp_path, explainers=EXPLAINERS[:1])
    (cell,) = (tmp_path / "cells").iterdir()
    (cell / "status.json").write_text('{"state": "do')
    assert build_report(collect(["toy"], tmp_path)).data["cells"][0]["state"] == "planned"
    (study / "plan.jsonl").write_text('{"cell": ')
    with pytest.raises(UserError, match=r"plan.jsonl cannot be read .*: plan the study again"):
        collect(["toy"], tmp_path)


def test_windows_are_spread_over_the_view_as_metrics_spread_them():
    geometry = MapGeometry("window_average", (8, 8), (4, 4), (0, 4), (0, 4))
    small = small_map(spread_map(np.array([[1.0, 0.0], [0.0, 0.0]], np.float32), geometry), signed=False)
    assert small.pixels.shape == (8, 8)
    assert (small.pixels[:4, :4] == 255).all()
    assert small.pixels[4:].max() == 1


def test_values_that_are_not_finite_are_kept_apart_from_all_others():
    pixels, low, high = eight_bits(np.array([[np.nan, np.inf, -1.0, 3.0]]))
    assert pixels.tolist() == [[0, 0, 1, 255]]
    assert (low, high) == (-1.0, 3.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "'nowhere' is neither a study in .* nor the folder of a cell .*; studies there: toy"),
        (["toy", "--output", "report.pdf"], r"`--output report.pdf` must end in .html"),
    ],
)
def test_what_cannot_be_reported_is_refused_in_one_line(toy, words, message):
    with pytest.raises(UserError, match=message):
        main([*words, "--root", str(toy)])


def test_the_licences_of_what_is_shipped_lie_beside_it():
    from importlib import resources

    vendor = resources.files("twinsight.report.html") / "assets" / "vendor"
    for library, mark in (("d3", "d3js.org v7.9.2"), ("plot", "@observablehq/plot v0.6.17")):
        assert mark in (vendor / f"{library}.min.js").read_text()[:200]
        assert "Permission to use, copy, modify" in (vendor / f"LICENSE-{library}").read_text()
    versions = yaml.safe_load((vendor / "README.yaml").read_text())
    assert {each["version"] for each in versions.values()} == {"7.9.2", "0.6.17"}


def test_the_command_line_writes_a_report_and_says_in_one_line_what_it_cannot_find(toy, tmp_path, monkeypatch, capsys):
    words = ["--root", str(toy), "--output", str(tmp_path / "report.html"), "--no-figures", "--no-full-maps"]
    monkeypatch.setattr("sys.argv", ["run.py", "report", "toy", *words])
    assert command_line.main() == 0
    assert (tmp_path / "report.html").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["run.py", "report", "tyo", *words])
    assert command_line.main() == 2
    assert capsys.readouterr().err.startswith("error: 'tyo' is neither a study")
