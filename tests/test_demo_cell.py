"""`python run.py` gives the numbers that it gave before: an upgrade of a dependency that moves them is noticed.

With AVX2 instead of AVX-512, or another number of threads, they move by less than 1e-6, normalised areas by 6e-5 of
their size: these divide by the gap between both ends of a curve, which may be 1e-3. Where the tolerance is passed on
purpose, `python tests/demo_cell.py` locks the new numbers, and the changelog says why they are new.
"""

import json

import pytest

from demo_cell import LOCKED, run_demo_cell

TOLERANCE, TOLERANCE_OF_NORMALIZED = 1e-5, 1e-3


def same(name, found, locked):
    if isinstance(locked, list):
        return len(found) == len(locked) and all(same(name, *each) for each in zip(found, locked, strict=True))
    if isinstance(locked, float):
        tolerance = TOLERANCE_OF_NORMALIZED if name.endswith("_normalized") else TOLERANCE
        return found == pytest.approx(locked, rel=tolerance, abs=tolerance)
    return found == locked


def test_the_demo_cell_gives_the_locked_numbers(tmp_path):
    found, locked = run_demo_cell(tmp_path), json.loads(LOCKED.read_text(encoding="utf-8"))
    assert [list(each) for each in found] == [list(each) for each in locked]
    moved = [
        f"{other['pair_id']}: {name} is {one[name]}, was {other[name]}"
        for one, other in zip(found, locked, strict=True)
        for name in other
        if not same(name, one[name], other[name])
    ]
    assert not moved
