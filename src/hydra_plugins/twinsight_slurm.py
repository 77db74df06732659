"""``hydra/launcher=slurm``; Hydra looks for launchers in this package alone, what it does is in ``twinsight.study``."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class SlurmLauncher(Launcher):
    """Submits the jobs of a study to Slurm.

    Args:
        wait: until they have ended.
        reducer: options of the job that runs after all others, where they differ.
        options: of :class:`twinsight.study.on_slurm.Resources`.
    """

    def __init__(self, wait: bool = False, reducer: Mapping[str, Any] | None = None, **options: Any) -> None:
        self.wait = wait
        self.reducer: Any = OmegaConf.to_container(reducer) if isinstance(reducer, DictConfig) else dict(reducer or {})
        self.options = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in options.items()
        }

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from twinsight.study.on_slurm import check

        self.config = config
        check(config, self.options, self.reducer)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from twinsight.study.on_slurm import launch

        return launch(self.config, job_overrides, self.options, self.reducer, self.wait)
