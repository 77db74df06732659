"""A study's jobs on Slurm: an array that submitit starts and requeues, and a last job that tidies up after it."""

import json
import logging
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from twinsight.errors import UserError, require_extra, unknown
from twinsight.requeued import Requeued
from twinsight.study.dashboard import dashboards
from twinsight.study.job import Order
from twinsight.study.remote import Surroundings, conclude, work
from twinsight.study.shards import Shard
from twinsight.study.status import settled, write_status
from twinsight.study.study import Study

log = logging.getLogger(__name__)

_ARRAY = 1000
"""Jobs of one array at most: clusters take 1001 unless their MaxArraySize says otherwise."""
_POLL_SECONDS = 5.0
_OPTIONS = (
    *("partition", "account", "qos", "constraint", "time", "mem_gb", "cpus_per_task", "nodes", "tasks_per_node"),
    *("gpus_per_node", "array_parallelism", "max_num_timeout", "signal_delay_s", "setup", "additional_parameters"),
)


class Shape(NamedTuple):
    """Processes of a job, as its trainer wants them."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int

    @classmethod
    def of(cls, trainer: Mapping[str, Any]) -> "Shape":
        """One process per device."""
        devices = trainer.get("devices", 1)
        try:
            count = len(devices) if isinstance(devices, list) else 1 if devices == "auto" else int(devices)
        except ValueError:
            count = 0
        if count < 1:
            raise UserError(f"`trainer.devices` must be a number on Slurm, which gives devices, got {devices!r}")
        gpu = trainer.get("accelerator") in ("gpu", "cuda")
        return cls(int(trainer.get("num_nodes", 1)), count, count if gpu else 0)


def check(config: DictConfig, options: Mapping[str, Any], reducer: Mapping[str, Any]) -> None:
    """Refuse what cannot be submitted, before a study is planned.

    Raises:
        UserError: submitit or Slurm's commands are missing; an option is unknown; the task is no study.
    """
    require_extra("hydra/launcher=slurm", "submitit", "slurm")
    for command in ("sbatch", "srun", "squeue", "scontrol"):
        if shutil.which(command) is None:
            raise UserError(
                f"hydra/launcher=slurm needs Slurm's commands, and there is no {command} on this machine: "
                "run it on a login node of the cluster"
            )
    for place, given in (("hydra.launcher", options), ("hydra.launcher.reducer", reducer)):
        for name in given:
            if name not in _OPTIONS:
                raise unknown(f"option of {place}", name, _OPTIONS)
    if config.task._target_ != "twinsight.study.explain":
        raise UserError("hydra/launcher=slurm runs studies of explanations; submit other tasks with sbatch and srun")


def launch(
    config: DictConfig,
    words: Sequence[Sequence[str]],
    options: Mapping[str, Any],
    reducer: Mapping[str, Any],
    wait: bool,
) -> list[JobReturn]:
    """Submit jobs, but those that are in the queue already, and one to run after them.

    Args:
        config: of the multirun.
        words: of each job.
        options: of all jobs, by the names of ``_OPTIONS``; None for what the cluster gives, or the trainer asks for.
        reducer: options of the last job, where they differ.
        wait: until no job is left in the queue.

    Returns:
        one per job where it waited, as Hydra's launchers do; none otherwise.

    Raises:
        UserError: Slurm does not take the jobs, or an option does not fit the trainer.
    """
    orders = [Order.parse(config, each) for each in words]
    study = Study.open(orders[0].root, orders[0].study)
    book = _Book(study)
    queued = book.queued(orders)
    fresh = [order for order in orders if order not in queued]
    if len(fresh) < len(orders):
        log.info("%d jobs are in Slurm's queue already, and are left there", len(orders) - len(fresh))
    surroundings = vars(Surroundings.of(config))
    ids: dict[Order, str] = {}
    for shape, alike in _by_shape(study, fresh).items():
        asked = _asked(options, shape)
        for start in range(0, len(alike), _ARRAY):
            part = alike[start : start + _ARRAY]
            jobs = [
                Requeued(f"{__name__}.run_order", f"{__name__}.give_up", _plain(order), surroundings) for order in part
            ]
            found = _submit(book.folder, study.name, jobs, asked)
            ids |= zip(part, found, strict=True)
    end = []
    if ids:
        book.add(ids)
        arrays = list(dict.fromkeys(job.partition("_")[0] for job in ids.values()))
        asked = {**_given(options), **_given(reducer), "dependency": "afterany:" + ":".join(arrays)}
        ends = [(_plain(order), f"see {book.log(job)}") for order, job in ids.items()]
        last = Requeued(f"{__name__}.conclude_orders", None, ends, surroundings)
        end = _submit(book.folder, f"{study.name}-end", [last], asked)
        log.info("submitted %d jobs to Slurm, %s, and %s to run after them", len(ids), ", ".join(arrays), end[0])
        log.info("what they say is in %s; scancel %s ends them", book.folder, " ".join(arrays + end))
    if not wait:
        return []
    ids |= queued
    _wait_for([*ids.values(), *end])
    return [JobReturn(status=JobStatus.COMPLETED, _return_value=f"see {book.log(ids[order])}") for order in orders]


def run_order(order: Mapping[str, Any], surroundings: Mapping[str, Any]) -> int:
    """A job as submitit runs it, in each of its processes; the arguments of an order and of its surroundings."""
    return work(_order(order), Surroundings(**surroundings))


def give_up(reason: str, order: Mapping[str, Any], surroundings: Mapping[str, Any]) -> None:
    """Say of the cells of a job that it will not be started again."""
    for cell in _order(order).cells:
        status = cell.status()
        if not settled(status):
            facts = {key: status[key] for key in ("pairs", "done") if key in status}
            write_status(cell.folder, "failed", error=reason, signal="SIGUSR2", **facts)


def conclude_orders(ends: Sequence[tuple[Mapping[str, Any], str]], surroundings: Mapping[str, Any]) -> int:
    """The job that runs when all others of a submission have ended, with what is known of their ends."""
    Surroundings(**surroundings).enter()
    orders = {_order(order): end for order, end in ends}
    first = next(iter(orders))
    study = Study.open(first.root, first.study)
    with dashboards(study):
        conclude(study, orders)
    return 0


def _plain(order: Order) -> dict[str, Any]:
    return {**order._asdict(), "shard": str(order.shard)}


def _order(plain: Mapping[str, Any]) -> Order:
    return Order(**{**plain, "shard": Shard.parse(plain["shard"])})


class _Book:
    """Which jobs of a study were submitted, beside what they say."""

    def __init__(self, study: Study) -> None:
        self.folder = study.folder / "slurm"
        self.file = self.folder / "submitted.jsonl"

    def log(self, job: str) -> str:
        """Where the first process of a job writes what it says."""
        return str(self.folder / f"{job}_0_log.out")

    def add(self, ids: Mapping[Order, str]) -> None:
        lines = [{"id": job, "job": order.job, "shard": str(order.shard)} for order, job in ids.items()]
        with self.file.open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def queued(self, orders: Sequence[Order]) -> dict[Order, str]:
        """Those of the orders that wait or run since an earlier submission, with their numbers at Slurm."""
        if not self.file.exists():
            return {}
        known = [json.loads(line) for line in self.file.read_text().splitlines()]
        waiting = _in_queue([line["id"] for line in known])
        found = {(line["job"], line["shard"]): line["id"] for line in known if line["id"] in waiting}
        return {order: found[key] for order in orders if (key := (order.job, str(order.shard))) in found}


def _submit(folder: Path, name: str, jobs: Sequence[Requeued], asked: Mapping[str, Any]) -> list[str]:
    """Submit callables, several as one array; their numbers at Slurm."""
    from submitit import SlurmExecutor

    options = dict(asked)
    executor = SlurmExecutor(folder, max_num_timeout=options.pop("max_num_timeout"))
    memory = options.pop("mem_gb", None)
    if memory is not None:
        options["mem"] = f"{round(memory * 1024)}M"
    if not options["gpus_per_node"]:
        options.pop("gpus_per_node")  # a cluster without GPUs does not know the word
    executor.update_parameters(
        job_name=f"twinsight-{name}",
        ntasks_per_node=options.pop("tasks_per_node"),
        stderr_to_stdout=True,
        # Slurm since 22.05 does not hand the number of cores on to srun; and where one process of a job fails, the
        # others would wait for it.
        srun_args=[f"--cpus-per-task={options['cpus_per_task']}", "--kill-on-bad-exit=1"],
        **options,
    )
    try:
        with executor.batch():
            submitted = [executor.submit(job) for job in jobs]
    except RuntimeError as error:
        raise UserError(f"Slurm does not take the jobs: {str(error).strip().splitlines()[-1]}") from error
    return [job.job_id for job in submitted]


def _wait_for(ids: Sequence[str]) -> None:
    waiting = _in_queue(ids)
    while waiting:
        time.sleep(_POLL_SECONDS)
        waiting = _in_queue(list(waiting))


def _in_queue(ids: Sequence[str]) -> set[str]:
    """Those of the jobs that wait or run. Whether a job ended well is not asked: only cells know that."""
    arrays = sorted({job.partition("_")[0] for job in ids})
    if not arrays:
        return set()
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(arrays)}"]
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode != 0 and "Invalid job id" in asked.stderr:
        return set()  # the only one asked about, and long over
    if asked.returncode != 0:
        log.warning("squeue does not answer: %s", asked.stderr.strip())
        return set(ids)  # the controller may be back in a moment
    return set(ids) & set(asked.stdout.split())


def _by_shape(study: Study, orders: Sequence[Order]) -> dict[Shape, list[Order]]:
    """Orders by what their cells' trainers want; cells of a job are alike."""
    jobs = study.jobs
    found: dict[Shape, list[Order]] = {}
    for order in orders:
        found.setdefault(Shape.of(jobs[order.job][0].config["trainer"]), []).append(order)
    return found


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _asked(options: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    asked = {**shape._asdict(), **_given(options)}
    for name, key in (("tasks_per_node", "devices"), ("nodes", "num_nodes")):
        if asked[name] != getattr(shape, name):
            raise UserError(
                f"`hydra.launcher.{name}={asked[name]}` does not fit trainer.{key}={getattr(shape, name)}: leave it out"
            )
    return asked
