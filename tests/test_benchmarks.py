"""What `make bench` reads off its measurements; it takes too long to run here."""

from pathlib import Path

import pytest
import torch

from twinsight.engine import Execution
from twinsight.models import small_two_view


@pytest.mark.parametrize(("precision", "cones"), [("fp32", True), ("bf16", False)])
def test_every_row_can_be_read_and_the_papers_table_put_together(monkeypatch, precision, cones):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from benchmarks.items import items, setting_for
    from benchmarks.measure import Passes, Timing
    from benchmarks.report import page, paper_table, row

    model = small_two_view(widths=(4, 8), blocks=1, input_size=224).eval()
    views = torch.rand(2, 1, 3, 224, 224)
    setting = setting_for(model, (views[0], views[1]), 16, quick=True, execution=Execution(precision))
    rows = []
    for each in items(setting):
        seconds = {name: 1.0 + place for place, name in enumerate(each.works)}
        timings = {name: Timing([second], Passes(1), 0.5, 2**20) for name, second in seconds.items()}
        for compared in each.rows:
            rows.append(row("tiny", compared, timings, flops=1.0, peak=1.0))
            assert rows[-1]["ratio"] == seconds[compared.other] / seconds[compared.ours]
    by_name = {each["item"]: each for each in rows}
    assert ("Conditional occlusion, engine.incremental=true" in by_name) == cones
    # Both occlusions, pairwise, CAMs; input x gradient, SmoothGrad twice, averaged transforms in two pairs: 1 s each.
    explained = 3 + 2 + 2 + 4
    dense = by_name["Conditional occlusion, engine.incremental=false"]["seconds"]
    rows += [paper_table(rows, approximate) for approximate in (False, True)]
    for table, curves in ((rows[-2], 1), (rows[-1], 3)):  # adaptive curves are the third hand's
        assert table["seconds"] == pytest.approx(explained + dense * 1001 / 884 + 16 * (curves + 1))
        assert table["other_seconds"] == pytest.approx(2 * explained + 2 * 2000 / 884 + 16 * (2 + 2))
    facts = {"date": "today", "processor": "some", "device": "cpu", "threads": 1, "torch": "2", "load": None}
    facts |= {"command": "bench", "matrix_product_peak": 1e9, "finished": True, "minutes": 24.6, "peers": {}}
    facts["arguments"] = {"repeats": 1, "quick": False, "precision": precision, "compile": False}
    said = page({"facts": facts, "rows": rows, "failed": []})
    assert "It took 25 minutes." in said
    assert all(f"| {each['item']} |" in said for each in rows)


def test_short_works_take_more_rounds_in_turn(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from benchmarks import measure

    monkeypatch.setattr(measure, "matrix_product_peak", lambda device, repeats: 1.0)
    turns = []

    def run(name):
        turns.append(name)
        return measure.Passes(1)

    works = {name: measure.Work(lambda name=name: run(name), measure.Passes(2)) for name in ("ours", "theirs")}
    for seconds, rounds in ((3600, 2 * measure.MOST_ROUNDS), (0, 2)):
        monkeypatch.setattr(measure, "SHORT_SECONDS", seconds)
        turns.clear()
        timings, _ = measure.interleaved(works, 2, torch.device("cpu"))
        assert [len(each.seconds) for each in timings.values()] == [rounds, rounds]
        assert turns == ["ours", "theirs"] * (rounds + 1)  # the first of all is not timed


def test_a_slice_is_what_the_whole_is_made_of(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from benchmarks.items import items, setting_for

    model = small_two_view(widths=(4, 8), blocks=1, input_size=224).eval()
    views = torch.rand(2, 1, 3, 224, 224)
    works = [
        work for each in items(setting_for(model, (views[0], views[1]), 16, quick=True)) for work in each.works.values()
    ]
    counted = [work for work in works if work.whole is not None and work.padded is None]
    assert len(counted) > 12
    for work in counted:
        done, whole = work.run(), work.whole
        assert 0 < done.total <= whole.total
        assert done.forwards * whole.backwards == done.backwards * whole.forwards


def test_approximate_curves_are_told_area_by_area(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from benchmarks.approximations import LOOSER, TOLERANCE, summary

    errors = ([0.001, 0.0, 0.001, 0.0, 0.0, 0.0], [0.003, 0.001, 0.0, 0.0, 0.0, 0.0])
    sets = [
        {"tolerance": tolerance, "points": points, "errors": each, "bound": tolerance}
        for tolerance in (TOLERANCE, LOOSER)
        for points, each in zip((0.2, 0.4), errors, strict=True)
    ]
    occlusion = [{"windows": 0.5, "correlation": 0.9}, {"windows": 0.25, "correlation": 1.0}]
    said = summary({"pairs": 1, "coarse": 2, "curves": sets, "occlusion": occlusion})
    curves = "30% of the points on average; areas off by 0.0005 on average and 0.0030 at most, 91.7% of 12 within"
    assert f"on 1 pair. Curves at a tolerance of 0.002: {curves} 0.002; of 2 sets of 6, 1 with an area beyond" in said
    assert f"a tolerance of 0.0034: {curves} 0.002; of 2 sets of 6, 0 with an area beyond" in said
    assert "2 maps: 62% of the windows saved; rank correlation with the whole map 0.950 on average, 0.900" in said
