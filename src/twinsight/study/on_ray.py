"""A study's jobs as tasks of Ray: a process and what it leases per job, on one machine or a cluster."""

import logging
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from twinsight.errors import UserError, require_extra
from twinsight.exits import GRACE_SECONDS, exit_code, silence_telemetry
from twinsight.study.job import Order
from twinsight.study.remote import Surroundings, work
from twinsight.study.study import Study, StudyCell

log = logging.getLogger(__name__)
_POLL_SECONDS = 1.0


def check(config: DictConfig) -> None:
    """Refuse what cannot be run, before a study is planned.

    Raises:
        UserError: Ray is missing; the task is no study.
    """
    silence_telemetry()  # Ray reads it as early as it is imported
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # lines of different jobs that differ in a number are no repetition
    require_extra("hydra/launcher=ray", "Ray", "ray")
    if config.task._target_ != "twinsight.study.explain":
        raise UserError("hydra/launcher=ray runs studies of explanations; run other tasks one by one")


def launch(
    config: DictConfig, words: Sequence[Sequence[str]], resources: Mapping[str, Any], init: Mapping[str, Any]
) -> list[JobReturn]:
    """Run jobs as Ray finds room for them, and wait.

    Args:
        config: of the multirun.
        words: of each job.
        resources: ``num_cpus``, ``num_gpus`` and ``max_retries`` of each.
        init: options of ``ray.init``.

    Returns:
        one per job, in their order.

    Raises:
        UserError: there is no Ray at the address, or it has not what a job wants to lease.
    """
    import ray

    orders = [Order.parse(config, each) for each in words]
    surroundings = Surroundings.of(config)
    jobs = Study.open(orders[0].root, orders[0].study).jobs
    init = {name: value for name, value in init.items() if value is not None}
    _connect(init)
    try:
        room = ray.cluster_resources()
        leases = [lease(resources, jobs[order.job][0].config["trainer"], room) for order in orders]
        if "address" not in init and "RAY_ADDRESS" not in os.environ:  # else it may grow
            _check_room(leases, room)
        tasks = [
            ray.remote(max_calls=1)(_work).options(**lease).remote(order, surroundings)
            for order, lease in zip(orders, leases, strict=True)
        ]
        log.info("%d jobs on Ray: %g CPUs, %g GPUs", len(tasks), room.get("CPU", 0), room.get("GPU", 0))
        return _ended(tasks, [jobs[order.job] for order in orders])
    finally:
        ray.shutdown()


def _work(order: Order, surroundings: Surroundings) -> int:
    """A job as Ray runs it, in a process that ends with it."""
    return exit_code(lambda: work(order, surroundings))


def _connect(init: Mapping[str, Any]) -> None:
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(include_dashboard=False, **init)
    except (ValueError, ConnectionError, RuntimeError) as error:
        raise UserError(f"hydra/launcher=ray cannot start or find Ray: {error}") from error
    signal.signal(signal.SIGTERM, handler)  # Ray's own would end this process without a word to the jobs


def lease(resources: Mapping[str, Any], trainer: Mapping[str, Any], room: Mapping[str, float]) -> dict[str, Any]:
    """What a job holds while it runs: as many GPUs as said, or else one where its trainer would take one."""
    accelerator = trainer.get("accelerator", "auto")
    gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and room.get("GPU", 0) >= 1)
    given = resources["num_gpus"]
    return {**resources, "num_gpus": int(gpu) if given is None else given}


def _check_room(leases: Sequence[Mapping[str, Any]], room: Mapping[str, float]) -> None:
    for name, key in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        most = max(lease[key] for lease in leases)
        if most > room.get(name, 0):
            raise UserError(
                f"a job wants to hold {most:g} {name}s, and Ray has {room.get(name, 0):g}: "
                f"lower `hydra.launcher.{key}`, or say what there is, `hydra.launcher.init.{key}`"
            )


def _ended(tasks: Sequence[Any], cells: Sequence[Sequence[StudyCell]]) -> list[JobReturn]:
    """Wait for tasks; what became of each."""
    import ray

    waiting = list(tasks)
    found: dict[Any, JobReturn] = {}
    try:
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=_POLL_SECONDS)
            for task in ready:
                found[task] = _result(task)
                for cell in cells[tasks.index(task)]:
                    log.info("[%d/%d] %s %s", len(found), len(tasks), cell.status()["state"], cell.name)
    except BaseException:  # Ctrl-C or SIGTERM, which the jobs must hear of
        for task in waiting:
            ray.cancel(task)
        ray.wait(waiting, num_returns=len(waiting), timeout=GRACE_SECONDS)
        raise
    return [found[task] for task in tasks]


def _result(task: Any) -> JobReturn:
    import ray

    try:
        code = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        return JobReturn(status=JobStatus.FAILED, _return_value=error.cause)
    except ray.exceptions.RayError as error:
        return JobReturn(status=JobStatus.FAILED, _return_value=error)
    return JobReturn(status=JobStatus.COMPLETED, _return_value=f"exit code {code}")
