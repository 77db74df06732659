"""``hydra/launcher=ray``; Hydra looks for launchers in this package alone, what it does is in ``twinsight.study``."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class RayLauncher(Launcher):
    """Runs the jobs of a study as tasks of Ray, and waits for them.

    Args:
        num_cpus: that a job holds.
        num_gpus: that a job holds; None for one where the trainer wants a GPU.
        max_retries: of a job whose process died.
        init: options of ``ray.init``, such as the address of a cluster.
    """

    def __init__(
        self,
        num_cpus: float = 1,
        num_gpus: float | None = None,
        max_retries: int = 0,
        init: Mapping[str, Any] | None = None,
    ) -> None:
        self.resources = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_retries": max_retries}
        self.init: Any = OmegaConf.to_container(init) if isinstance(init, DictConfig) else dict(init or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from twinsight.study.on_ray import check

        self.config = config
        check(config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from twinsight.study.on_ray import launch

        return launch(self.config, job_overrides, self.resources, self.init)
