"""``twinsight info``: what there is to choose from, as tables for the terminal and for the documentation."""

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from twinsight.complaints import explain_error
from twinsight.config import conf_folder, options, register_schema
from twinsight.errors import UserError
from twinsight.explainers import Explainer
from twinsight.files import write_atomically
from twinsight.metrics import ALL_METRICS, METRICS
from twinsight.models import TwoViewModel, available_models, build_model, load_model, published_models
from twinsight.signatures import locate

_BEGIN, _END = "<!-- begin table: {name} (make tables) -->", "<!-- end table -->"
_DOCUMENTED = ("model=small_two_view", "model.input_size=224")  # costs at the paper's size, without weights


@dataclass(frozen=True)
class Table:
    """Rows of text under named columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table as Markdown, without its title."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    def print(self, console: Console) -> None:
        table = RichTable(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for place, name in enumerate(self.columns):
            table.add_column(name, no_wrap=place == 0)
        for row in self.rows:
            table.add_row(*row)
        console.print(table)


def show(arguments: Sequence[str]) -> int:
    """Run ``twinsight info ARGUMENTS``; the exit code.

    Raises:
        UserError: the configuration that the overrides make does not fit.
    """
    parser = argparse.ArgumentParser("twinsight info", description="What there is to choose from.")
    parser.add_argument("what", choices=TABLES, help="which table")
    parser.add_argument("overrides", nargs="*", help="of the configuration that costs are given for: model=NAME ...")
    parser.add_argument("--markdown", action="store_true", help="as Markdown")
    asked = parser.parse_args(arguments)
    table = TABLES[asked.what](_composed(asked.overrides))
    if asked.markdown:
        print(table.markdown())
        return 0
    console = Console()
    table.print(console if console.is_terminal else Console(width=140))
    return 0


def explainers(config: DictConfig) -> Table:
    """Every explainer with what it costs for the model and views of ``config``, and which metrics apply to it."""
    model = _model(config)
    size = (config.views.size, config.views.size)
    rows = []
    chosen, given = config.hydra.runtime.choices.explainer, config.explainer
    for name in _files("explainer"):
        # With the options that were given, for the one that was chosen.
        file = conf_folder() / "explainer" / f"{name}.yaml"
        config.explainer = given if name == chosen else OmegaConf.load(file)
        kind = locate(f"explainer={name}", config.explainer._target_)
        assert isinstance(kind, type)
        assert issubclass(kind, Explainer)
        try:
            explainer = hydra.utils.instantiate(config.explainer, model=model)
            cost, metrics = str(explainer.declared_cost(size) or "not declared"), _applicable(explainer)
        except (UserError, InstantiationException) as error:
            cost, metrics = f"not for this model: {explain_error(error)}", _applicable(kind)
        rows.append((name, kind.title, kind.family, cost, metrics, kind.source))
    title = f"Explainers: passes of single images per pair at {size[0]} x {size[1]} pixels (F forward, b backward)"
    return Table(title, ("explainer", "method", "family", "cost", "metrics", "source"), tuple(rows))


def metrics(config: DictConfig) -> Table:
    """Every metric, which way is better, and what it asks of an explainer."""
    rows = []
    for name, metric in ALL_METRICS.items():
        meaning = _summary(metric).split(": ", 1)[-1].split(". ")[0].rstrip(".")
        needs = "maps of both views" if metric.maps == 2 else "one map"
        rows.append((name.upper(), meaning, "higher" if metric.higher_is_better else "lower", needs, metric.__name__))
    return Table("Metrics", ("metric", "meaning", "better", "needs", "class"), tuple(rows))


def models(config: DictConfig) -> Table:
    """Every model name with where its weights come from."""
    rows = []
    for name in available_models():
        figures = load_model(name).figures
        rows.append((name, "with the package", f"{figures['method']}, k-NN {100 * figures['knn_accuracy']:.1f} %"))
    rows += [(name, "your file: model.checkpoint=FILE", "published") for name in published_models()]
    named = {row[0] for row in rows}
    for name in _files("model"):
        if name not in named:
            target = OmegaConf.load(conf_folder() / "model" / f"{name}.yaml")
            built_here = not target._target_.endswith("load_model")
            what = _summary(locate(f"model={name}", target._target_)).rstrip(".") if built_here else "what you trained"
            rows.append((name, _weights(target), what))
    return Table("Models", ("model", "weights", "what it is"), tuple(rows))


def datasets(config: DictConfig) -> Table:
    """Every data set with what it needs."""
    rows = []
    for name in _files("data"):
        node = OmegaConf.load(conf_folder() / "data" / f"{name}.yaml")
        assert isinstance(node, DictConfig)
        needs = ", ".join(f"data.{key!s}" for key in node if OmegaConf.is_missing(node, key)) or "nothing"
        rows.append((name, _summary(locate(f"data={name}", node._target_)).rstrip("."), needs))
    return Table("Data sets", ("data", "what it is", "needs"), tuple(rows))


TABLES: dict[str, Callable[[DictConfig], Table]] = {
    "explainers": explainers,
    "metrics": metrics,
    "models": models,
    "datasets": datasets,
}


def documented(text: str) -> str:
    """``text`` of a page with the tables between its marks brought up to date."""
    config = _composed(_DOCUMENTED)
    for name, make in TABLES.items():
        begin = _BEGIN.format(name=name)
        if begin in text:
            before, _, rest = text.partition(begin)
            after = rest.partition(_END)[2]
            text = f"{before}{begin}\n{make(config).markdown()}\n{_END}{after}"
    return text


def _composed(overrides: Sequence[str]) -> DictConfig:
    register_schema()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3", job_name="info"):
        return hydra.compose("config", list(overrides), return_hydra_config=True)


def _model(config: DictConfig) -> TwoViewModel:
    # Costs need no weights: a published model whose file is not given is built untrained.
    node = config.model
    if node.get("name") in published_models() and not node.get("checkpoint"):
        return build_model(node.name, seed=0, input_size=node.get("input_size"))
    return hydra.utils.instantiate(node)


def _applicable(explainer: Explainer | type[Explainer]) -> str:
    reasons = {name.upper(): metric.why_not(explainer) for name, metric in METRICS.items()}
    fitting = [name for name, reason in reasons.items() if reason is None]
    if len(fitting) == len(reasons):
        return "all"
    why = "; ".join(dict.fromkeys(reason for reason in reasons.values() if reason is not None))
    return f"{' '.join(fitting) or 'none'} ({why})"


def _weights(node: object) -> str:
    assert isinstance(node, DictConfig)
    if node._target_.endswith("load_model"):
        return "your file: model.checkpoint=FILE"
    for key in ("checkpoint", "weights", "path"):
        if key in list(node):  # a mandatory value that is not given is not "in" it
            needed = OmegaConf.is_missing(node, key)
            return f"your file: model.{key}=..." if needed else f"none, your file, or DEFAULT: model.{key}"
    return "yours" if "trunk" in node or "network" in node else "none: for training"


def _files(group: str) -> list[str]:
    return [name for name in options(group) if (conf_folder() / group / f"{name}.yaml").exists()]


def _summary(target: Callable) -> str:
    """The first sentence of a docstring, on one line."""
    first = (inspect.getdoc(target) or "").split("\n\n")[0]
    return " ".join(first.split()).split(". ")[0]


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        text = documented(path.read_text())
        write_atomically(path, lambda partial, text=text: partial.write_text(text))  # type: ignore[misc]
