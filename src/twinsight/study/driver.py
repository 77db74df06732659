"""From a multirun to finished cells: plans the study, launches its jobs, and says how each ended."""

import copy
import logging
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.console import Console
from rich.progress import Progress

from twinsight.config import conf_folder, register_schema
from twinsight.engine import Execution, forwards_per_second
from twinsight.exits import INTERRUPTED, TERMINATED
from twinsight.study.children import run_in_child, warm_up
from twinsight.study.dashboard import dashboards
from twinsight.study.engine import execution_of
from twinsight.study.job import Order, has_work, run_job
from twinsight.study.locks import Observer
from twinsight.study.planner import Planner
from twinsight.study.planning import Draft, draft, of_the_study
from twinsight.study.progress import cost_lines, living
from twinsight.study.remote import conclude
from twinsight.study.shards import Shard, bury, shard_count
from twinsight.study.status import State, first_line, write_status
from twinsight.study.study import Study, StudyCell
from twinsight.study.sweep import Compose

log = logging.getLogger(__name__)
_POLL_SECONDS = 1.0


def sweep(master: DictConfig, words: Sequence[str], context: HydraContext, task: TaskFunction) -> None:
    """What ``-m`` does: plan the combinations of ``words``, or find them planned, and run what is missing.

    Raises:
        UserError: a combination does not fit; nothing has been written or run then.
        SystemExit: with code 1, where a cell failed.
    """
    drive = driving(master, context, task)
    study = _planned(master, words, context.config_loader)
    with dashboards(study):
        waited = drive(study)
    if not waited:
        log.info("look how it goes: twinsight study status %s --root %s", study.name, study.root)
    elif show_end(study):
        sys.exit(1)


def driving(master: DictConfig, context: HydraContext, task: TaskFunction) -> Callable[[Study], bool]:
    """Prepare this process, and give what launches the jobs of a study that have work, and says whether it waited."""
    with read_write(master), open_dict(master):  # Hydra 1.4 makes it read-only
        master.hydra.runtime.output_dir = str(Path(master.hydra.sweep.dir).resolve())
    Path(master.hydra.runtime.output_dir).mkdir(parents=True, exist_ok=True)
    configure_log(master.hydra.job_logging, master.hydra.verbose)
    shard_count(master.shard, 1, 0)  # which refuses what is no number
    local = _is_local(master)
    if local:
        warm_up()  # while this process plans
    launcher = Plugins.instance().instantiate_launcher(  # first, since it may lack something here
        hydra_context=HydraContext(config_loader=FrozenLoader(master), callbacks=context.callbacks),
        task_function=task,
        config=master,
    )

    def drive(study: Study) -> bool:
        driver = _Driver(study, launcher, master)
        if not local:
            return driver.drive_remotely()
        driver.drive()
        return True

    return drive


def run_as_job(config: DictConfig) -> int:
    """The task of a job that a launcher started: ``config`` names the study and the number, all else is frozen."""
    order = Order.of(config, config.study, config.job)
    master = HydraConfig.get()
    if not _is_local(OmegaConf.create({"hydra": {"launcher": master.launcher}})) or config.debug.enabled:
        return run_job(order)
    job_logging: Any = OmegaConf.to_container(master.job_logging, resolve=True)
    code = run_in_child(run_job, order, partial(configure_log, DictConfig(job_logging), master.verbose))
    if code:
        note_the_end_of_a_child(order, code)
    return 1 if code else 0


class FrozenLoader(ConfigLoader):
    """Gives jobs the configuration of the multirun itself: no file below ``conf/`` is read again.

    A launcher may compose on another machine, days later; whatever has become of the files then, the job is told its
    number, and finds the rest in the study's folder.

    Args:
        master: the configuration of the multirun.
    """

    def __init__(self, master: DictConfig) -> None:
        self.master = master

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        config = copy.deepcopy(master_config)
        with open_dict(config):
            for override in sweep_overrides:
                key, _, value = override.partition("=")
                config[key] = value
            config.hydra.overrides.task = list(sweep_overrides)
            config.hydra.job.override_dirname = ",".join(sweep_overrides)
        OmegaConf.copy_cache(from_config=master_config, to_config=config)
        return config

    def load_configuration(self, *arguments: Any, **options: Any) -> DictConfig:
        return copy.deepcopy(self.master)

    def get_search_path(self) -> Any:
        return []

    def get_sources(self) -> list[Any]:
        return []

    def list_groups(self, parent_name: str) -> list[str]:
        return []

    def get_group_options(self, group_name: str, *arguments: Any, **options: Any) -> list[str]:
        return []

    def compute_defaults_list(self, *arguments: Any, **options: Any) -> Any:
        return []


class _Driver:
    """Launches jobs that have work until none is left.

    Args:
        study: planned.
        launcher: Hydra's.
        master: the configuration of the multirun.
    """

    def __init__(self, study: Study, launcher: Launcher, master: DictConfig) -> None:
        self.study = study
        self.launcher = launcher
        self.retry_failed = bool(master.retry_failed)
        self.shard = master.shard
        self.master = master
        self.observer = Observer()

    def drive_remotely(self) -> bool:
        """Hand every order to the launcher at once; False where it left the jobs to a scheduler and did not wait."""
        waiting = {job: cells for job, cells in self.study.jobs.items() if self._has_work(cells)}
        orders = [order for job, cells in waiting.items() for order in self._orders(job, cells)]
        if not orders:
            return True
        results = self.launcher.launch(orders, initial_job_idx=0)
        configure_log(self.master.hydra.job_logging, self.master.hydra.verbose)  # it leaves Hydra's behind
        if not results:
            return False
        self._conclude(orders, results)
        return True

    def drive(self) -> None:
        """Run jobs one after another, in processes of their own on this machine."""
        waiting = {job: cells for job, cells in self.study.jobs.items() if self._has_work(cells)}
        total = len(waiting)
        number = 0
        while waiting:
            # Another driver may be at some of them: those are looked at again when nothing else is left.
            free = [job for job, cells in waiting.items() if self._free(cells)]
            if not free:
                time.sleep(_POLL_SECONDS)
                waiting = {job: cells for job, cells in waiting.items() if self._has_work(cells)}
                continue
            job = free[0]
            cells = waiting.pop(job)
            if not self._has_work(cells):
                continue
            number += 1
            log.info("[%d/%d] %s", number, total, ", ".join(cell.name for cell in cells))
            codes = []
            for order in self._orders(job, cells):
                results = self.launcher.launch([order], initial_job_idx=job)
                configure_log(self.master.hydra.job_logging, self.master.hydra.verbose)  # it leaves Hydra's behind
                broke = results[0].status == JobStatus.FAILED
                codes.append(1 if broke else results[0].return_value)
                if broke:
                    self._conclude([order], results)
            if self._has_work(cells) and not any(codes):
                waiting[job] = cells  # nothing failed, and yet: somebody else was at it
            for cell in cells:
                _say(cell)

    def _orders(self, job: int, cells: Sequence[StudyCell]) -> list[list[str]]:
        forwards = sum(cell.line.forwards or 0 for cell in cells)
        count = shard_count(self.shard, max(cell.pairs for cell in cells), forwards)
        parts = [f":{Shard(index, count)}" for index in range(count)] if count > 1 else [""]
        return [[f"study={self.study.name}", f"job={job}{part}"] for part in parts]

    def _conclude(self, orders: Sequence[Sequence[str]], results: Sequence[JobReturn]) -> None:
        """Say what jobs raised, of which a launcher tells nobody, and set in order what they left behind."""
        ends = {}
        for words, result in zip(orders, results, strict=True):
            end = ends[Order.parse(self.master, words)] = _end(result)
            if result.status == JobStatus.FAILED:
                log.error("%s: %s", " ".join(words), end)
        conclude(self.study, ends)

    def _has_work(self, cells: Sequence[StudyCell]) -> bool:
        return any(has_work(cell, self.retry_failed) for cell in cells)

    def _free(self, cells: Sequence[StudyCell]) -> bool:
        """Whether some cell of a job has work that nobody alive is doing."""
        return any(bury(cell.folder, self.observer) and has_work(cell, self.retry_failed) for cell in cells) or not any(
            has_work(cell, self.retry_failed) for cell in cells
        )


def _planned(master: DictConfig, words: Sequence[str], loader: ConfigLoader) -> Study:
    """The study, planned now or, where the same words planned it before, as it was planned then."""
    what = of_the_study(words)
    name = master.study
    if name is not None and not master.replan:
        study = Study(master.paths.output_root, name)
        if study.has_planned(what) or (study.exists() and not what):
            log.info(
                "study %s was planned with these words on %s, and runs as planned then (replan=true plans it anew)",
                name,
                study.facts()["created"],
            )
            return study
    written = False
    while not written:
        planned = compose_draft(master, words, loader)
        planned.command = what
        study = Study(planned.root, planned.name)
        with study.planning():
            # Another process may have planned more of this study while this one composed: then once more, after that.
            known = [cell.name for cell in study.cells] if study.exists() else []
            written = known == [line.cell for line in planned.lines][: len(known)]
            if written:
                study = planned.write()
    new = len(planned.configs)
    log.info("study %s: %d cells, %d of them new, planned in %s", study.name, len(study.cells), new, study.folder)
    return study


def composing(master: DictConfig, loader: ConfigLoader) -> Compose:
    """What makes a configuration of a combination of overrides."""

    def compose(combination: Sequence[str]) -> DictConfig:
        config = loader.load_sweep_config(master, list(combination))
        with open_dict(config):
            del config["hydra"]
        return config

    return compose


def compose_draft(master: DictConfig, words: Sequence[str], loader: ConfigLoader, measure: bool = True) -> Draft:
    """Plan ``words`` beside what the study has already; no study is written (``measure``: see :class:`Planner`)."""
    console = Console(stderr=True)
    launcher: Mapping[str, Any] = master.hydra.launcher
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("Planning", total=None)

        def tell(done: int) -> None:
            progress.update(bar, completed=done)

        return draft(words, composing(master, loader), loader, tell, Planner(measure), launcher)


def dry_run(words: Sequence[str]) -> list[str]:
    """What a multirun of ``words`` would do and cost, for people; nothing is written."""
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        register_schema()
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", list(words), run_mode=RunMode.MULTIRUN)
        planned = compose_draft(master, list(words), loader, measure=False)
        new = [line for line in planned.lines if line.cell in planned.configs or line.reason is not None]
        configs = [planned.configs.get(line.cell, {}).get("config", {}) for line in new]
        before = len(planned.lines) - len(new)
        head = f"study {planned.name} would have {len(planned.lines)} cells, {before} of them planned before"
        frozen = {name: content["config"] for name, content in planned.configs.items()}
        return [head, *cost_lines(new, configs, speeds(frozen))]


def speeds(configs: Mapping[str, Any]) -> dict[str, float]:
    """Image forwards a second, by the cell's name, measured on some chunks of each model, chunk size and precision.

    Uncompiled, whatever a configuration says: to plan is to write down, and it may be done on a login node.
    """
    planner = Planner()
    found: dict[tuple[int, int, str], float] = {}
    speeds = {}
    for name, content in configs.items():
        config = DictConfig(content)
        model = planner.model(config)
        key = (id(model), config.engine.chunk_size, execution_of(config).precision)
        if key not in found:
            found[key] = forwards_per_second(model, key[1], Execution(key[2]))
        speeds[name] = found[key]
    return speeds


def show_end(study: Study) -> bool:
    """Say how the cells of a study ended; whether any failed, or is unfinished."""
    statuses = {cell: cell.status() for cell in study.cells}
    counts = Counter(status["state"] for status in statuses.values())
    log.info("study %s: %s", study.name, ", ".join(f"{count} {state}" for state, count in counts.items()))
    broken = {
        cell: status
        for cell, status in statuses.items()
        if status["state"] not in ("done", "skipped") and not (status["state"] == "running" and living(cell))
    }
    for cell, status in broken.items():
        error = first_line(status)
        log.error("  %s %s: %s", status["state"], cell.name, error)
    retry = [cell for cell, status in broken.items() if status["state"] == "failed"]
    if retry:
        log.info("failed cells are tried again with retry_failed=true; their status.json has the traceback")
    if counts["done"]:
        log.info("table: twinsight study table %s --root %s", study.name, study.root)
    return bool(broken)


def _is_local(master: DictConfig) -> bool:
    """Whether Hydra's own launcher runs the jobs, one after another in this process."""
    return str(OmegaConf.select(master, "hydra.launcher._target_")).endswith(".BasicLauncher")


def note_the_end_of_a_child(order: Order, code: int) -> None:
    """Say of cells that a child left behind what became of it, where the child could not.

    Args:
        order: that it was at.
        code: its exit code, minus the number of the signal that killed it.
    """
    state: State
    facts: dict[str, Any] = {}
    if code in (INTERRUPTED, TERMINATED):
        state, error = "interrupted", "it was told to stop"
    elif code < 0:
        name = signal.Signals(-code).name
        hint = " (memory may have run out)" if name == "SIGKILL" else ""
        state, error, facts = "failed", f"its process was killed by {name}{hint}", {"signal": name}
    else:
        state, error = "failed", f"its process ended with exit code {code} and without a word"
    for cell in order.cells:
        status = cell.status()
        if status["state"] in ("planned", "running") and bury(cell.folder, Observer()):
            facts |= {key: status[key] for key in ("pairs", "done") if key in status}
            write_status(cell.folder, state, error=error, **facts)


def _end(result: JobReturn) -> str:
    """How a launcher says that a job ended."""
    try:
        said = result.return_value
    except Exception as error:  # whatever was raised on the way
        return f"{type(error).__name__}: {error}"
    return "its job ended" if said is None else str(said)


def _say(cell: StudyCell) -> None:
    status = cell.status()
    error = f": {first_line(status)}" if "error" in status else ""
    log.info("  %s %s%s", status["state"], cell.name, error)
