"""The notebooks of docs/howto, and the page on adding an explainer, run from top to bottom."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from documents import ROOT, blocks
from test_documentation import commands

FOLDER = Path(__file__).parents[1] / "docs" / "howto"


@pytest.mark.parametrize("notebook", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    read = nbformat.read(notebook, as_version=4)
    NotebookClient(read, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    if os.environ.get("TWINSIGHT_WRITE_NOTEBOOKS"):  # with what they show, for readers
        for cell in read.cells:
            cell.metadata.pop("execution", None)
            if "outputs" in cell:  # warnings are about one machine
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        nbformat.write(read, notebook)


PAGE = ROOT / "docs" / "adding-an-explainer.md"
WRITTEN = {
    "src/twinsight/explainers/matching.py": '"""Places that',
    "conf/explainer/matching.yaml": "_target_",
    "tests/explainers/test_matching.py": '"""Matching:',
}
"""Files that the page writes, by how they begin."""


@pytest.mark.slow
def test_the_page_on_adding_an_explainer_is_followed(tmp_path):
    for name in ("src", "conf", "docs", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    code = [block.text for block in blocks(PAGE)]
    for path, begins in WRITTEN.items():
        assert f"`{path}`" in PAGE.read_text()
        (tmp_path / path).write_text(next(text for text in code if text.startswith(begins)))
    exported = tmp_path / "src" / "twinsight" / "explainers" / "__init__.py"
    imported = "from twinsight.explainers.matching import Matching\n"
    text = exported.read_text().replace("__all__ = [", f'{imported}\n__all__ = [\n    "Matching",')
    exported.write_text(text)
    page = tmp_path / "docs" / "explainers.md"
    section = "### `matching`\n\n![Matching](images/explainers/matching.jpg)\n\n## Controls\n"
    page.write_text(page.read_text().replace("## Controls\n", section))
    typed = [shlex.split(command.text) for command in commands(PAGE) if not command.inline]
    followed = [words for words in typed if words[0] not in ("source", "pip")]  # the environment is this one
    assert len(followed) == 9
    for words in followed:
        if words == ["make", "tables"]:  # in an environment of its own
            words = ["python", "-m", "twinsight.info", *(str(each) for each in (tmp_path / "docs").glob("*.md"))]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "WANDB_MODE": "disabled"}
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    assert (tmp_path / "docs" / "images" / "explainers" / "matching.jpg").exists()
    tables = list((tmp_path / "outputs" / "matching" / "tables").glob("*.md"))
    assert "matching" in tables[0].read_text().lower()
