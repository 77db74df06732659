"""``twinsight study``: look at studies, plan them without running, go on with them, make tables of them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from twinsight.errors import UserError
from twinsight.report import write_rows
from twinsight.study.aggregate import flat_records, tabulate_study
from twinsight.study.progress import Progress, plan_lines, status_lines
from twinsight.study.prune import prune
from twinsight.study.study import Study


def main(words: Sequence[str]) -> int:
    """Run ``twinsight study WORDS``; the exit code.

    Raises:
        UserError: there is no such study, or nothing to do what was asked with.
    """
    parser = _parser()
    asked, more = parser.parse_known_args(words)
    # Words after an option: argparse takes positional arguments in one piece.
    if more and (not hasattr(asked, "words") or any(word.startswith("-") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        asked.words += more
    return asked.act(asked)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "twinsight study", description="Studies: planned by python run.py -m study=NAME ..., looked at here."
    )
    acts = parser.add_subparsers(required=True, metavar="WHAT")

    def act(name: str, does: Any, text: str, study: bool = True) -> argparse.ArgumentParser:
        sub = acts.add_parser(name, help=text, description=text)
        sub.set_defaults(act=does)
        if study:
            sub.add_argument("study", help="name of the study")
        sub.add_argument("--root", type=Path, help="output folder (default: outputs)")
        return sub

    plan = act("plan", _plan, "what a study would do, and cost, before anything runs; writes nothing", study=False)
    plan.add_argument("words", nargs="+", help="the words that would follow -m; or the name of a planned study")
    run = act("run", _run, "go on with a planned study")
    run.add_argument("words", nargs="*", help="how: retry_failed=true, shard=4, hydra/launcher=...")
    act("status", _status, "how far a study is; may be asked while it runs")
    table = act("table", _table, "means with intervals over pairs and seeds, as Markdown, CSV and Parquet")
    table.add_argument("--by", action="append", metavar="AXIS", help="a row per value (default: every axis but seed)")
    table.add_argument("--where", action="append", default=[], metavar="AXIS=VALUE", help="only cells that have it")
    table.add_argument("--output", type=Path, help="folder (default: tables/ in the study's)")
    export = act("export", _export, "every record of every finished cell in one flat file")
    export.add_argument("--output", type=Path, help="FILE.parquet or FILE.csv (default: records.parquet of the study)")
    pruned = act("prune", _prune, "remove results of a study that no other study has planned")
    pruned.add_argument("--failed", action="store_true", help="only those of cells that failed or were interrupted")
    pruned.add_argument("--yes", action="store_true", help="remove; without it, say what would be removed")
    return parser


def _plan(asked: argparse.Namespace) -> int:
    named = len(asked.words) == 1 and "=" not in asked.words[0]
    study = _opened(asked, asked.words[0]) if named else None  # before anything heavy is imported
    from twinsight.study.driver import dry_run, speeds

    if study is not None:
        lines = plan_lines(study, speeds)
    else:
        lines = dry_run([*asked.words, *([f"paths.output_root={asked.root}"] if asked.root else [])])
    _print(lines)
    return 0


def _run(asked: argparse.Namespace) -> int:
    study = _opened(asked, asked.study)
    from twinsight.__main__ import run_words

    return run_words(["-m", f"study={study.name}", f"paths.output_root={study.root}", *asked.words])


def _status(asked: argparse.Namespace) -> int:
    _print(status_lines(Progress.of(_opened(asked, asked.study))))
    return 0


def _table(asked: argparse.Namespace) -> int:
    study = _opened(asked, asked.study)
    table = tabulate_study(study, asked.by, asked.where)
    print(table.grid().markdown())
    for path in table.write(asked.output or study.folder / "tables"):
        print(path, file=sys.stderr)
    return 0


def _export(asked: argparse.Namespace) -> int:
    study = _opened(asked, asked.study)
    output = asked.output or study.folder / "records.parquet"
    if output.suffix not in (".parquet", ".csv"):
        raise UserError(f"`--output {output}` must end in .parquet or .csv")
    rows = list(flat_records(study))
    if not rows:
        raise UserError(f"no cell of study {study.name} is done yet: twinsight study status {study.name}")
    write_rows(output, rows)
    print(f"{len(rows)} records in {output}")
    return 0


def _prune(asked: argparse.Namespace) -> int:
    _print(prune(_opened(asked, asked.study), only_failed=asked.failed, remove=asked.yes))
    return 0


def _opened(asked: argparse.Namespace, name: str) -> Study:
    return Study.open(asked.root or Path("outputs"), name)


def _print(lines: Sequence[str]) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    for line in lines:
        console.print(line)
