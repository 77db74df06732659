"""A cell: one model, one data set, one explainer, its metrics; named by what decides its result."""

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from twinsight.data import Photos
from twinsight.errors import NotApplicable, UserError
from twinsight.explainers import Explainer
from twinsight.files import write_json
from twinsight.metrics import ALL_METRICS
from twinsight.models import TwoViewModel, weights_digest
from twinsight.naming import snake_case
from twinsight.protocol import resolve

RESULT_VERSION = 2
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

    def status(self) -> dict[str, Any]:
        """What ``status.json`` says; state ``"planned"`` where there is none."""
        path = self.folder / "status.json"
        return json.loads(path.read_text()) if path.exists() else {"state": "planned"}

    def set_status(self, state: str, **facts: Any) -> None:
        """States are running, finished, failed, interrupted."""
        write_json(self.folder / "status.json", {"state": state, "cell": self.name, **facts})


@dataclass
class Plan:
    """What a run will do, built and checked before any heavy work; ``left_out`` says which members of a set it will not
    do, and why."""

    model: TwoViewModel
    photos: Photos
    views: Any
    cells: list[Cell]
    left_out: dict[str, str]


def plan(config: DictConfig) -> Plan:
    """Build everything that ``config`` names and the cells that follow from it.

    Raises:
        UserError: anything does not fit; nothing has been written then.
    """
    model = hydra.utils.instantiate(config.model)
    photos = hydra.utils.instantiate(config.data)
    views = hydra.utils.instantiate(config.views)
    metrics = {name: hydra.utils.instantiate(node) for name, node in (config.metrics or {}).items()}
    identities = {name: _metric_identity(metric, views.size) for name, metric in metrics.items()}
    members = config.explainers.options if config.explainers else None
    chosen = members or {"explainer": config.explainer}
    composed = OmegaConf.to_container(config, resolve=True)
    assert isinstance(composed, dict)
    shared = {
        "version": RESULT_VERSION,
        "model": _model_identity(composed["model"], model),
        "data": {"name": snake_case(type(photos).__name__), "photos": len(photos), "digest": photos.digest()},
        "views": composed["views"],
        "seed": config.seed,
        "chunk_size": config.engine.chunk_size,
        "precision": str(composed["trainer"].get("precision") or "32-true"),
    }
    for key, least in (("engine.chunk_size", 1), ("pictures.limit", 0), ("pictures.side", 1)):
        if OmegaConf.select(config, key) < least:
            raise UserError(f"`{key}` must be at least {least}, got {OmegaConf.select(config, key)}")
    cells, left_out = [], {}
    for name, node in chosen.items():
        try:
            explainer = _explainer(name, node, model, len(photos))
        except NotApplicable as error:
            if len(chosen) == 1:
                raise
            left_out[name] = str(error)
            continue
        explainer.geometry((views.size, views.size))  # a window larger than the view fails here
        applicable = {key: metric for key, metric in metrics.items() if _applies(metric, explainer)}
        # A change of the others is no reason to explain again.
        identity = {
            **shared,
            "metrics": {key: identities[key] for key in applicable},
            "explainer": explainer.identity(),
        }
        frozen = {**composed, "explainer": OmegaConf.to_container(node, resolve=True), "explainers": None}
        cells.append(
            Cell(
                explainer,
                applicable,
                _plain(identity),
                frozen,
                root=Path(config.paths.output_root),
                label=name if members else explainer.name,
                not_applicable=_not_applicable(explainer, metrics.values()),
            )
        )
    if not cells:
        raise UserError("no member of the set fits: " + "; ".join(f"{name}: {why}" for name, why in left_out.items()))
    return Plan(model, photos, views, cells, left_out)


def _explainer(name: str, node: DictConfig, model: TwoViewModel, photos: int) -> Explainer:
    try:
        explainer = hydra.utils.instantiate(node, model=model)
    except InstantiationException as error:
        if isinstance(error.__cause__, NotApplicable):
            raise error.__cause__ from None
        raise
    if not isinstance(explainer, Explainer):
        raise UserError(f"`{name}._target_` must build an Explainer, got {type(explainer).__name__}")
    if explainer.needs_partner and photos < 2:
        raise NotApplicable(f"{name} explains against another photo: it needs two photos at least (data.limit)")
    return explainer


def _model_identity(node: Mapping[str, Any], model: TwoViewModel) -> dict[str, Any]:
    # The digest says which weights; where they lay does not matter.
    options = {key: value for key, value in node.items() if key != "checkpoint"}
    name = str(node.get("name") or node["_target_"].rsplit(".", 1)[-1])
    return {"name": name, "options": options, "weights": weights_digest(model)}


def _not_applicable(explainer: Explainer, metrics: Iterable[Metric]) -> dict[str, str]:
    """Columns of ``metrics`` that make no sense for ``explainer``, in the order of the paper's tables, and why."""
    chosen = {column for metric in metrics for column in _columns(metric)}
    reasons = {name: metric.why_not(explainer) for name, metric in ALL_METRICS.items() if name in chosen}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _applies(metric: Metric, explainer: Explainer) -> bool:
    """Whether any column of ``metric`` makes sense; one that does not declare its columns needs maps."""
    columns = _columns(metric)
    return explainer.maps > 0 and (not columns or set(columns) > set(_not_applicable(explainer, [metric])))


def _columns(metric: Metric) -> tuple[str, ...]:
    return tuple(getattr(getattr(metric, "func", metric), "columns", ()))


def _metric_identity(metric: Metric, side: int) -> dict[str, Any]:
    """What decides a metric's numbers; refuses options that views of this side cannot have."""
    if not isinstance(metric, partial):
        raise UserError(f"`metrics` must be functions with `_partial_: true`, got {metric!r}")
    # What is left out of the file counts as its default given.
    parameters = inspect.signature(metric.func).parameters
    given = asked_of_the_pair(metric)
    options = {
        name: each.default for name, each in parameters.items() if each.default is not each.empty and name not in given
    }
    options |= metric.keywords
    if hasattr(metric.func, "check_options"):
        metric.func.check_options((side, side), options)
    protocol = options.pop("protocol", "sound")
    options = resolve(protocol, getattr(metric.func, "protocol_options", {}), options)
    return {"target": f"{metric.func.__module__}.{metric.func.__qualname__}", "protocol": protocol, "options": options}


def _plain(value: Any) -> Any:
    """Containers, numbers, strings and booleans only, so that JSON and YAML say the same."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)
