"""Docstrings as Markdown when the site is built: references become links, examples become code."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        _rewrite(pkg)


def _rewrite(of: griffe.Object) -> None:
    if of.is_module:
        of.docstring = None  # the page introduces itself
    elif of.docstring:
        text = re.sub(r":\w+:`~?([\w.]+)`", lambda found: _link(of, found[1]), of.docstring.value)
        example = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)  # to the next empty line
        of.docstring.value = example.sub(lambda found: "Examples:\n" + re.sub("^", "    ", found[0], flags=re.M), text)
    for member in of.members.values():
        if not member.is_alias:
            _rewrite(member)


def _link(of: griffe.Object, name: str) -> str:
    """A link where the site has the place, else code."""
    try:
        place = of.resolve(name)
    except griffe.NameResolutionError:
        place = name
    return f'<autoref optional identifier="{place}"><code>{name.rpartition(".")[2]}</code></autoref>'
