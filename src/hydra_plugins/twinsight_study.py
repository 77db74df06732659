"""Hydra looks for sweepers in this package alone; what they do is in ``twinsight.study``."""

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class StudySweeper(BasicSweeper):
    """Plans all combinations of a multirun as one study, then launches what is missing.

    Tasks other than ``explain`` know no cells: they are swept as Hydra does.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.task_function = task_function

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        if OmegaConf.select(self.config, "task._target_") != "twinsight.study.explain":
            return super().sweep(arguments)
        assert self.hydra_context is not None
        words = [*self._parse_config(), *arguments]
        if OmegaConf.select(self.config, "sweep"):
            from twinsight.study.search import search

            return search(self.config, words, self.hydra_context, self.task_function)
        from twinsight.study.driver import sweep  # brings torch along

        return sweep(self.config, words, self.hydra_context, self.task_function)
