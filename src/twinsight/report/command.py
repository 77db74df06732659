"""``twinsight report``: the study report."""

import argparse
import sys
from pathlib import Path

from twinsight.errors import UserError


def main(arguments: list[str]) -> int:
    """Write a report as ``arguments`` ask; 0, or 2 when there is something for the user to mend."""
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
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse has said what is wrong, or has shown its help
        return int(stop.code or 0)
    try:
        # Here, since --help should not wait for torch.
        from twinsight.report.html import build_report, collect

        collection = collect(options.study, options.root)
        output = options.output or _default(options.study, options.root)
        if output.suffix.lower() not in (".html", ".htm"):
            raise UserError(f"`--output` must end in .html, got {str(output)!r}")
        written = build_report(collection).write(output, not options.no_full_maps, not options.no_figures)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report of {collection.name}: {written[0]} ({written[0].stat().st_size / 1e6:.1f} MB)")
    for folder in written[1:]:
        print(f"keep {folder} beside it for full maps and figures")
    return 0


def _default(wanted: list[str], root: Path) -> Path:
    for folder in (root / wanted[0], Path(wanted[0])):
        if len(wanted) == 1 and (folder / "plan.jsonl").exists():
            return folder / "report.html"
    return root / "report.html"
