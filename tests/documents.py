"""What the documents tell readers: blocks of code, commands, links, headings."""

import json
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "docs" / "howto").glob("*.ipynb")),
]
_READER = MarkdownIt("commonmark").enable("table")


class Code(NamedTuple):
    """A block of code, or code within a line.

    Attributes:
        page, line: where it stands, from 1; of a notebook, in its prose alone.
        language: after the fence; of an indented block and within a line empty.
        inline: whether it stands within a line.
        mark: what the comment before it says, ``<!-- needs: a Slurm cluster -->`` or ``<!-- not code -->``.
    """

    page: Path
    line: int
    text: str
    language: str = ""
    inline: bool = False
    mark: str = ""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _tokens(page: Path) -> list[Token]:
    return _READER.parse(_prose(page) if page.suffix == ".ipynb" else page.read_text())


def _prose(notebook: Path) -> str:
    """What a notebook says between its code."""
    cells = json.loads(notebook.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def is_a_test(test: str) -> bool:
    """Whether there is a ``"file.py::test"`` below ``tests/``."""
    file, name = test.split("::")
    return f"def {name}(" in (ROOT / "tests" / file).read_text()


def go_where_there_is(my_package: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into ``folder``, which gets a module of a reader's own with this source, to be imported from there."""
    (folder / "my_package.py").write_text(my_package)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)  # that of another test
    monkeypatch.chdir(folder)


def blocks(page: Path) -> Iterator[Code]:
    """Blocks of code, fenced or indented."""
    for before, token in pairwise([Token("", "", 0), *_tokens(page)]):
        if token.type in ("fence", "code_block"):
            mark = re.search(r"<!-- (.+) -->\s*$", before.content) if before.type == "html_block" else None
            assert token.map is not None
            yield Code(page, token.map[0] + 1, token.content, token.info, mark=mark[1] if mark else "")


def spans(page: Path) -> Iterator[Code]:
    """Code within lines."""
    line = 0
    for token in _tokens(page):
        line = token.map[0] + 1 if token.map else line  # cells of a table have the line of their row
        for child in token.children or ():
            if child.type == "code_inline":
                yield Code(page, line, child.content, inline=True)


def links(page: Path) -> Iterator[tuple[int, str]]:
    """Lines and targets of links and pictures."""
    line = 0
    for token in _tokens(page):
        line = token.map[0] + 1 if token.map else line
        for child in token.children or ():
            target = child.attrs.get("href" if child.type == "link_open" else "src")
            if target is not None:
                yield line, str(target)


def anchors(page: Path) -> set[str]:
    """What ``#...`` may say of a page where its source is read: headings in lower case with hyphens for blanks."""
    found: set[str] = set()
    for opening, token in pairwise(_tokens(page)):
        if opening.type == "heading_open":
            shown = "".join(child.content for child in token.children or () if child.type in ("text", "code_inline"))
            anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
            again = (f"{anchor}-{number}" for number in range(1, 1000))
            found.add(anchor if anchor not in found else next(one for one in again if one not in found))
    return found
