"""What the documents tell readers to type, to run and to follow is there and works.

A command of ours is parsed, or its configuration composed and held against the schema; a command of other programs has
to stand in a block whose mark says what it needs, ``<!-- needs: a Slurm cluster -->``. What is neither fails.
"""

import argparse
import ast
import gc
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from unittest.mock import patch
from urllib.parse import unquote

import matplotlib
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from documents import PAGES, ROOT, Code, anchors, blocks, go_where_there_is, is_a_test, links, spans
from twinsight.__main__ import SUBCOMMANDS
from twinsight.config import check_words, conf_folder, options, refuse_several_devices, register_schema, validate
from twinsight.explainers import EXPLAINERS
from twinsight.study.sweep import axes_of

CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""Pages whose commands have to be there; a history may name what has gone."""

OF_OTHERS = {
    *("apt-get", "nvidia-smi", "tensorboard", "tmux", "torchrun", "wandb", "ray"),
    *("sacct", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun"),
}
"""Programs that are not ours."""

_SWEPT = "python run.py -m model=pretrained model.checkpoint="
RUN_ELSEWHERE = {
    _SWEPT + "$(ls outputs/pretrain/simclr/weights/*.safetensors | paste -sd,)": (
        "pretrain/test_commands.py::test_a_sweep_over_saved_epochs_gives_a_cell_for_each"
    ),
    **dict.fromkeys(
        (
            "python run.py explainer=matching explainer.power=3 data.limit=2",
            "python run.py 'explainers=[matching,controls]' explainers.of=matching data.limit=2",
            "python run.py -m study=matching explainer=matching explainer.power=1,3 data.limit=2",
            "python run.py study table matching",
            "python -m pytest tests/explainers/test_matching.py src/twinsight/explainers/matching.py",
            "python -m pytest tests/explainers/test_contract.py -k Matching",
            "python -m pytest tests/test_info.py",
        ),
        "test_howto.py::test_the_page_on_adding_an_explainer_is_followed",
    ),
}
"""Commands that need a shell or what a page makes, and the test that runs them."""

SHELL, PYTHON, NOT_RUN = {"sh", "bash", "console"}, {"python"}, {"bibtex", "csv", "math", "text", "yaml"}
A_COMMAND = re.compile(r"^\s*(\$ |python (-m|\w+\.py)|make \w|pip install)", re.MULTILINE)


def kind(code: Code) -> str:
    """``shell``, ``python``, ``other`` or ``unknown``; what is not said is found out."""
    if code.language in NOT_RUN or code.mark == "not code":
        return "unknown" if A_COMMAND.search(code.text) else "other"
    if code.language in SHELL or (not code.language and code.text.split()[0] in {*CHECKS, *OF_OTHERS}):
        return "shell"
    if code.language in PYTHON:
        return "python"
    try:
        ast.parse(code.text if not code.language else "not Python")
    except SyntaxError:
        return "unknown"
    return "python"


def commands(page: Path) -> Iterator[Code]:
    """The commands of a page, each on one line, without comments."""
    for block in blocks(page):
        if kind(block) == "shell":
            line = block.line + bool(block.language)
            for text in block.text.replace("\\\n", "\0").splitlines():
                bare = re.sub(r"\s+#.*", "", re.sub(r"\0 *", "", text)).removeprefix("$ ").strip()
                if bare and not bare.startswith("#") and (block.language != "console" or text.startswith("$ ")):
                    yield block._replace(text=bare, line=line)
                line += 1 + text.count("\0")
    for span in spans(page):
        if span.text.split() and span.text.split()[0] in CHECKS and " " in span.text:
            yield span


def overrides_compose(words: Sequence[str], multirun: bool = False) -> None:
    """The configuration that overrides mean fits the schema; of a multirun that of the first combination."""
    given = [word for word in words if not re.search(r"\.\.\.$|=[a-z](,[a-z])*$", word)]  # model=a,b stands for any
    if multirun:
        given = [axis[0] for axis in axes_of(given, GlobalHydra.instance().config_loader())]
    config = compose("config", given, return_hydra_config=True)
    validate(config)
    check_words(config, given)
    if multirun:
        refuse_several_devices(config, config.hydra.launcher)


def run_py(words: list[str]) -> None:
    if words and words[0] in SUBCOMMANDS:
        if words[1:] == [] and words[0] != "app":
            return  # in a sentence, about the subcommand
        asked = parsed(SUBCOMMANDS[words[0]], words[1:])
        if words[0] == "info":
            overrides_compose(asked.overrides)
        elif getattr(asked, "words", None):
            overrides_compose(asked.words, multirun=True)
        for model in getattr(asked, "model", []):
            overrides_compose(f"model={model}".split())
        return
    flags = [word for word in words if word.startswith("-")]
    assert set(flags) <= {"-m", "--help", "--version"}
    overrides_compose([word for word in words if word not in flags], multirun="-m" in flags)


class Parsed(Exception):
    """Raised in place of what a program does once it has read its words."""


def parsed(main: Callable[[Sequence[str]], object], words: Sequence[str]) -> argparse.Namespace:
    """What a program's own argparse makes of its words."""
    given = [word for word in words if not word.endswith("...")] or list(words)
    parse, depth = argparse.ArgumentParser.parse_known_args, 0

    def parse_and_stop(self, *args, **kwargs):
        nonlocal depth
        depth += 1
        found, more = parse(self, *args, **kwargs)
        depth -= 1
        if depth:  # a subparser
            return found, more
        assert not [word for word in more if word.startswith("-")], more
        raise Parsed(found, more)

    stopping = patch.object(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
    with stopping, pytest.raises(Parsed) as stopped:
        main(given)
    return stopped.value.args[0]


def python(words: list[str]) -> None:
    if words[:1] == ["run.py"] or words[:2] == ["-m", "twinsight"]:
        run_py(words[1 + (words[0] == "-m") :])
    elif words[:2] == ["-m", "benchmarks"]:
        with patch.object(sys, "path", [str(ROOT), *sys.path]), patch.object(sys, "argv", words[1:]):
            from benchmarks.__main__ import main

            parsed(lambda _: main(), words[2:])
    else:
        assert (ROOT / words[0]).is_file()


def make(words: list[str]) -> None:
    text = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_variable, _ = word.partition("=")
        assert re.search(rf"^{name} \?=|\$\({name}\)" if is_variable else rf"^{name}:", text, re.MULTILINE), word


def pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    action, *rest = [word for word in words if word not in ("-e", "--editable")]
    assert action == "install"
    for word in rest:
        names = re.fullmatch(r"(?:\.|twinsight)(?:\[([\w,]+)\])?", word)
        assert names, f"not ours: {word}"
        assert set((names[1] or "dev").split(",")) <= set(extras), word


def source(words: list[str]) -> None:
    assert words == [".venv/bin/activate"]


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "make": make,
    "pip": pip,
    "python": python,
    "source": source,
    "time": lambda words: CHECKS[words[0]](words[1:]),
    "twinsight": run_py,
}


def once(found: Iterable[Code]) -> list[Code]:
    """Each text where it stands first."""
    return [*{code.text: code for code in reversed([*found])}.values()][::-1]


@pytest.fixture(autouse=True)
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where commands stand for a reader's own: files and a package."""
    for name in ("FILE", "outputs/pretrain/simclr.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(files("twinsight") / "weights" / "demo_simclr.safetensors"), tmp_path / name)
    my_package = (
        "from torch.nn import Identity\ndef __getattr__(name):\n    if name[:2] in ('My', 'my'): return Identity\n"
        "    raise AttributeError(name)\n"
    )
    go_where_there_is(my_package, tmp_path, monkeypatch)


@pytest.fixture
def composing() -> Iterator[None]:
    register_schema()
    gc.disable()  # which takes a third of the time that a composition does
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield
    gc.enable()


COMMANDS = once(code for page in CURRENT for code in commands(page))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda code: code.place)
def test_a_command_is_one_that_there_is(command, composing):
    if command.text in RUN_ELSEWHERE:
        assert is_a_test(RUN_ELSEWHERE[command.text])
        return
    words = shlex.split(command.text)
    assert not {"|", "&&", ";", ">"} & set(words), "one command a line, or name its test in RUN_ELSEWHERE"
    if words[0] in OF_OTHERS:
        assert command.mark.startswith("needs: "), "say before the block what it needs: <!-- needs: a Slurm cluster -->"
    else:
        assert words[0] in CHECKS, f"say how {words[0]!r} is checked, or that it is of others"
        CHECKS[words[0]](words[1:])


def test_every_command_that_is_run_elsewhere_is_still_there():
    assert set(RUN_ELSEWHERE) <= {command.text for command in COMMANDS}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("python run.py explainer=grad_cam", "grad_cam"),
        ("python run.py explainer.reducton=max", "reducton"),
        ("python run.py -m seed=0,1 model=demo_simcl,demo_supervised", "demo_simcl"),
        ("python run.py -m trainer=ddp trainer.devices=2 seed=0,1", "several devices"),
        ("python run.py data.limit=2 --quiet", "--quiet"),
        ("twinsight info explainers model=nosuch", "nosuch"),
        ("twinsight study plan study=paper modell=demo_simclr", "modell"),
        ("twinsight study sttus paper", "sttus"),
        ("twinsight study table paper --buy explainer", "--buy"),
        ("twinsight app --model 'pretrained chekpoint=FILE'", "chekpoint"),
        ("python -m benchmarks --quik", "--quik"),
        ("python docs/nosuch.py", "nosuch"),
        ("make tets", "tets"),
        ("make bench BNCH=--quick", "BNCH"),
        ('pip install "twinsight[rya]"', "rya"),
        ("pip install twinsihgt", "twinsihgt"),
    ],
)
def test_a_command_that_there_is_not_is_found(text, wrong, composing, capsys):
    words = shlex.split(text)
    with pytest.raises((Exception, SystemExit)) as error:
        CHECKS[words[0]](words[1:])
    assert wrong in f"{error.value}{capsys.readouterr().err}"


GROUPS = {path.name for path in conf_folder().iterdir() if path.is_dir()} - {"hydra"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_choices_that_a_page_names_are_there(page):
    register_schema()
    named = {
        pair for span in spans(page) for pair in re.findall(r"(?<![\w.+@/])(\w+)=\[?([a-z]\w+)\b(?![.({])", span.text)
    }
    assert {(group, name) for group, name in named if group in GROUPS and name not in options(group)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_is_of_a_known_kind(page):
    assert [block for block in blocks(page) if kind(block) == "unknown"] == [], (
        "fence it with a language, or mark it: <!-- not code -->"
    )


# Python


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_a_page_runs_from_top_to_bottom(page, tmp_path):
    for number, name in enumerate(("bull_moose.jpg", "honey_bee.jpg"), 1):
        shutil.copy(str(files("twinsight") / "data" / "photos" / name), tmp_path / f"photo{number}.jpg")
    matplotlib.use("agg")
    known = {"__name__": "of_a_reader"}
    before = [block.text for earlier in PAGES[: PAGES.index(page)] for block in blocks(earlier)]
    with patch.dict(EXPLAINERS):  # where a class of the page is entered
        for block in blocks(page):
            if kind(block) == "python":
                code = compile("\n" * (block.line - 1 + bool(block.language)) + block.text, page, "exec")
                if not block.mark.startswith("needs: ") and not any(block.text in text for text in before):
                    exec(code, known)


# Links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page):
    """Anchors within docs/ are those of the site, which MkDocs checks when it is built."""
    lost = []
    for line, target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        to = (page.parent / name).resolve() if name else page
        of_the_site = ROOT / "docs" in page.parents
        if not to.exists() or (anchor and not of_the_site and anchor not in anchors(to)):
            lost.append(f"{page.name}:{line}: {target}")
    assert lost == []
