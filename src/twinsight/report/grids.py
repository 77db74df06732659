"""Tables as readers see them, in Markdown and LaTeX."""

import math
import re
from dataclasses import dataclass, field

DASH = "-"
_ARROWS = {True: ("↑", r"$\uparrow$"), False: ("↓", r"$\downarrow$"), None: ("", "")}
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


@dataclass
class Entry:
    """One cell: a text, smaller text behind it, whether it is bold, and numbers of footnotes."""

    text: str
    small: str = ""
    bold: bool = False
    notes: list[int] = field(default_factory=list)


@dataclass
class Grid:
    """A table with its caption and footnotes.

    Attributes:
        title: heading in Markdown; LaTeX has the caption alone.
        heads: text of each column, and whether high is good (True), bad (False), or neither (None).
        explainers: lines before the controls, which are set apart.
        lines: entries; the first of a line names it.
        caption: below the heading.
        notes: footnotes, numbered from 1.

    >>> grid = Grid("Scores", [("Explainer", None), ("SI", True)], 1, caption="Two pairs.")
    >>> grid.lines.append([Entry("Grad-CAM"), Entry("0.500", "[0.400, 0.600]", bold=True, notes=[grid.note("Few.")])])
    >>> print(grid.markdown())
    ## Scores
    <BLANKLINE>
    Two pairs.
    <BLANKLINE>
    | Explainer | SI ↑ |
    |---|---:|
    | Grad-CAM | **0.500** [0.400, 0.600]<sup>1</sup> |
    <BLANKLINE>
    1. Few.
    <BLANKLINE>
    """

    title: str
    heads: list[tuple[str, bool | None]]
    explainers: int
    lines: list[list[Entry]] = field(default_factory=list)
    caption: str = ""
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> int:
        """The number of a footnote; the same text is noted once."""
        if text not in self.notes:
            self.notes.append(text)
        return self.notes.index(text) + 1

    def markdown(self) -> str:
        """A heading, the caption, the table, footnotes."""
        heads = [f"{_markdown(head)} {_ARROWS[good][0]}".strip() for head, good in self.heads]
        lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
        for place, line in enumerate(self.lines):
            name = _markdown(line[0].text)
            first = f"*{name}*" if place >= self.explainers else name
            lines.append([first + _sup(line[0].notes), *map(_markdown_entry, line[1:])])
        table = [
            "|" + "|".join(cells) + "|" if cells[0] == "---" else "| " + " | ".join(cells) + " |" for cells in lines
        ]
        notes = [f"{place}. {_markdown(text)}" for place, text in enumerate(self.notes, 1)]
        parts = [f"## {self.title}", _markdown(self.caption), "\n".join(table), "\n".join(notes)]
        return "\n\n".join(part for part in parts if part) + "\n"

    def latex(self) -> str:
        """A ``table`` environment; the document needs the package booktabs."""
        heads = [f"{_latex(head)} {_ARROWS[good][1]}".strip() for head, good in self.heads]
        body = []
        for place, line in enumerate(self.lines):
            if place == self.explainers and place:
                body.append(r"\midrule")
            name = _latex(line[0].text)
            first = rf"\emph{{{name}}}" if place >= self.explainers else name
            body.append(" & ".join([first + _latex_sup(line[0].notes), *map(_latex_entry, line[1:])]) + r" \\")
        notes = [rf"\textsuperscript{{{place}}} {_latex(text)}" for place, text in enumerate(self.notes, 1)]
        below = [r"\par\smallskip\raggedright\footnotesize", " \\\\\n".join(notes)] if notes else []
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_latex(self.caption)}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
                r"\toprule",
                " & ".join(heads) + r" \\",
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                *below,
                r"\end{table}",
                "",
            ]
        )


def number(value: float, signed: bool = False) -> str:
    """Three decimals, fewer for large numbers.

    >>> number(0.12345), number(578.03), number(0.5, signed=True), number(float("nan"))
    ('0.123', '578.0', '+0.500', '-')
    """
    if math.isnan(value):
        return DASH
    decimals = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    return re.sub(r"^[+-](0\.0+)$", r"\1", text)


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*<])", r"\\\1", text)


def _markdown_entry(entry: Entry) -> str:
    text = f"**{entry.text}**" if entry.bold else entry.text
    return f"{text} {entry.small}".rstrip() + _sup(entry.notes)


def _sup(notes: list[int]) -> str:
    return f"<sup>{','.join(map(str, notes))}</sup>" if notes else ""


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _latex_entry(entry: Entry) -> str:
    text = _latex_number(entry.text)
    text = rf"\textbf{{{text}}}" if entry.bold else text
    small = rf" {{\scriptsize {_latex_number(entry.small)}}}" if entry.small else ""
    return text + small + _latex_sup(entry.notes)


def _latex_number(text: str) -> str:
    return re.sub(r"-(?=\d)", "$-$", _latex(text))


def _latex_sup(notes: list[int]) -> str:
    return rf"\textsuperscript{{{','.join(map(str, notes))}}}" if notes else ""
