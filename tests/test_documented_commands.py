"""What the documents tell readers to type is typed: each page's commands, one after another, in a folder of their own.

The folder has what a page asks its reader to have: photos, files of weights, a package with a network. Words are
added that leave fewer photos, points, samples and epochs; large networks are exchanged for small ones. What a command
does stays.
"""

import logging
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from glob import glob
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from documents import Code, go_where_there_is, is_a_test
from test_documentation import CURRENT, RUN_ELSEWHERE, commands
from toy_cells import write_photo
from twinsight import __main__ as command_line
from twinsight.__main__ import SUBCOMMANDS

OF_THE_CHECKOUT = {"make", "pip", "source"}
"""What makes the environment that these tests run in: `.ci/run` types it."""

NOT_HERE = {
    r"(python run\.py|twinsight) app": "app/test_app_command.py::test_it_serves_the_page_until_it_is_told_to_stop",
    r"python -m benchmarks.*": None,  # minutes on a quiet machine
    r"python docs/images/make\.py explainers": "test_howto.py::test_the_page_on_adding_an_explainer_is_followed",
    r"python tests/slurm_cluster\.py bash": None,  # a shell on a Slurm
}
"""Commands that are not run here, and the test that runs them."""

SOMEBODY_S = re.compile(r"\bNAME\b|=[a-z](,[a-z])+( |$)|=\.\.\.| \.\.\.|-m twinsight$")
"""Within a line, what stands for a command of the reader's."""

SMALLER = {
    "model=simclrv2_r50_2x": "model=pretrained",
    "model=barlow_twins": "model=pretrained",
    "model.name=convnext_tiny": "model.name=resnet18",
    "model.name=vit_small_patch14_reg4_dinov2": "model.name=vit_tiny_patch16_224",
    "model.input_size=518": "model.input_size=64",
    "model.input_size=224": "model.input_size=32",
    "model.weights=DEFAULT": "model.weights=null",  # nothing is downloaded
    "model.weights=FILE": "model.weights=vit.pt",
    "model.path=DIR": "model.path=saved",
    "seed=0,1,2": "seed=0",
    "seed=0,1": "seed=0",
    "sweep.trials=20": "sweep.trials=3",
    "explainers.options.smoothgrad.samples=20": "explainers.options.smoothgrad.samples=2",
    "views.size=224": "views.size=64",
}
FEWER = (("data.limit", 2), ("metrics.insertion_deletion.points", 4), ("explainers.options.pixel_invariance.epochs", 2))
SOME = 6
"""Of the files that a pattern stands for."""
LARGE = {f"model={name}" for name in ("checkpoint", "custom", "huggingface", "module", "torchvision")} | {
    "views=simclr"
}
"""What has views of 224 pixels where nothing else is said."""

ALWAYS = ("logger=none", "trainer=cpu", "data.limit=2", "metrics.insertion_deletion.points=4", "pictures.limit=1")
TRAINING = ("trainer=cpu", "task.epochs=1", "task.batch_size=8", "task.watch.photos.limit=1", "loader.num_workers=0")
PAPER = (
    "pictures.limit=0",
    "model.input_size=32",
    *(f"explainers.options.{name}.stride=16" for name in ("conditional_occlusion", "context_agnostic_occlusion")),
    *(f"explainers.options.{name}.samples=2" for name in ("smoothgrad", "smoothgrad_g")),
    "explainers.options.pairwise_occlusion.num_samples=2",
    "explainers.options.pixel_invariance.samples=20",
    "explainers.options.pixel_invariance.epochs=2",
)


@pytest.fixture
def of_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what pages ask for, to be in."""
    for number in range(16):
        for split in ("train", "test"):
            photo = tmp_path / "DIR" / split / ("cat", "dog")[number % 2] / f"{number}.png"
            photo.parent.mkdir(parents=True, exist_ok=True)
            write_photo(photo, number)
    for number in range(2):
        write_photo(tmp_path / f"{number}.png", number)
        shutil.copy(tmp_path / f"{number}.png", tmp_path / "DIR" / f"ILSVRC2012_val_{number + 1:08}.JPEG")
    (tmp_path / "pairs.csv").write_text("image1,image2\n0.png,1.png\n1.png,0.png\n")
    (tmp_path / "PATH").symlink_to("DIR")
    shutil.copy(str(files("twinsight") / "weights" / "demo_simclr.safetensors"), tmp_path / "FILE")
    my_package = (
        "from torch import nn\nfrom torchvision.models import resnet18 as my_network\nMyNetwork = my_network\n"
        "def MyTrunk():\n    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU())\n"
    )
    go_where_there_is(my_package, tmp_path, monkeypatch)
    monkeypatch.setenv("WANDB_MODE", "offline")
    handlers, level = logging.root.handlers[:], logging.root.level
    yield tmp_path
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def _files_of_other_libraries(folder: Path) -> None:
    timm, transformers = pytest.importorskip("timm"), pytest.importorskip("transformers")
    torch.save(timm.create_model("vit_tiny_patch16_224", img_size=64).state_dict(), folder / "vit.pt")
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    transformers.ResNetModel(transformers.ResNetConfig(**sizes)).save_pretrained(folder / "saved")
    (folder / "saved" / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    torch.save(resnet18(num_classes=8).state_dict(), folder / "resnet.pt")


def short(words: Sequence[str]) -> list[str]:
    """Words of a command of ours, cut short."""
    words = [SMALLER.get(word, word) for word in words if not word.endswith("...")]
    for key, number in FEWER:
        words = [re.sub(rf"^{key}=\d+$", f"{key}={number}", word) for word in words]
    if words[:1] and words[0] in SUBCOMMANDS:
        planning = words[:2] == ["study", "plan"]
        there = [part for word in words for part in (sorted(glob(word))[:SOME] or [word])]
        return there + planning * ["model=demo_simclr"]
    if "--help" in words:
        return words
    training = any(re.match("task=pretrain|experiment=pretrain", word) for word in words)
    added = list(TRAINING if training else ALWAYS)
    if "explainer=conditional_occlusion" in words:
        added.append("explainer.stride=8")
    if any(re.match(r"explainers=.*conditional_occlusion", word) for word in words):
        added.append("explainers.options.conditional_occlusion.stride=8")
    if any(re.match(r"explainers=\[?paper|experiment=paper_table", word) for word in words):
        added += PAPER
    if "experiment=paper_table" in words:
        added.append("metrics.max_sensitivity.draws=1")
    if any(word in LARGE for word in words):
        added.append("model.input_size=64")
    if "trainer=ddp" in words:
        added += ["trainer.devices=1", "trainer.accelerator=cpu"]
    if "model=checkpoint" in words:
        words = [word.replace("checkpoint=FILE", "checkpoint=resnet.pt") for word in words]
    if "metrics=none" in words:
        added = [word for word in added if not word.startswith("metrics.")]
    new = {word.partition("=")[0]: word for word in added}
    return words + [word for key, word in new.items() if key not in {word.partition("=")[0] for word in words}]


IN_BLOCKS = {command.text for page in CURRENT for command in commands(page) if not command.inline}


def typed(page: Path) -> Iterator[Code]:
    """The commands of a page that are run here."""
    for command in commands(page):
        elsewhere = [test for pattern, test in NOT_HERE.items() if re.fullmatch(pattern, command.text)]
        if elsewhere:
            assert elsewhere[0] is None or is_a_test(elsewhere[0])
        elif not _is_left_out(command):
            yield command


def _is_left_out(command: Code) -> bool:
    if command.mark.startswith("needs: ") or command.text in RUN_ELSEWHERE:
        return True
    first, *rest = command.text.split()
    if first in OF_THE_CHECKOUT:
        return True
    named = first == "twinsight" and len(rest) == 1  # in a sentence, about the subcommand
    return command.inline and bool(command.text in IN_BLOCKS or named or SOMEBODY_S.search(command.text))


@pytest.mark.parametrize("page", [page for page in CURRENT if any(typed(page))], ids=lambda page: page.name)
def test_the_commands_of_a_page_run_one_after_another(page, of_a_reader, monkeypatch):
    if page.name == "models-and-data.md":
        _files_of_other_libraries(of_a_reader)
    for command in typed(page):
        words = re.sub(r"^(time )?(python run\.py|python -m twinsight|twinsight)", "", command.text)
        assert words != command.text, f"{command.place}: say in NOT_HERE which test runs {command.text!r}"
        monkeypatch.setattr(sys, "argv", ["run.py", *short(shlex.split(words))])
        assert command_line.main() == 0, f"{command.place}: {sys.argv}"
