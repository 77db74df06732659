"""A cell: one model, one data set, one explainer, its metrics; named by what decides its result."""

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from twinsight.explainers import Explainer

RESULT_VERSION = 8
"""Raised when a change of the code changes results; part of every cell's hash."""

Metric = Callable[..., Any]

OF_THE_PAIR = (
    *("model", "explainer", "view1", "view2", "map1", "map2", "explanation"),
    *("partner_view2", "geometry", "regions", "size", "seeds", "bank"),
)
"""Arguments of a metric that a run gives, of those that its signature names; all others are options of the cell."""


def asked_of_the_pair(metric: Metric) -> list[str]:
    """Which of ``OF_THE_PAIR`` a metric takes by name.

    >>> from twinsight.metrics.functional import localization
    >>> asked_of_the_pair(partial(localization, size=(8, 8)))
    ['map1', 'map2', 'regions']
    """
    bound = metric.keywords if isinstance(metric, partial) else {}
    return [name for name in inspect.signature(metric).parameters if name in OF_THE_PAIR and name not in bound]


@dataclass
class Cell:
    """One explainer on one data set and model.

    Attributes:
        explainer: built on the model.
        metrics: functionals of ``twinsight.metrics.functional`` with their options bound, by name; those of which
            some column makes sense for the explainer.
        identity: everything that decides the result, as plain containers.
        config: the composed configuration, for the reader.
        root: folder that cells are written below.
        label: what the explainer is called in tables: its name in a set, which may hold several of one class.
        not_applicable: columns of the chosen metrics that make no sense for the explainer, and why.
    """

    explainer: Explainer
    metrics: dict[str, Metric]
    identity: dict[str, Any]
    config: dict[str, Any]
    root: Path
    label: str
    not_applicable: dict[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Readable and unique: data, model, explainer and the first ten digits of the digest."""
        parts = (self.identity[key]["name"] for key in ("data", "model", "explainer"))
        return "-".join((*parts, self.digest[:10]))

    @property
    def folder(self) -> Path:
        return self.root / "cells" / self.name
