"""Every error that a user can mend has a test that quotes what is said."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ERRORS = ("UserError", "NotApplicable", "unknown")
QUOTED = 3
"""Words in a row, of what stands between the values in a message, that have to stand in a test; or all, of fewer."""


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.replace("\\", "").lower())


def pieces(message: ast.AST) -> Iterator[str]:
    """What a message says whatever the values in it are."""
    if isinstance(message, ast.Constant) and isinstance(message.value, str):
        yield message.value
    elif not isinstance(message, ast.FormattedValue):
        for node in ast.iter_child_nodes(message):
            yield from pieces(node)


def raised(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line and fixed pieces of every user error that a file makes with a message of its own."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and node.args and getattr(node.func, "id", "") in ERRORS:
            found = [piece for piece in pieces(node.args[0]) if words(piece)]
            if found:
                yield node.lineno, found


def said_in_tests() -> str:
    """The words of all texts in tests, one space apart, and a line for each text."""
    texts = []
    for path in (ROOT / "tests").rglob("*.py"):
        if path == Path(__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(f" {' '.join(words(node.value))} ")
    return "\n".join(texts)


def test_every_user_error_is_quoted_in_a_test():
    said = said_in_tests()
    silent = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for line, found in raised(path):
            quotes = [
                " ".join(part[start : start + QUOTED])
                for part in map(words, found)
                for start in range(max(1, len(part) - QUOTED + 1))
                if len(part) >= QUOTED or max(map(len, map(words, found))) < QUOTED
            ]
            if not any(f" {quote} " in said for quote in quotes):
                silent.append(f"{path.relative_to(ROOT)}:{line}: {' ... '.join(found)}")
    assert not silent, "\n".join(silent)
