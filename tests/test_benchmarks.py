"""What `make bench` reads off its measurements; it takes too long to run here."""

from pathlib import Path

import pytest
import torch

from twinsight.engine import Execution
from twinsight.models import small_two_view


@pytest.mark.parametrize(("precision", "cones"), [("fp32", 1), ("bf16", 0)])
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
    assert sum("by cones" in each["item"] for each in rows) == cones
    rows += [paper_table(rows, approximate) for approximate in (False, True)]
    assert all(each["ratio"] > 0 for each in rows)
    facts = {"date": "today", "processor": "some", "device": "cpu", "threads": 1, "torch": "2", "load": None}
    facts |= {"command": "bench", "matrix_product_peak": 1e9, "finished": True, "minutes": 24.6, "peers": {}}
    facts["arguments"] = {"repeats": 1, "precision": precision, "compile": False}
    said = page({"facts": facts, "rows": rows, "failed": []})
    assert "It took 25 minutes." in said
    assert all(f"| {each['item']} |" in said for each in rows)
