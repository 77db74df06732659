"""The published figures: complete, transcribed right, and beside ours."""

import csv
import io

import pytest
from omegaconf import OmegaConf
from scipy.stats import spearmanr

from twinsight.config import conf_folder
from twinsight.report import PUBLISHED, Results, ResultTable, Row, Run, beside_published
from twinsight.report.writers import write_tables

METRICS = ["si", "sd", "ci", "cd", "sad", "sic", "cad", "cic", "ms"]
OCCLUSIONS = ["conditional_occlusion", "context_agnostic_occlusion", "pairwise_occlusion"]


def table(model_rows):
    rows = []
    for label, values in model_rows.items():
        records = [
            {
                "index": place,
                "pair_id": str(place),
                "skipped": None,
                **{name: one[place] for name, one in values.items()},
            }
            for place in range(2)
        ]
        rows.append(Row(label, label.title(), [Run(records)]))
    return Results(rows, resamples=99)


@pytest.mark.parametrize("model", PUBLISHED)
def test_rows_are_those_of_the_papers_set_in_its_order(model):
    composed = OmegaConf.load(conf_folder() / "explainers" / "paper.yaml")
    names = [next(iter(entry)).split("@options.")[1] for entry in composed.defaults if entry != "_self_"]
    assert list(PUBLISHED[model]) == names


@pytest.mark.parametrize("model", PUBLISHED)
def test_cells_are_missing_where_the_paper_has_none(model):
    missing = {label: [name for name in METRICS if name not in row] for label, row in PUBLISHED[model].items()}
    assert {label: names for label, names in missing.items() if names} == {
        **{label: ["ms"] for label in OCCLUSIONS},
        "pixel_invariance": ["si", "sd", "sad", "sic", "ms"],
    }
    assert all(0 <= value <= 1 for row in PUBLISHED[model].values() for name, value in row.items() if name != "ms")


@pytest.mark.parametrize(("model", "expected"), [("simclrv2_r50_2x", 0.96), ("barlow_twins", 0.88)])
def test_good_insertion_goes_with_bad_deletion_as_the_specification_says(model, expected):
    both = [(row["si"], row["sd"]) for row in PUBLISHED[model].values() if "si" in row]
    assert len(both) == 15
    assert spearmanr(both).statistic == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("model", "label", "metric", "value"),
    [
        ("simclrv2_r50_2x", "averaged_transforms_g", "si", 0.907),
        ("simclrv2_r50_2x", "interaction_cam_attention", "ms", 18.81),
        ("simclrv2_r50_2x", "pixel_invariance", "cic", 0.8),
        ("barlow_twins", "input_x_gradient_g", "ms", 578.03),
        ("barlow_twins", "conditional_occlusion", "sd", 0.424),
        ("barlow_twins", "averaged_transforms_gn", "cad", 0.936),
    ],
)
def test_single_figures(model, label, metric, value):
    assert PUBLISHED[model][label][metric] == value


def test_sums_of_columns():
    # Added by hand from the paper's tables.
    assert sum(row["ci"] for row in PUBLISHED["simclrv2_r50_2x"].values()) == pytest.approx(10.490)
    assert sum(row["ci"] for row in PUBLISHED["barlow_twins"].values()) == pytest.approx(9.093)


def test_ours_stand_beside_the_published_figures():
    results = table({"gradcam": {"si": [0.7, 0.9], "ci": [0.663, 0.663]}, "mine": {"si": [0.1, 0.2]}})
    found = beside_published(ResultTable.of(results), "simclrv2_r50_2x")
    assert found.markdown() == (
        "## Beside the paper: SimCLRv2, ResNet-50 2x\n\n"
        "Ours / published (difference). Bold: the published figure lies outside our interval. The paper's images "
        "and their number are not published; protocol=paper computes what its code computes.\n\n"
        "| Explainer | SI ↑ | CI ↑ |\n|---|---:|---:|\n"
        "| Gradcam | 0.800 / 0.798 (+0.002) | 0.663 / 0.663 (0.000) |\n"
    )
    assert found.long()[0]["difference"] == pytest.approx(0.002)


def test_a_figure_outside_our_interval_is_bold():
    results = table({"gradcam": {"si": [0.1, 0.2]}})
    assert "| **0.150 / 0.683** (-0.533) |" in beside_published(ResultTable.of(results), "barlow_twins").markdown()


@pytest.mark.parametrize(("label", "model"), [("gradcam", "demo_simclr"), ("gradcam", None), ("mine", "barlow_twins")])
def test_there_is_nothing_beside_what_was_not_published(label, model, tmp_path):
    results = table({label: {"si": [0.1, 0.2]}})
    assert beside_published(ResultTable.of(results), model) is None
    (tmp_path / "published.md").write_text("of an earlier model")
    write_tables(results, tmp_path, model)
    assert not (tmp_path / "published.md").exists()


def test_the_second_table_is_written_for_a_published_model(tmp_path):
    write_tables(table({"gradcam": {"si": [0.1, 0.2]}}), tmp_path, "barlow_twins")
    (line,) = csv.DictReader(io.StringIO((tmp_path / "published.csv").read_text()))
    assert (line["row"], line["metric"], float(line["published"]), int(line["n"])) == ("gradcam", "si", 0.683, 2)
    assert (tmp_path / "published.md").read_text().startswith("## Beside the paper: Barlow Twins")
