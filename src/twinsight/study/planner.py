"""From a configuration to the cells it means: everything built and checked before any heavy work."""

import inspect
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hydra.utils
import pytorch_lightning as pl
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from twinsight.config import validate
from twinsight.data import Photos
from twinsight.errors import NotApplicable, UserError
from twinsight.explainers import Explainer
from twinsight.metrics import ALL_METRICS
from twinsight.models import TwoViewModel, weights_digest
from twinsight.naming import snake_case
from twinsight.protocol import resolve
from twinsight.study.cell import RESULT_VERSION, Cell, Metric, asked_of_the_pair
from twinsight.study.engine import check_engine, execution_of, fix_chunk_size

Models = dict[str, dict[int, TwoViewModel]]
"""Models by their configuration and seed."""


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
    return Planner().plan(config)


class Planner:
    """Plans configurations, many of which may name one model or one set of photos: each distinct one is built once.

    Args:
        measure: whether a chunk size of ``auto`` may be measured, and written down; else it counts as the default.
        models: that other planners have built, to share them; those that are built here are added.
    """

    def __init__(self, measure: bool = True, models: Models | None = None) -> None:
        self._measure = measure
        self._models: Models = {} if models is None else models
        self._photos: dict[str, tuple[Photos, str]] = {}
        self._others: dict[str, Any] = {}
        self._checked: set[str] = set()

    def validate(self, config: DictConfig) -> None:
        """:func:`twinsight.config.validate`, but what was found valid is not looked at again."""
        plain = OmegaConf.to_container(config, resolve=False)
        assert isinstance(plain, dict)
        whole = {key: value for key, value in plain.items() if key not in ("seed", "job")}
        key = json.dumps(whole, sort_keys=True, default=str)
        if key not in self._checked:
            validate(config)
            self._checked.add(key)

    def plan(self, config: DictConfig) -> Plan:
        """As :func:`plan`."""
        for key, least in (("pictures.limit", 0), ("pictures.side", 1)):
            if OmegaConf.select(config, key) < least:
                raise UserError(f"`{key}` must be at least {least}, got {OmegaConf.select(config, key)}")
        check_engine(config)
        model = self.model(config)
        fix_chunk_size(config, model, self._measure)  # before anything is frozen: measured again it might be another
        composed = OmegaConf.to_container(config, resolve=True)
        assert isinstance(composed, dict)
        photos, digest = self._photos_of(config, composed["data"])
        views = self._built(composed["views"])
        metrics = {name: self._built(node) for name, node in (composed["metrics"] or {}).items()}
        identities = {name: _metric_identity(metric, views.size) for name, metric in metrics.items()}
        members = config.explainers.options if config.explainers else None
        chosen = members or {"explainer": config.explainer}
        shared = {
            "version": RESULT_VERSION,
            "model": _model_identity(composed["model"], model),
            "data": {"name": snake_case(type(photos).__name__), "photos": len(photos), "digest": digest},
            "views": composed["views"],
            "seed": config.seed,
            "chunk_size": config.engine.chunk_size,
            "engine": asdict(execution_of(config)),
            "precision": str(composed["trainer"].get("precision") or "32-true"),
        }
        cells, left_out = [], {}
        for name, node in chosen.items():
            try:
                explainer = _explainer(name, node, model, len(photos), config.seed)
            except NotApplicable as error:
                if len(chosen) == 1:
                    raise
                left_out[str(name)] = str(error)
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
                    label=str(name) if members else explainer.name,
                    not_applicable=_not_applicable(explainer, metrics.values()),
                )
            )
        if not cells:
            reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
            raise UserError(f"no member of the set fits: {reasons}")
        return Plan(model, photos, views, cells, left_out)

    def model(self, config: DictConfig) -> TwoViewModel:
        """The model of a configuration; one whose weights two seeds agree on is taken to need no seed."""
        seed = config.seed
        built = self._models.setdefault(_key(OmegaConf.to_container(config.model, resolve=True)), {})
        if seed in built:
            return built[seed]
        if len(built) > 1 and len({weights_digest(model) for model in built.values()}) == 1:
            return next(iter(built.values()))
        if len(built) > 1:
            built.pop(next(iter(built)))  # untrained networks of many seeds need not all be remembered
        pl.seed_everything(seed, verbose=False)  # for models that are built untrained
        built[seed] = hydra.utils.instantiate(config.model)
        agreed = [model for model in built.values() if weights_digest(model) == weights_digest(built[seed])]
        return agreed[0]

    def _built(self, node: Mapping[str, Any]) -> Any:
        """What a resolved node builds, once for all that are equal."""
        key = _key(node)
        if key not in self._others:
            self._others[key] = hydra.utils.instantiate(node)
        return self._others[key]

    def _photos_of(self, config: DictConfig, node: Mapping[str, Any]) -> tuple[Photos, str]:
        key = _key(node)
        if key not in self._photos:
            photos = hydra.utils.instantiate(config.data)
            self._photos[key] = (photos, photos.digest())
        return self._photos[key]


def _key(node: Any) -> str:
    return json.dumps(node, sort_keys=True, default=str)


def _explainer(name: Any, node: DictConfig, model: TwoViewModel, photos: int, seed: int) -> Explainer:
    # For a reference network that is built untrained: another than the model, the same whatever was built before.
    pl.seed_everything((seed + 1) % 2**32, verbose=False)
    try:
        explainer = hydra.utils.instantiate(node, model=model)
    except InstantiationException as error:
        if isinstance(error.__cause__, NotApplicable):
            raise error.__cause__ from None
        raise
    if not isinstance(explainer, Explainer):
        raise UserError(f"`{name}._target_` must build an Explainer, got {type(explainer).__name__}")
    if explainer.needs_partner and photos < 2:
        raise NotApplicable(
            f"{explainer.name} explains against another photo: it needs two photos at least (data.limit)"
        )
    return explainer


def _model_identity(node: Mapping[str, Any], model: TwoViewModel) -> dict[str, Any]:
    # The digest says which weights; where they lay does not matter.
    options = {key: value for key, value in node.items() if key not in ("checkpoint", "weights", "path")}
    if isinstance(options.get("similarity"), Mapping):
        score = options["similarity"]
        options["similarity"] = {key: value for key, value in score.items() if key not in ("negatives", "embeddings")}
    name = str(node.get("name") or node["_target_"].rsplit(".", 1)[-1])
    held = {} if model.score_digest is None else {"score": model.score_digest}
    return {"name": name, "options": options, "weights": weights_digest(model), **held}


def _not_applicable(explainer: Explainer, metrics: Iterable[Metric]) -> dict[str, str]:
    """Columns of ``metrics`` that make no sense for ``explainer``, in the order of the paper's tables, and why."""
    chosen = {column for metric in metrics for column in columns_of(metric)}
    reasons = {name: metric.why_not(explainer) for name, metric in ALL_METRICS.items() if name in chosen}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _applies(metric: Metric, explainer: Explainer) -> bool:
    """Whether any column of ``metric`` makes sense; one that does not declare its columns needs maps."""
    columns = columns_of(metric)
    return explainer.maps > 0 and (not columns or set(columns) > set(_not_applicable(explainer, [metric])))


def columns_of(metric: Metric) -> tuple[str, ...]:
    """Columns that a metric declares."""
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
