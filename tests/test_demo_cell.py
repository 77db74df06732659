"""`python run.py` gives the numbers that it gave before: an upgrade of a dependency that moves them is noticed.

Where a tolerance is passed on purpose, `python tests/demo_cell.py` locks the new numbers, and the changelog says why
they are new.
"""

import json
import re

import pytest

from demo_cell import LOCKED, run_demo_cell

TOLERANCES = {
    r"map\d": 1e-3,  # they are kept in half precision
    # Rounding decides which of two nearly equal pixels comes first. Other kernels moved areas by up to 6e-5, and these
    # by up to 3e-3, which divide by the gap between both ends of a curve.
    r"(s|c)(i|d)\d?_normalized": 1e-2,
    r"(s|c)(i|d)\d?|srg.*": 2e-4,
    "": 1e-5,
}


def same(name, found, locked):
    tolerance = next(value for pattern, value in TOLERANCES.items() if not pattern or re.fullmatch(pattern, name))
    if isinstance(locked, list):
        return list(found) == pytest.approx(locked, rel=0, abs=tolerance * max(map(abs, locked), default=0))
    if isinstance(locked, float):
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
