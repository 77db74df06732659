"""Localisation and sanity checks through a cell: from mosaics and overlapping crops to records, means and pictures."""

import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

import twinsight.study.pictures as drawing
from toy_cells import cells, only_cell, rows, write_photo
from twinsight.data import PairDataset, SharedObject
from twinsight.errors import UserError
from twinsight.explainers import GradCAM
from twinsight.metrics import FURTHER_METRICS
from twinsight.metrics.functional import cascading_randomization, localization, overlap_agreement, partner_sensitivity
from twinsight.models import small_two_view
from twinsight.study import explain
from twinsight.study.planner import plan

ALL = "metrics=[default,localization,sanity]"
FEW = "metrics.cascading_randomization.stages=3"


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """A folder of eight photos."""
    folder = tmp_path_factory.mktemp("eight")
    for index in range(8):
        write_photo(folder / f"photo{index}.png", index)
    return folder


@pytest.fixture
def mosaics(tiny, eight):
    """``mosaics(*overrides)``: configuration of a tiny cell on three mosaics of 32 pixels."""

    def make(*overrides):
        node = {"_target_": "twinsight.data.SharedObject", "root": str(eight), "tile": 16, "limit": 3}
        return tiny("views=whole", ALL, FEW, *overrides, data=node)

    return make


def test_records_hold_what_the_functions_say_of_each_pair(mosaics, eight):
    config = mosaics("explainer=gradcam")
    assert explain(config) == 0
    pl.seed_everything(config.seed, verbose=False)  # as the run did, for the untrained network
    planned = plan(config)
    explainer = planned.cells[0].explainer
    photos = SharedObject(eight, tile=16, limit=3)
    pairs = PairDataset(photos, planned.views, planned.model.normalization, config.seed)
    records = rows(only_cell(config))
    for record, batch in zip(records, map(pairs.__getitem__, range(3)), strict=True):
        explanation = explainer(batch.view1, batch.view2, seeds=batch.seeds)
        maps = explanation.resized((32, 32))
        expected = [
            localization(*maps, batch.regions),
            overlap_agreement(*maps, batch.regions),
            cascading_randomization(explainer, batch.view1, batch.view2, stages=3, seeds=batch.seeds),
            partner_sensitivity(explainer, batch.view1, batch.view2, batch.partner_view2, seeds=batch.seeds),
        ]
        for name in FURTHER_METRICS:
            (value,) = [getattr(result, name).item() for result in expected if hasattr(result, name)]
            assert record[name] == pytest.approx(value, nan_ok=True, abs=1e-6), name
        assert tuple(record["region1"]) == batch.regions[0].box1
        assert tuple(record["region2"]) == batch.regions[0].box2
        assert record["region_share"] == 0.25


def test_means_and_curves_are_kept_and_the_table_shows_what_was_chosen(mosaics, capsys):
    config = mosaics("explainer=lafam")
    assert explain(config) == 0
    output = capsys.readouterr().out
    for name, metric in FURTHER_METRICS.items():
        assert name.upper() + ("↑" if metric.higher_is_better else "↓") in output
    records, folder = rows(only_cell(config)), only_cell(config)
    summary = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert summary["rank_accuracy"]["mean"] == pytest.approx(np.mean([row["rank_accuracy"] for row in records]))
    assert summary["partner_sensitivity"]["mean"] == pytest.approx(0, abs=1e-6)
    for row in rows(folder, "arrays"):
        assert row["randomization1_shape"] == [3]
        assert row["curve_si_shape"] == [9]


def test_without_them_tables_and_hashes_are_as_before(mosaics, tiny, capsys):
    assert explain(tiny("explainer=gradcam", "data.limit=1")) == 0
    assert "POINTING_GAME" not in capsys.readouterr().out


def test_options_enter_the_hash_and_what_belongs_to_the_pair_does_not(mosaics):
    (cell,) = plan(mosaics("explainer=gradcam")).cells
    metrics = cell.identity["metrics"]
    assert metrics["localization"]["options"] == {}
    assert metrics["overlap_agreement"]["options"] == {"minimum": 0.0625}
    assert metrics["cascading_randomization"]["options"] == {"stages": 3, "absolute": False, "seed": 0}
    assert metrics["partner_sensitivity"]["options"] == {"absolute": False}
    (other,) = plan(mosaics("explainer=gradcam", "metrics.cascading_randomization.seed=1")).cells
    (sized,) = plan(mosaics("explainer=gradcam", "+metrics.localization.size=[16,16]")).cells
    assert len({cell.digest, other.digest, sized.digest}) == 3


def test_options_out_of_range_are_refused_before_anything_runs(mosaics):
    with pytest.raises(UserError, match="`stages` must be at least 1, got 0"):
        explain(mosaics("metrics.cascading_randomization.stages=0"))


def test_methods_of_one_map_leave_the_agreement_out_and_say_why(mosaics):
    config = mosaics("explainers=[pixel_invariance,lafam]", "explainers.options.pixel_invariance.epochs=1")
    planned = {cell.label: cell for cell in plan(config).cells}
    assert "overlap_agreement" not in planned["pixel_invariance"].metrics
    assert "the method makes one" in planned["pixel_invariance"].not_applicable["overlap_agreement"]
    assert set(planned["lafam"].metrics) >= {"localization", "overlap_agreement", "partner_sensitivity"}


def test_batches_workers_and_sets_change_nothing(mosaics):
    config = mosaics("explainers=[gradcam,lafam]", "loader.batch_size=3", "loader.num_workers=1")
    assert explain(config) == 0
    single = mosaics("explainer=gradcam")
    assert explain(single) == 0
    assert rows(cells(config.paths.output_root)["gradcam"]) == rows(only_cell(single))


def test_crops_of_one_photo_agree_where_they_overlap(tiny):
    config = tiny("explainer=lafam", ALL, FEW)
    assert explain(config) == 0
    records = rows(only_cell(config))
    shown = [row for row in records if row["region1"] is not None]
    assert shown
    for row in records:
        assert (row["overlap_share"] > 0) == (row["region1"] is not None)
        assert np.isnan(row["overlap_agreement"]) == (row["overlap_share"] < 1 / 16)


def test_pictures_show_each_view_of_its_own_photo(mosaics, monkeypatch):
    drawn = []
    genuine = drawing.draw_pair

    def recording(view1, view2, *args, **kwargs):
        drawn.append((view1, view2))
        return genuine(view1, view2, *args, **kwargs)

    monkeypatch.setattr(drawing, "draw_pair", recording)
    config = mosaics("explainer=lafam", "pictures.limit=1")
    assert explain(config) == 0
    planned = plan(config)
    ((view1, view2),) = drawn
    for view, photo in zip((view1, view2), planned.photos.load_pair(0), strict=True):
        np.testing.assert_allclose(view, np.asarray(photo) / 255, atol=1 / 255)
    assert not np.array_equal(view1, view2)


def test_a_metric_of_ones_own_gets_what_its_signature_names(tiny):
    config = tiny(
        "explainer=gradcam",
        "data.limit=2",
        metrics={"mine": {"_target_": "test_ground_truth.mine", "_partial_": True, "power": 2}},
    )
    assert explain(config) == 0
    for row in rows(only_cell(config)):
        assert row["mine"] == pytest.approx((32 * row["view1_box"][2]) ** 2)


def mine(geometry, size, power):
    """Side of a view times height of the first crop, to a power."""
    return torch.tensor([float(size[0] * first.box[2]) ** power for first, _ in geometry])


def test_an_explainer_on_another_network_explains_it():
    views = torch.rand(2, 1, 3, 32, 32)
    first, second = (small_two_view(widths=(8, 16), blocks=1, input_size=32) for _ in range(2))
    assert torch.equal(GradCAM(first).on(second)(*views).map1, GradCAM(second)(*views).map1)
