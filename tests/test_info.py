"""``twinsight info``, and the tables of the documentation that are made from it."""

import re
from pathlib import Path

import pytest

from twinsight import info
from twinsight.config import options
from twinsight.explainers import EXPLAINERS
from twinsight.metrics import ALL_METRICS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def config():
    return info._composed(["model=small_two_view", "model.input_size=32", "views.size=32"])


def test_every_explainer_file_is_a_row_with_a_cost(config):
    table = info.explainers(config)
    assert [row[0] for row in table.rows] == [
        name for name in options("explainer") if (info.conf_folder() / "explainer" / f"{name}.yaml").exists()
    ]
    assert {row[0] for row in table.rows} <= set(EXPLAINERS)
    costs = {row[0]: row[3] for row in table.rows}
    assert costs["gradcam"] == "2 F"
    assert costs["conditional_occlusion"] == "1154 F"  # windows of 9, stride 1: 24 x 24 positions per view
    assert costs["input_x_gradient"] == "2 F + 2 b"


def test_costs_are_those_of_the_paper_at_its_size():
    table = info.explainers(
        info._composed(["model=small_two_view", "model.input_size=224", "views.size=224", "protocol=paper"])
    )
    costs = {row[0]: row[3] for row in table.rows}
    # SPEC section 6, the least an exact implementation needs, with the views' own two forwards.
    assert costs["conditional_occlusion"] == "884 F"
    assert costs["context_agnostic_occlusion"] == "1766 F"
    assert costs["pairwise_occlusion"] == "202 F"
    assert costs["smoothgrad"] == "102 F + 100 b"


def test_methods_of_one_map_and_of_none_say_which_metrics_they_miss(config):
    metrics = {row[0]: row[4] for row in info.explainers(config).rows}
    assert metrics["gradcam"] == "all"
    assert metrics["pixel_invariance"].startswith("CI CD CAD CIC (both views need a map")
    assert metrics["feature_visualization"] == "none (the method makes images, not maps)"


def test_metrics_models_and_data_sets_are_complete(config):
    assert [row[0].lower() for row in info.metrics(config).rows] == list(ALL_METRICS)
    models = {row[0] for row in info.models(config).rows}
    assert set(options("model")) <= models
    assert {row[0] for row in info.datasets(config).rows} == set(options("data"))
    for name, make in info.TABLES.items():
        for row in make(config).rows:
            assert all(row), (name, row)


def test_options_of_the_chosen_explainer_count(capsys):
    info.show(["explainers", "explainer=smoothgrad", "explainer.samples=10", "--markdown"])
    assert "| smoothgrad | SmoothGrad | gradient | 22 F + 20 b |" in capsys.readouterr().out


def test_costs_of_published_models_need_no_weights(capsys):
    assert info.show(["explainers", "model=simclrv2_r50_1x", "views.size=224", "--markdown"]) == 0
    assert "| gradcam | Grad-CAM | cam | 2 F | all |" in capsys.readouterr().out


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_tables_in_the_documentation_are_up_to_date(page):
    """`make tables` writes them."""
    text = page.read_text()
    assert info.documented(text) == text


def test_every_explainer_has_a_section_and_a_picture_where_a_demo_network_can_be_explained(config):
    page = (DOCS / "explainers.md").read_text()
    for row in info.explainers(config).rows:
        assert f"\n### `{row[0]}`\n" in page, row[0]
        picture = f"images/explainers/{row[0]}.jpg"
        if "vision transformer" not in row[3]:
            assert f"]({picture})" in page, row[0]
            assert (DOCS / picture).exists(), row[0]


def test_every_metric_has_a_section():
    headings = re.findall(r"^## .*: (.+)$", (DOCS / "metrics.md").read_text(), re.MULTILINE)
    assert {name.lower() for heading in headings for name in heading.split(", ")} == set(ALL_METRICS)


def test_the_documentation_has_every_table():
    begun = {
        name
        for page in DOCS.glob("*.md")
        for name in re.findall(r"<!-- begin table: (\w+) \(make tables\)", page.read_text())
    }
    assert begun == set(info.TABLES)
