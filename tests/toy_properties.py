"""Tests of properties that Hypothesis looks for examples against: few, always the same; many where slow ones run."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings


def holds_for(few: int, many: int, **strategies: Any) -> Callable[[Callable[..., None]], Callable[[int], None]]:
    """Make a test of a function that asserts what holds for everything that ``strategies`` draw."""

    def made(holds: Callable[..., None]) -> Callable[[int], None]:
        @pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])
        def test(examples: int) -> None:
            chosen = settings(
                max_examples=examples,
                derandomize=examples == few,
                database=None,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow],
            )
            chosen(given(**strategies)(holds))()

        test.__name__ = holds.__name__
        return test

    return made
