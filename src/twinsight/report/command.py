"""``twinsight report``: the study report."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from twinsight.errors import UserError


def main(words: Sequence[str]) -> int:
    """Run ``twinsight report WORDS``; the exit code.

    Raises:
        UserError: there is no such study or cell, or the file to write is no HTML.
    """
    parser = argparse.ArgumentParser(
        prog="twinsight report",
        description="Write one HTML file that says what was run and what came out; it opens from disk.",
    )
    parser.add_argument(
        "study", nargs="+", help="name of a study, its folder, or folders of cells (outputs/cells/*)", metavar="STUDY"
    )
    parser.add_argument("--output", type=Path, help="file to write (default: report.html in the study's folder)")
    parser.add_argument("--root", type=Path, default=Path("outputs"), help="where runs write (default: outputs)")
    parser.add_argument(
        "--no-full-maps", action="store_true", help="leave out maps and views at full size, which lie beside the page"
    )
    parser.add_argument("--no-figures", action="store_true", help="leave out the charts as PNG and PDF")
    asked = parser.parse_args(words)
    # Here, since --help should not wait for torch.
    from twinsight.report.html import build_report, collect

    output = asked.output or _default(asked.study, asked.root)
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"`--output {output}` must end in .html")
    collection = collect(asked.study, asked.root)
    written = build_report(collection).write(output, not asked.no_full_maps, not asked.no_figures)
    print(f"report of {collection.name}: {written[0]} ({written[0].stat().st_size / 1e6:.1f} MB)")
    for folder in written[1:]:
        print(f"keep {folder} beside it for full maps and figures")
    return 0


def _default(wanted: list[str], root: Path) -> Path:
    for folder in (root / wanted[0], Path(wanted[0])):
        if len(wanted) == 1 and (folder / "plan.jsonl").exists():
            return folder / "report.html"
    return root / "report.html"
