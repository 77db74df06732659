"""Sets of explainers: one process, a cell each, names of their own, and one picture of all."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from toy_cells import cells, composed, rows, write_photo
from twinsight.config import validate
from twinsight.errors import UserError
from twinsight.study import explain
from twinsight.study.planner import plan

PAPER = (
    *("conditional_occlusion", "context_agnostic_occlusion", "pairwise_occlusion", "gradcam"),
    *("interaction_cam_mean", "interaction_cam_max", "interaction_cam_attention", "pixel_invariance"),
    *("input_x_gradient", "input_x_gradient_g", "smoothgrad", "smoothgrad_g"),
    *("averaged_transforms", "averaged_transforms_g", "averaged_transforms_n", "averaged_transforms_gn"),
)
LABELS = ("gradcam", "random", "matched_random", "inverted", "partner_swapped", "lafam")


@pytest.fixture
def planned(photos, tmp_path):
    """``planned(*overrides)``: the plan of the cells."""

    def make(*overrides):
        config = composed(f"data.root={photos}", f"paths.output_root={tmp_path}", *overrides)
        validate(config)
        torch.manual_seed(0)  # of the untrained network's weights
        return plan(config)

    return make


@pytest.mark.parametrize("protocol", ["sound", "paper"])
def test_the_papers_set_has_the_rows_of_its_tables_in_their_order(planned, protocol):
    found = planned("explainers=paper", f"protocol={protocol}").cells
    assert tuple(cell.label for cell in found) == PAPER
    assert len({cell.digest for cell in found}) == len(PAPER)
    variants = {cell.label: cell.explainer.variant for cell in found}
    assert [variants[f"averaged_transforms{end}"] for end in ("", "_g", "_n", "_gn")] == ["", "G", "N", "G+N"]
    assert [variants[f"interaction_cam_{name}"] for name in ("mean", "max", "attention")] == [
        "mean",
        "max",
        "attention",
    ]
    by_label = {cell.label: cell.explainer for cell in found}
    resolved = by_label["smoothgrad_g"].options["guided"]
    assert resolved == {"sound": "all", "paper": "modules"}[protocol]
    assert by_label["conditional_occlusion"].protocol == protocol


def test_members_take_options_of_their_own(planned):
    overrides = ("explainers=paper", "explainers.options.smoothgrad_g.samples=3")
    samples = {
        cell.label: cell.explainer.options["samples"]
        for cell in planned(*overrides).cells
        if cell.label.startswith("smoothgrad")
    }
    assert samples == {"smoothgrad": 50, "smoothgrad_g": 3}


def test_controls_follow_the_explainer_they_are_told(planned):
    found = {cell.label: cell.explainer for cell in planned("explainers=controls", "explainers.of=gradcam").cells}
    assert list(found) == ["random", "matched_random", "inverted", "partner_swapped", "lafam"]
    assert {found[name].of.name for name in ("matched_random", "inverted", "partner_swapped")} == {"gradcam"}


def test_sets_add_up(planned):
    found = [cell.label for cell in planned("explainers=[gradcam,controls]").cells]
    assert found == ["gradcam", "random", "matched_random", "inverted", "partner_swapped", "lafam"]


CONTROLLED = {
    "occlusion": "conditional_occlusion",
    "cam": "gradcam",
    "gradient": "input_x_gradient",
    "invariance": "pixel_invariance",
}
KINDS = ("matched_random", "inverted", "partner_swapped")


def test_the_papers_table_adds_controls_of_one_explainer_of_each_family(planned):
    found = {cell.label: cell for cell in planned("experiment=paper_table").cells}
    assert list(found) == [*PAPER, "random", "lafam", *(f"{kind}_{family}" for kind in KINDS for family in CONTROLLED)]
    assert len({cell.digest for cell in found.values()}) == 30
    assert set(found["gradcam"].metrics) == {"insertion_deletion", "average_drop", "max_sensitivity"}


def test_what_is_set_for_a_row_holds_for_its_controls(planned):
    set_ = {"conditional_occlusion": "window=8", "gradcam": "form=canonical", "pixel_invariance": "epochs=10"}
    for overrides in ((), [f"explainers.options.{row}.{option}" for row, option in set_.items()]):
        found = {cell.label: cell.explainer for cell in planned("experiment=paper_table", *overrides).cells}
        for family, row in CONTROLLED.items():
            for kind in KINDS:
                assert found[f"{kind}_{family}"].options["of"] == found[row].identity()
    assert found["pixel_invariance"].options["epochs"] == 10
    cells_of = planned(
        "explainers=[gradcam,controls]", "explainers.of=gradcam", "explainers.options.gradcam.form=canonical"
    ).cells
    found = {cell.label: cell for cell in cells_of}
    for kind in KINDS:
        assert found[kind].explainer.options["of"]["options"]["form"] == "canonical"
        assert found[kind].config["explainer"]["options"]["form"] == "canonical"  # which alone gives the same cell


def test_the_papers_table_is_computed_from_its_command(photos, tmp_path):
    config = composed(
        "experiment=paper_table",
        f"data.root={photos}",
        f"paths.output_root={tmp_path}",
        "data.limit=2",
        "metrics.insertion_deletion.points=4",
        "metrics.max_sensitivity.draws=1",
        "explainers.options.conditional_occlusion.stride=22",
        "explainers.options.context_agnostic_occlusion.stride=22",
        "explainers.options.pairwise_occlusion.num_samples=4",
        "explainers.options.pixel_invariance.samples=8",
        *(f"explainers.options.{name}.samples=1" for name in ("smoothgrad", "smoothgrad_g")),
    )
    validate(config)
    assert explain(config) == 0
    (folder,) = (tmp_path / "sets").iterdir()
    lines = pq.read_table(folder / "tables" / "results.parquet").to_pylist()
    assert len(lines) == 30 * 9
    missing = {(line["row"], line["metric"]) for line in lines if line["mean"] is None}
    labels = dict.fromkeys(line["row"] for line in lines)
    assert missing == {
        *((label, metric) for label in labels for metric in ("si", "sd", "sad", "sic", "ms") if "invariance" in label),
        *((label, "ms") for label in labels if "occlusion" in label),
    }
    assert {line["gain_over"] for line in lines if line["row"] in CONTROLLED.values() and line["gain"] is not None} == {
        f"matched_random_{family}" for family in CONTROLLED
    }
    means, _ = (folder / "tables" / "results.md").read_text().split("## Gain over matched random")
    assert means.count("-<sup>") == len(missing)
    for reason in ("does not define it for occlusion", "Both views need a map"):
        assert reason in means


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Controls of Grad-CAM and a method that makes images, on two photos."""
    root = tmp_path_factory.mktemp("set")
    (root / "photos").mkdir()
    for index in range(2):
        write_photo(root / "photos" / f"{index}.png", index)
    config = composed(
        f"data.root={root / 'photos'}",
        f"paths.output_root={root / 'out'}",
        "explainers=[gradcam,controls,feature_visualization]",
        "explainers.of=gradcam",
        "explainers.options.feature_visualization.iterations=2",
        "explainers.options.feature_visualization.octaves=2",
        "pictures.limit=4",
        "logger=wandb",
        "logger.wandb.mode=offline",
    )
    assert explain(config) == 0
    return config, root / "out"


@pytest.fixture(scope="module")
def tables(run):
    _, out = run
    (folder,) = (out / "sets").iterdir()
    return folder / "tables"


def test_a_set_has_tables_of_the_members_that_have_maps(tables):
    names = {path.name for path in tables.iterdir()}
    assert names == {"results.md", "results.tex", "results.csv", "results.parquet"}  # one explainer: no comparisons
    lines = pq.read_table(tables / "results.parquet").to_pylist()
    assert tuple(dict.fromkeys(line["row"] for line in lines)) == LABELS
    assert {line["row"] for line in lines if not line["control"]} == {"gradcam"}
    controlled = {line["row"]: line["controls"] for line in lines}
    assert controlled == {
        **dict.fromkeys(("gradcam", "random", "lafam")),
        **dict.fromkeys(("matched_random", "inverted", "partner_swapped"), "gradcam"),
    }
    assert {line["family"] for line in lines if line["controls"]} == {"cam"}


def test_tables_say_what_the_records_say(run, tables):
    _, out = run
    folders = cells(out)
    for line in pq.read_table(tables / "results.parquet").to_pylist():
        values = {
            name: [record[line["metric"]] for record in rows(folders[name])] for name in folders if name in LABELS
        }
        assert line["mean"] == pytest.approx(sum(values[line["row"]]) / 2)
        spent = rows(folders[line["row"]], "timings")
        assert line["forwards"] == sum(timing["forwards"] for timing in spent) / 2
        gain = sum(own - other for own, other in zip(values["gradcam"], values["matched_random"], strict=True)) / 2
        if line["row"] == "gradcam":
            assert line["gain"] == pytest.approx(gain if line["higher_is_better"] else -gain)
            assert line["gain_over"] == "matched_random"


def test_intervals_of_a_cell_are_those_of_the_table(run, tables):
    _, out = run
    summary = json.loads((cells(out)["gradcam"] / "metrics.json").read_text())["metrics"]
    for line in pq.read_table(tables / "results.parquet").to_pylist():
        if line["row"] == "gradcam":
            facts = summary[line["metric"]]
            assert (facts["mean"], facts["low"], facts["high"]) == (line["mean"], line["low"], line["high"])
    assert set(summary["score"]) == {"mean", "std", "pairs", "low", "high"}


def test_tables_are_made_again_from_records_alone_byte_for_byte(run, tables):
    config, _ = run
    before = {path.name: path.read_bytes() for path in tables.iterdir()}
    for path in tables.iterdir():
        path.unlink()
    assert explain(config) == 0
    assert {path.name: path.read_bytes() for path in tables.iterdir()} == before


def test_two_explainers_are_compared_even_where_no_picture_is_drawn(photos, tmp_path, capsys):
    config = composed(
        f"data.root={photos}", f"paths.output_root={tmp_path}", "explainers=[gradcam,lafam,interaction_cam]"
    )
    assert explain(config) == 0
    (folder,) = (tmp_path / "sets").iterdir()
    assert not list(folder.glob("*.png"))
    names = {path.name for path in (folder / "tables").iterdir()}
    assert {"comparisons.csv", "comparisons.parquet", "rank_agreement.md", "rank_agreement.csv"} <= names
    lines = pq.read_table(folder / "tables" / "comparisons.parquet").to_pylist()
    assert {(line["first"], line["second"]) for line in lines} == {("gradcam", "interaction_cam")}
    assert str(folder / "tables") in capsys.readouterr().out


def test_one_explainer_has_no_tables_of_a_set(photos, tmp_path):
    config = composed(f"data.root={photos}", f"paths.output_root={tmp_path}", "explainers=[gradcam]", "data.limit=1")
    assert explain(config) == 0
    assert not (tmp_path / "sets").exists()
    (folder,) = cells(tmp_path).values()
    facts = json.loads((folder / "metrics.json").read_text())["metrics"]["si"]
    assert (facts["pairs"], facts["low"], facts["high"]) == (1, None, None)


def test_each_member_has_a_cell_of_its_own(run):
    _, out = run
    assert set(cells(out)) == {
        *("gradcam", "random", "matched_random", "inverted", "partner_swapped", "lafam", "feature_visualization")
    }


def test_one_picture_per_pair_shows_all_that_have_maps(run):
    _, out = run
    (folder,) = (out / "sets").iterdir()
    pictures = sorted(folder.glob("*.png"))
    assert [path.name for path in pictures] == ["00000-0.png", "00001-1.png"]
    with Image.open(pictures[0]) as image:
        assert image.width > 1000


def test_the_first_pairs_together_are_a_figure_for_screen_and_print(run):
    _, out = run
    (folder,) = (out / "sets").iterdir()
    assert sorted(path.name for path in (folder / "figures").iterdir()) == ["pairs.pdf", "pairs.png"]


def test_a_cell_says_how_to_show_it_without_its_explainer(run):
    _, out = run
    said = {name: json.loads((cell / "metrics.json").read_text())["explainer"] for name, cell in cells(out).items()}
    assert {name for name, facts in said.items() if facts["is_control"]} == set(said) - {
        "gradcam",
        "feature_visualization",
    }
    assert [name for name, facts in said.items() if facts["is_matched"]] == ["matched_random"]
    assert said["inverted"]["title"] == "Inverted (Grad-CAM)"
    assert said["inverted"]["family"] == said["gradcam"]["family"] == "cam"
    assert said["gradcam"]["geometry"]["kind"] == "stretch"
    assert said["feature_visualization"]["maps"] == 0


def test_a_method_that_makes_images_has_no_heatmap_metrics_and_says_why(run):
    _, out = run
    folder = cells(out)["feature_visualization"]
    record = rows(folder)[0]
    assert "si" not in record
    assert "score" in record
    summary = json.loads((folder / "metrics.json").read_text())
    assert set(summary["not_applicable"]) == {"si", "sd", "ci", "cd", "sad", "sic", "cad", "cic"}
    assert set(summary["not_applicable"].values()) == {"the method makes images, not maps"}
    arrays = rows(folder, "arrays")[0]
    assert any(name.startswith("image_") for name in arrays)
    assert any(name.startswith("trace_") for name in arrays)


def test_made_images_have_a_picture_and_an_animation(run):
    _, out = run
    folder = cells(out)["feature_visualization"]
    assert len(list((folder / "pictures").glob("*.png"))) == 2
    films = list((folder / "animations").glob("*.gif"))
    assert len(films) == 2
    with Image.open(films[0]) as film:
        assert film.n_frames > 1


def test_animations_are_logged_as_videos(run):
    _, out = run
    assert len(list((out / "wandb").glob("offline-run-*/files/media/videos/**/*.gif"))) == 2


def test_changing_metrics_makes_no_images_again(planned):
    one = planned("explainer=feature_visualization").cells[0]
    other = planned("explainer=feature_visualization", "metrics.insertion_deletion.points=4").cells[0]
    maps = [planned(*more).cells[0] for more in ((), ("metrics.insertion_deletion.points=4",))]
    assert one.digest == other.digest
    assert maps[0].digest != maps[1].digest


def test_the_table_names_the_members_and_what_was_left_out(run, capsys):
    config, out = run
    assert explain(config) == 0
    shown = capsys.readouterr().out
    for label in OmegaConf.to_container(config.explainers.options):
        assert f"{label}: computed before" in shown
    assert "feature_visualization: SI, SD, CI, CD, SAD, SIC, CAD, CIC left out: the method makes images" in shown
    (folder,) = (out / "sets").iterdir()
    assert str(folder) in shown


def test_a_member_that_does_not_fit_the_model_is_left_out_and_the_others_run(tiny, capsys):
    config = tiny(
        "explainers=[gradcam,input_x_gradient,partner_swapped]",
        "explainers.options.input_x_gradient.guided=all",
        "data.limit=1",
        model={"_target_": "toy_cells.gelu_model", "input_size": 32},
    )
    assert explain(config) == 0
    shown = capsys.readouterr().out
    assert set(cells(config.paths.output_root)) == {"gradcam"}
    assert "left out input_x_gradient: `guided=all` needs ReLUs, and this network has others too (gelu)" in shown
    assert "left out partner_swapped: partner_swapped explains against another photo" in shown


def test_alone_or_all_together_what_does_not_fit_is_an_error(tiny):
    for chosen in ("explainer=partner_swapped", "explainers=[partner_swapped]"):
        with pytest.raises(UserError, match="partner_swapped explains against another photo: it needs two photos"):
            explain(tiny(chosen, "data.limit=1"))


def test_gradients_cost_in_a_run_what_they_cost_alone(tiny):
    config = tiny("explainer=input_x_gradient", "data.limit=2", metrics={})
    assert explain(config) == 0
    timings = rows(cells(config.paths.output_root)["input_x_gradient"], "timings")
    assert [(row["forwards"], row["backwards"]) for row in timings] == [(2, 2)] * 2
