"""What docs/troubleshooting.md is headed by is what the program says."""

import ast
import re
from pathlib import Path

import pytest
import torch

from twinsight import __main__ as command_line
from twinsight.explainers import EXPLAINERS
from twinsight.metrics import ALL_METRICS

ROOT = Path(__file__).parents[1]
HEADINGS = re.findall(r"^## `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def said() -> str:
    """Every text in the source, with gaps where something is filled in."""
    texts = []
    for path in (ROOT / "src" / "twinsight").rglob("*.py"):
        tree = ast.parse(path.read_text())
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                texts.append(re.sub(r"%\w|\{\w+\}", "\0", node.value))
    return "\n".join(texts).replace("`", "")


def test_there_are_headings():
    assert len(HEADINGS) >= 15
    assert len(set(HEADINGS)) == len(HEADINGS)


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_fixed_parts_of_a_heading_stand_in_the_source(heading, said):
    parts = [part.strip(" '\"`.:?,()[];") for part in re.split(r"\.\.\.|(?<=left out): ", heading)]
    parts = [part for part in parts if part]
    assert parts
    assert [part for part in parts if part not in said] == []


@pytest.mark.parametrize(
    "words",
    [
        ["explainer=grad_cam"],
        ["trainer.devces=2"],
        ["seed=abc"],
        ["gradcam"],
        ["data.limit=[1"],
        ["explainers=[gradcam,lafam]", "explainer.layer=trunk"],
        ["-m", "trainer=ddp", "seed=1,2"],
        ["data=image_folder", "data.root=nowhere"],
        ["data=image_folder", "data.root=."],
        ["model=barlow_twins", "model.checkpoint=carries_code.pt"],
        ["task=pretrain", "data.root=.", "task.resume=nowhere.ckpt"],
    ],
    ids=lambda words: words[-1],
)
def test_what_goes_wrong_is_said_under_a_heading(words, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main sets them; so they are put back
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": ROOT}, tmp_path / "carries_code.pt")  # a path is no tensor
    quiet = ["logger=none", "trainer=cpu", "hydra/job_logging=none", "hydra/hydra_logging=none"]
    quiet = [word for word in quiet if "trainer=ddp" not in words or not word.startswith("trainer")]
    monkeypatch.setattr("sys.argv", ["run.py", *words, *(quiet if words != ["gradcam"] else [])])
    assert command_line.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    patterns = [".*".join(map(re.escape, heading.split("..."))) for heading in HEADINGS]
    assert any(re.fullmatch(f"error: {pattern}", line.replace("`", "")) for pattern in map(_bare, patterns)), line


def test_every_reason_that_leaves_a_metric_out_has_a_heading():
    classes = [each for each in EXPLAINERS.values() if each.__module__.startswith("twinsight.")]
    reasons = {metric.why_not(explainer) for metric in ALL_METRICS.values() for explainer in classes} - {None}
    assert len(reasons) >= 4
    patterns = [".*".join(map(re.escape, heading.split("..."))) for heading in HEADINGS]
    for reason in reasons:
        assert any(re.fullmatch(pattern, f"GradCAM: SI left out: {reason}") for pattern in patterns), reason


def _bare(pattern: str) -> str:
    return pattern.replace("`", "")
