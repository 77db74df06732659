"""The trials of a search: tables of all of them, and the best."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from twinsight.files import write_atomically
from twinsight.report import number, write_rows
from twinsight.study.study import Study

if TYPE_CHECKING:
    from optuna import Study as Trials
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)
_ENOUGH = 4
"""Trials that say something about importance."""


def ended(trials: "Trials") -> list["FrozenTrial"]:
    """Trials that have values or failed; not those whose process died, which are tried again under a new number."""
    found = trials.get_trials(deepcopy=False)
    return [trial for trial in found if trial.values is not None or "error" in trial.user_attrs]


def overrides(parameters: Mapping[str, Any]) -> list[str]:
    """Chosen values as they would be written on the command line.

    >>> overrides({"explainer.window": 16, "explainer.baseline": "blur"})
    ['explainer.window=16', 'explainer.baseline=blur']
    """
    return [f"{key}={value}" for key, value in parameters.items()]


def report_trials(study: Study, trials: "Trials", metrics: Sequence[str]) -> bool:
    """Write ``trials.csv``, ``trials.parquet`` and ``best.yaml`` into the study's folder, and say what is best.

    Returns:
        whether any trial was completed.
    """
    done = ended(trials)
    complete = [trial for trial in done if trial.values is not None]
    # Of trials that chose the same, the first stands for all.
    last_first = sorted(trials.best_trials, key=lambda trial: -trial.number) if complete else []
    firsts = {tuple(overrides(trial.params)): trial for trial in last_first}
    best = sorted(firsts.values(), key=lambda trial: trial.number)
    front = {trial.number for trial in best}
    rows = [
        {
            "trial": trial.number,
            **trial.params,
            **dict(zip(metrics, trial.values or [None] * len(metrics), strict=True)),
            "best": trial.number in front,
            "cell": trial.user_attrs.get("cell"),
            "error": trial.user_attrs.get("error"),
        }
        for trial in done
    ]
    for ending in ("csv", "parquet"):
        write_rows(study.folder / f"trials.{ending}", rows)
    log.info("study %s: %d trials, %d failed, in %s", study.name, len(done), len(done) - len(complete), study.folder)
    if not complete:
        return False
    importance = _importance(trials, metrics)
    facts = {
        "metrics": list(metrics),
        "best": [
            {
                "trial": trial.number,
                "values": dict(zip(metrics, trial.values, strict=True)),
                "overrides": overrides(trial.params),
                "cell": trial.user_attrs["cell"],
            }
            for trial in best
        ],
        "importance": importance,
    }
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    write_atomically(Path(study.folder) / "best.yaml", partial(Path.write_text, data=text))
    log.info("best in %s:", " and ".join(metrics))
    for trial in best:
        values = ", ".join(f"{name} {number(value)}" for name, value in zip(metrics, trial.values, strict=True))
        log.info("  %s (%s)", " ".join(overrides(trial.params)), values)
    for metric, shares in importance.items():
        log.info("  what %s depends on: %s", metric, ", ".join(f"{key} {share:.0%}" for key, share in shares.items()))
    return True


def _importance(trials: "Trials", metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """The share of each option in how a metric varies over trials (fANOVA); only where there is something to share."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    complete = [trial for trial in ended(trials) if trial.values is not None]
    found = {}
    for place, metric in enumerate(metrics):

        def value(trial: "FrozenTrial", place: int = place) -> float:
            return trial.values[place]

        if len(complete) < _ENOUGH or len(set(map(value, complete))) < 2:
            continue
        shares = get_param_importances(trials, evaluator=FanovaImportanceEvaluator(seed=0), target=value)
        if len(shares) > 1:
            found[metric] = {key: round(float(share), 4) for key, share in shares.items()}
    return found
