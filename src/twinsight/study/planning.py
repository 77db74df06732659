"""From the words of a multirun to a study on disk: every cell named and frozen before anything runs."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from twinsight.config import check_words, refuse_several_devices
from twinsight.errors import NotApplicable
from twinsight.explainers import Explainer
from twinsight.metrics import forwards_per_pair
from twinsight.study.cell import Cell
from twinsight.study.planner import Planner
from twinsight.study.sets import table_facts
from twinsight.study.study import PlannedCell, Study
from twinsight.study.sweep import Compose, axes_of, compositions
from twinsight.tracking import check_loggers

Frozen = dict[str, Any]

_OF_THE_RUN = (
    *("study", "shard", "retry_failed", "replan", "paths.output_root", "debug", "debug.enabled"),
    *("sweep.trials", "sweep.batch"),
)
"""Keys that say how to run a study, not what it is."""


@dataclass
class Draft:
    """A plan that has not been written.

    Attributes:
        root, name: where the study is, or would be.
        command: the overrides it follows from.
        lines: of all its cells, those that were planned before first.
        configs: ``{"identity": ..., "config": ...}`` of each new cell.
    """

    root: Path
    name: str
    command: list[str]
    lines: list[PlannedCell]
    configs: dict[str, Frozen]

    def write(self) -> Study:
        """Put the plan on disk."""
        study = Study(self.root, self.name)
        study.write(self.lines, self.configs, self.command)
        return study


def of_the_study(words: Iterable[str]) -> list[str]:
    """The overrides that say what a study is, without those that say where and how it is run; sorted.

    >>> of_the_study(["study=paper", "seed=0,1", "retry_failed=true"])
    ['seed=0,1']
    """
    return sorted(word for word in words if word.split("=")[0] not in _OF_THE_RUN)


def draft(
    words: Sequence[str],
    compose: Compose,
    loader: ConfigLoader,
    tell: Callable[[int], Any] = lambda done: None,
    planner: Planner | None = None,
    launcher: Mapping[str, Any] | None = None,
) -> Draft:
    """Plan every combination that ``words`` mean, after what the study has planned before.

    Args:
        words: overrides, as on the command line.
        compose: overrides to a configuration.
        loader: Hydra's.
        tell: is called with the number of combinations planned so far.
        planner: one that has built models and photos before.
        launcher: Hydra's, as configured: what cells may be depends on it.

    Raises:
        UserError: a combination does not fit; nothing has been written then.
    """
    axes = axes_of(words, loader)
    planner = planner or Planner()
    study: Study | None = None
    lines: list[PlannedCell] = []
    known: set[str] = set()
    configs: dict[str, Frozen] = {}
    job = 0
    for number, (combination, config) in enumerate(compositions(axes, compose, loader)):
        if study is None:
            study = Study(config.paths.output_root, config.study or name_of(words))
            lines = [cell.line for cell in study.cells] if study.exists() else []
            known = {line.cell for line in lines}
            job = max((line.job for line in lines), default=-1) + 1
        planner.validate(config)
        refuse_several_devices(config, launcher)
        check_loggers(config)
        check_words(config, combination)
        cells, skipped = _cells(planner, config, combination)
        fresh = [line for line in _lines(cells, skipped, job) if line.cell not in known]
        new = {cell.name: {"identity": cell.identity, "config": cell.config} for cell in cells}
        configs |= {line.cell: new[line.cell] for line in fresh if line.reason is None}
        known |= {line.cell for line in fresh}
        lines += fresh
        job += bool(fresh)
        tell(number + 1)
    assert study is not None
    return Draft(study.root, study.name, list(words), with_axes(lines, study, configs), configs)


def with_axes(lines: Iterable[PlannedCell], study: Study, configs: Mapping[str, Frozen]) -> list[PlannedCell]:
    """The lines with what varies between them: names of model, data and explainer, and values of configuration keys.

    A key that the name of its group, or a key before it, already tells apart is left out; so are keys that decide no
    result. Where the configuration tells two cells not apart, what else is in their identity does: precision, the
    digests of weights and photos, the version of results.
    """
    lines = list(lines)
    frozen = {cell.name: cell for cell in study.cells} if study.exists() else {}
    facts: list[dict[str, Any]] = []
    hidden: list[dict[str, Any]] = []
    for line in lines:
        if line.reason is not None:
            facts.append(dict(line.axes))
            hidden.append({})
            continue
        content = configs.get(line.cell)
        identity = content["identity"] if content else frozen[line.cell].identity
        config = content["config"] if content else frozen[line.cell].config
        names = {"model": identity["model"]["name"], "data": identity["data"]["name"], "explainer": line.label}
        facts.append(names | dict(_leaves(config)))
        hidden.append(_hidden(identity))
    varying = _varying(facts)
    for key in ("trainer.precision", "weights", "photos", "result_version"):
        values: dict[str, set[str]] = {}
        for one, more in zip(facts, hidden, strict=True):
            values.setdefault(_text([one.get(axis) for axis in varying]), set()).add(_text(more.get(key)))
        if any(len(several) > 1 for several in values.values()):
            varying.append(key)
            facts = [one | {key: more[key]} if more else one for one, more in zip(facts, hidden, strict=True)]
    return [
        replace(line, axes={key: one[key] for key in varying if key in one})
        for line, one in zip(lines, facts, strict=True)
    ]


def _hidden(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a result and stands in no key that a table would show."""
    return {
        "trainer.precision": identity["precision"],
        "weights": identity["model"]["weights"][:10],
        "photos": identity["data"]["digest"][:10],
        "result_version": identity["version"],
    }


def _varying(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys that have several values among those who have them, and tell apart what no key before them does."""
    found: list[str] = []
    told: set[tuple[str, ...]] = set()
    for key in dict.fromkeys(key for one in facts for key in one):
        having = [one for one in facts if key in one]
        values = [_text(one[key]) for one in having]
        names = [_text(one.get(key.split(".")[0])) for one in having]  # of the model, data set or explainer it is of
        by_name = len(set(zip(names, values, strict=True))) == len(set(names))
        everywhere = tuple(_text(one.get(key, "")) for one in facts)
        places = {value: str(place) for place, value in enumerate(dict.fromkeys(everywhere))}
        partition = tuple(places[value] for value in everywhere)
        if len(set(values)) > 1 and not ("." in key and by_name) and partition not in told:
            told.add(partition)
            found.append(key)
    return found


_DECIDES_NOTHING = (
    *("paths", "logger", "loader", "pictures", "debug", "task", "trainer", "study", "sweep", "shard"),
    *("retry_failed", "job"),
    *("hydra", "explainers"),
)


def _leaves(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in node.items():
        full = f"{prefix}{key}"
        if full in _DECIDES_NOTHING or key == "_target_":
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{full}.")
        else:
            yield full, value


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def name_of(words: Sequence[str]) -> str:
    """What a multirun without a name is called: the same words mean the same study."""
    return "sweep-" + hashlib.sha256("\n".join(of_the_study(words)).encode()).hexdigest()[:8]


def _cells(planner: Planner, config: DictConfig, words: Sequence[str]) -> tuple[list[Cell], list[tuple[str, str]]]:
    """Cells of a combination, and what was left out: a readable name and the reason."""
    try:
        planned = planner.plan(config)
    except (NotApplicable, InstantiationException) as error:
        reason = error if isinstance(error, NotApplicable) else error.__cause__
        if not isinstance(reason, NotApplicable):
            raise
        return [], [(" ".join(words), str(reason))]
    return planned.cells, [(f"{name} {' '.join(words)}", why) for name, why in planned.left_out.items()]


def _lines(cells: Sequence[Cell], skipped: Sequence[tuple[str, str]], job: int) -> list[PlannedCell]:
    lines = []
    for cell in cells:
        size = (cell.identity["views"]["size"],) * 2
        pairs = cell.identity["data"]["photos"]
        each = _forwards(cell.explainer, cell, size)
        lines.append(
            PlannedCell(
                cell=cell.name,
                digest=cell.digest,
                job=job,
                label=cell.label,
                axes={},
                pairs=pairs,
                forwards=None if each is None else each * pairs,
                maps=cell.explainer.maps,
                table=table_facts(cell),
                loggers=tuple(cell.config.get("logger") or {}),
            )
        )
    for words, reason in skipped:
        name = "skipped-" + hashlib.sha256(words.encode()).hexdigest()[:10]
        lines.append(PlannedCell(name, None, job, words, {"overrides": words}, 0, 0, 0, {}, reason=reason))
    return lines


def _forwards(explainer: Explainer, cell: Cell, size: tuple[int, int]) -> int | None:
    """Image forwards of a pair by what explainer and metrics declare; None where one declares nothing."""
    own = explainer.declared_cost(size)
    if own is None:
        return None
    return own.forwards + forwards_per_pair(cell.metrics.values(), size, explainer.maps, own.forwards)
