"""Optuna chooses what a study computes next: each trial is a cell, planned, computed and resumed as any other."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import hydra.utils
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from twinsight.complaints import explain_error
from twinsight.errors import UserError, require_extra, unknown
from twinsight.metrics import ALL_METRICS
from twinsight.study.cell import Cell
from twinsight.study.dashboard import dashboards
from twinsight.study.driver import composing, driving
from twinsight.study.locks import STALE_SECONDS, Lock, Observer
from twinsight.study.planner import Planner, columns_of
from twinsight.study.planning import draft, name_of, of_the_study
from twinsight.study.status import first_line, read_status
from twinsight.study.study import Study
from twinsight.study.sweep import Compose
from twinsight.study.trials import ended, overrides, report_trials
from twinsight.tracking import chosen_loggers

if TYPE_CHECKING:
    from optuna import Study as Trials
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

log = logging.getLogger(__name__)

COST = "cost"
"""Image forwards that an explainer takes for a pair; the fewer, the better."""
JOURNAL = "optuna.journal"
"""Optuna's own file, in the folder of the study; its dashboard reads it."""
_POLL_SECONDS = 1.0
_VAIN = 3
"""So many trials that cannot be planned, with none that could, are a mistake of the words, not of the choice."""


class Search:
    """What to search for.

    Args:
        metrics: to be made best, each in its own direction; several are traded off. ``"cost"`` is the number of image
            forwards that the explainer takes for a pair.
        trials: of the study in all, those of earlier invocations among them.
        batch: trials that are chosen at once, for launchers that run jobs side by side.
        sampler: gives one of Optuna's; with a ``seed``, if it takes one.

    Raises:
        UserError: unknown metric, or a number out of range.
    """

    def __init__(self, metrics: Sequence[str], trials: int, batch: int, sampler: Callable[..., Any]) -> None:
        metrics = [metrics] if isinstance(metrics, str) else list(metrics)
        for name in metrics:
            if name not in (*ALL_METRICS, COST):
                raise unknown("metric in `sweep.metrics`", name, (*ALL_METRICS, COST))
        if not metrics or len(set(metrics)) < len(metrics):
            raise UserError(f"`sweep.metrics` must name metrics, each once, got {metrics}")
        for name, number in (("trials", trials), ("batch", batch)):
            if number < 1:
                raise UserError(f"`sweep.{name}` must be at least 1, got {number}")
        self.metrics = metrics
        self.trials = trials
        self.batch = batch
        self.sampler = sampler

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """Of each metric, as Optuna says it."""
        higher = [name != COST and ALL_METRICS[name].higher_is_better for name in self.metrics]
        return ["maximize" if up else "minimize" for up in higher]


def search(master: DictConfig, words: Sequence[str], context: HydraContext, task: TaskFunction) -> None:
    """What ``-m sweep=optuna`` does: trials until there are as many as asked for, then the best ones.

    A trial whose options do not fit, or whose cell fails, counts as failed, and the search goes on.

    Raises:
        UserError: what is asked for makes no sense, whatever the trial.
        SystemExit: with code 1, where no trial could be completed.
    """
    require_extra("`sweep=optuna`", "Optuna", "optuna")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fixed, space = space_of(words, context.config_loader)
    if not space:
        raise UserError("sweep=optuna has nothing to choose: write options as explainer.window=range(8,33,8) or =4,8")
    compose, planner = composing(master, context.config_loader), Planner()
    # What is wrong with the words of any trial is said before there is one.
    planner.validate(compose([*fixed, *overrides(_first(space))]))
    wanted: Search = hydra.utils.instantiate(master.sweep)
    what = of_the_study(words)
    study = Study(master.paths.output_root, master.study or name_of(what))
    planning = (compose, context.config_loader, planner)
    trying = _Trying(study, wanted, what, fixed, space, planning, driving(master, context, task))
    with _alone(study):
        trials = _opened(study, wanted, what)
        with dashboards(study, chosen_loggers(master)):
            trying.go_on(trials)
        if not report_trials(study, trials, wanted.metrics):
            sys.exit(1)


def space_of(words: Sequence[str], loader: ConfigLoader) -> tuple[list[str], dict[str, "BaseDistribution"]]:
    """Overrides that are fixed, and what may be chosen for each of the other keys.

    Lists of values and ``choice`` are categories, ``range`` steps from its start and leaves out its stop, ``interval``
    is continuous, ``int(interval(...))`` whole numbers, ``tag(log, interval(...))`` on a logarithmic scale.

    Raises:
        HydraException: a word that Hydra cannot read.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def distribution(override: Override) -> "BaseDistribution":
        swept = override.value()
        if isinstance(swept, RangeSweep):
            values = list(swept.range())
            if len(values) > 1:
                kind = IntDistribution if all(isinstance(value, int) for value in values) else FloatDistribution
                return kind(min(values), max(values), step=abs(values[1] - values[0]))
        if isinstance(swept, IntervalSweep):
            low, high = swept.start, swept.end
            assert low is not None  # an interval always has its ends
            assert high is not None
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log="log" in swept.tags)
            return FloatDistribution(low, high, log="log" in swept.tags)
        (alternatives,) = zip(*BasicSweeper.split_arguments([override], None)[0], strict=True)
        return CategoricalDistribution([_number(word.partition("=")[2]) for word in alternatives])

    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(words))
    fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    swept = [override for override in overrides if override.is_sweep_override()]
    return fixed, {override.get_key_element(): distribution(override) for override in swept}


def _number(text: str) -> str | int | float:
    """What is written, as a number if it is one."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


class _Trying:
    """Trials one batch after the other.

    Args:
        study: that gets their cells.
        wanted: what to search for.
        command: words that say what the study is.
        fixed: overrides of every trial.
        space: what may be chosen.
        planning: overrides to a configuration, Hydra's loader, and what builds cells.
        drive: runs what is missing of a study; False where it does not wait for it.
    """

    def __init__(
        self,
        study: Study,
        wanted: Search,
        command: Sequence[str],
        fixed: Sequence[str],
        space: Mapping[str, "BaseDistribution"],
        planning: tuple[Compose, ConfigLoader, Planner],
        drive: Callable[[Study], bool],
    ) -> None:
        self.study = study
        self.wanted = wanted
        self.command = command
        self.fixed = [*fixed, f"study={study.name}"]
        self.space = dict(space)
        self.compose, self.loader, self.planner = planning
        self.drive = drive
        self.exhausted = False

    def go_on(self, trials: "Trials") -> None:
        """Try until there are as many trials as asked for.

        Raises:
            UserError: the first trials could not even be planned.
        """
        for lost in trials.get_trials(deepcopy=False):
            if lost.state.name == "RUNNING":  # its process died: its cell goes on under a new number
                trials.tell(lost.number, state=_failed())
                trials.enqueue_trial(lost.params)
        while not self.exhausted and (left := self.wanted.trials - len(ended(trials))) > 0:
            asked = [trials.ask(self.space) for _ in range(min(self.wanted.batch, left))]
            planned = {trial: cell for trial in asked if (cell := self._planned(trials, trial)) is not None}
            if planned and not self.drive(self.study):
                raise UserError("`sweep=optuna` chooses by results, which it has to wait for: hydra.launcher.wait=true")
            for trial, cell in planned.items():
                self._tell(trials, trial, cell)

    def _planned(self, trials: "Trials", trial: "Trial") -> Cell | None:
        words = overrides(trial.params)
        log.info("trial %d, %d of %d: %s", trial.number, len(ended(trials)) + 1, self.wanted.trials, " ".join(words))
        try:
            cell = self._plan(words)
        except Exception as error:
            if self._never_planned(trials):
                raise
            self._fail(trials, trial, explain_error(error) or f"{type(error).__name__}: {error}")
            return None
        self._refuse_metrics(cell)
        trial.set_user_attr("cell", cell.name)
        return cell

    def _plan(self, words: Sequence[str]) -> Cell:
        """The cell that ``words`` mean, which then is part of the study."""
        config = self.compose([*self.fixed, *words])
        self.planner.validate(config)
        config.sweep = None
        cells = self.planner.plan(config).cells
        if len(cells) != 1:
            raise UserError(f"sweep=optuna optimises one explainer, not a set of {len(cells)}: leave `explainers` out")
        with self.study.planning():
            self.study.__dict__.pop("cells", None)  # another process may have planned more of it
            drafted = draft(words, lambda _: config, self.loader, planner=self.planner)
            if drafted.configs:
                self.study.write(drafted.lines, drafted.configs, self.command)
        return cells[0]

    def _never_planned(self, trials: "Trials") -> bool:
        """Whether several trials failed before they were planned, and none ever was."""
        return len(ended(trials)) >= _VAIN and not any("cell" in trial.user_attrs for trial in ended(trials))

    def _refuse_metrics(self, cell: Cell) -> None:
        """Refuse metrics that no cell of this search will ever have."""
        columns = [columns_of(metric) for metric in cell.metrics.values()]
        known = {*cell.not_applicable, COST, *(name for names in columns for name in names)}
        for name in self.wanted.metrics:
            if name not in known and all(columns):
                raise UserError(
                    f"`sweep.metrics`: {name} is computed by none of the chosen metrics; choose metrics=..."
                )

    def _tell(self, trials: "Trials", trial: "Trial", cell: Cell) -> None:
        status = read_status(cell.folder)
        if status["state"] == "failed":
            self._fail(trials, trial, first_line(status))
        elif status["state"] != "done":
            raise UserError(f"{cell.name} is {status['state']}: sweep=optuna needs a launcher that waits for its jobs")
        else:
            values = {name: _value(cell, name) for name in self.wanted.metrics}
            present = [value for value in values.values() if value is not None]
            missing = next((name for name, value in values.items() if value is None), None)
            if missing is None:
                self._close(trials, trial, present)
            else:
                why = cell.not_applicable.get(missing, "no pair has it")
                self._fail(trials, trial, f"no value of {missing}: {why}")

    def _fail(self, trials: "Trials", trial: "Trial", error: str) -> None:
        log.warning("trial %d failed: %s", trial.number, error)
        trial.set_user_attr("error", error)
        self._close(trials, trial, None)

    def _close(self, trials: "Trials", trial: "Trial", values: list[float] | None) -> None:
        try:
            trials.tell(trial, values, state=_failed() if values is None else None)
        except RuntimeError as error:
            if "Study.stop" not in str(error):
                raise
            self.exhausted = True  # how samplers that have tried everything say so; the trial has been noted


def _value(cell: Cell, metric: str) -> float | None:
    if metric == COST:
        cost = cell.explainer.declared_cost((cell.identity["views"]["size"],) * 2)
        return None if cost is None else float(cost.forwards)
    published = cell.folder / "metrics.json"
    summary = json.loads(published.read_text()) if published.exists() else {"metrics": {}}
    return summary["metrics"].get(metric, {}).get("mean")


def _first(space: Mapping[str, "BaseDistribution"]) -> dict[str, Any]:
    """Some point of a space."""
    return {key: one.choices[0] if hasattr(one, "choices") else getattr(one, "low", None) for key, one in space.items()}


def _failed() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL


def _opened(study: Study, wanted: Search, command: Sequence[str]) -> "Trials":
    """Optuna's study in the folder of ours, new or as it was left.

    Raises:
        UserError: it was about something else.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = study.folder / JOURNAL
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{JOURNAL}.lock").unlink(missing_ok=True)  # of a search that was killed: there is no other now

    def open_it() -> "Trials":
        # A file to append to may lie on a network file system, where SQLite's locks cannot be trusted.
        storage = JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(
            storage=storage, study_name=study.name, directions=wanted.directions, load_if_exists=True
        )

    about = {"words": list(command), "metrics": wanted.metrics}
    trials = open_it()
    before = trials.user_attrs
    if before and before != about:
        if any("cell" in trial.user_attrs for trial in trials.trials):
            raise UserError(
                f"study {study.name} searches with other words ({' '.join(before['words'])}): name another, study=NAME"
            )
        path.unlink()  # it never came to anything
        trials = open_it()
    for name, value in about.items():
        trials.set_user_attr(name, value)
    seed = wanted.sampler.keywords.get("seed") if isinstance(wanted.sampler, partial) else None
    # Draws of a sampler are not kept; begun anew with the same seed it would choose once more what it has chosen.
    trials.sampler = wanted.sampler(**({} if seed is None else {"seed": seed + len(trials.trials)}))
    return trials


@contextmanager
def _alone(study: Study) -> Iterator[None]:
    """Only one process searches in a study: what another is at could not be told from what it left behind.

    Raises:
        UserError: another is at it.
    """
    lock, observer = Lock(study.folder / "locks" / "search"), Observer()
    until = time.monotonic() + STALE_SECONDS + 2 * _POLL_SECONDS
    while not lock.take(observer):
        if observer.moved(study.folder) or time.monotonic() > until:
            raise UserError(f"study {study.name} is searched by {lock.holder()}: wait for it, or use sweep.batch")
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()
