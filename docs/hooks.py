"""Formulas as MathML when the site is built, so that pages need no script and no network.

Written as GitHub reads them: a fenced block ``math``, and ``$`x^2`$`` within a line.
"""

from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from pymdownx.superfences import SuperFencesException


def on_config(config: Any) -> None:
    config.markdown_extensions.append(Formulas())
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [
        {"name": "math", "class": "math", "format": _block}
    ]


class Formulas(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(_Inline(r"\$`([^`]+)`\$", md), "formula", 200)  # before code, 190


class _Inline(InlineProcessor):
    def handleMatch(self, m: Any, data: str) -> tuple[str | Element, int, int]:
        return self.md.htmlStash.store(_mathml(m.group(1), "inline")), m.start(0), m.end(0)


def _block(source: str, *_: Any, **__: Any) -> str:
    """What ``\\qquad`` keeps apart stands side by side where there is room, and one below the other on a phone."""
    formulas = [_mathml(part, "block") for part in source.split(r"\qquad")]
    return f'<div class="math">{"".join(formulas)}</div>'


def _mathml(source: str, display: str) -> str:
    made = convert(source, display=display)
    if "\\" in made:  # what the converter does not know it leaves as it is
        raise SuperFencesException(f"no MathML for {source!r}")  # of errors in fences, the one that is not swallowed
    return made
