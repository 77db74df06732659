"""What came out, as JSON and as a page."""

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import approximations
from benchmarks.items import RIVAL, Compared
from benchmarks.measure import MOST_ROUNDS, Timing

Row = dict[str, Any]
COLUMNS = ("network", "item", "ours, s", "against", "theirs, s", "ratio", "aim", "our passes", "their passes")
MORE_COLUMNS = ("of peak", "memory, MB: ours / theirs", "slice: ours / theirs")
HOW = """`literal` does what the published code is described to do: batches of one for gradients and metrics, contiguous
batches of 32 for occlusion, parameters that collect gradients where any are asked for, the partner encoded at every
step. All explain the same pair at 224 pixels with the same random weights, in turn, in one process; rows of
occlusion, and of curves, share their rounds, so that some seconds stand in more than one. Seconds are medians of
{repeats} rounds or, where they are short, of up to {most}, after a first one that warms up (and folds the network,
once for all pairs). Long items are timed on a slice, given in the last column, times counted passes, what chunks are
filled up with included; what a slice does just once (both views and the ends of curves, one at a time) is timed by
itself and counted once. Gradients of noisy and mixed images start from known embeddings of both views, as after any
other method: only the score that comes with our maps takes them, and what maps take of view 1 is computed again and
counted. Memory is what the first round added to the loaded model. Of peak: floating-point operations of our passes
over those of matrix products of side 2048, measured in turn with them; where they are passes over whole images, and
those of the first convolution counted for each image, though gradients that are added up go back through it once a
chunk. Curves of random weights hardly bend, so that approximate ones end after few points; those of trained networks
take far more (docs/speed.md), and such ratios are not to be expected."""
TABLE_ROWS = 16
"""Rows of the paper's table."""


def row(network: str, compared: Compared, timings: dict[str, Timing], flops: float, peak: float) -> Row:
    """One line of the table; ``flops`` is of one image's forward, ``peak`` of matrix products meanwhile."""
    ours, other = timings[compared.ours], timings[compared.other]
    return {
        "network": network,
        "item": compared.name,
        "against": compared.other,
        "seconds": ours.median,
        "other_seconds": other.median,
        "ratio": other.median / ours.median,
        "aim": compared.aim,
        "passes": str(ours.passes),
        "other_passes": str(other.passes),
        "matrix_products": peak,
        "share_of_peak": ours.passes.total * flops / ours.median / peak if compared.whole else None,
        "memory": ours.memory,
        "other_memory": other.memory,
        "sampled": ours.sampled,
        "other_sampled": other.sampled,
        "all_seconds": {name: timings[name].seconds for name in (compared.ours, compared.other)},
    }


def summary(line: Row) -> str:
    """One line of a row, for the terminal."""
    theirs = f"{line['against']} {line['other_seconds']:.2f} s"
    return f"{line['network']}: {line['item']}: {line['seconds']:.2f} s, {theirs}, ratio {line['ratio']:.2f}"


def paper_table(rows: list[Row], approximate: bool = False) -> Row:
    """Explanations of the paper's 16 rows and their metrics without max-sensitivity, put together from what was timed.

    Pixel invariance is counted at the cost of whole forwards (ours 1001, published 2000); variants with noise
    cost what those without do. ``approximate`` curves are counted for every row's metrics.
    """
    by_name = {
        each["item"]: each for each in rows if each["against"] == RIVAL and each["network"] == rows[0]["network"]
    }

    curves = "SI, SD, CI, CD, approximate" if approximate else "SI, SD, CI, CD, both"

    def total(key: str, passes: tuple[float, float]) -> float:
        def of(start: str) -> float:
            return next(each[key] for name, each in by_name.items() if name.startswith(start))

        plain_and_guided = [
            (each[key] for name, each in by_name.items() if name.startswith(start))
            for start in ("SmoothGrad", "Averaged transforms")
        ]
        smooth, averaged = (sum(seconds) for seconds in plain_and_guided)
        explaining = of("Conditional and") + of("Pairwise") + of("Grad-CAM") + 2 * of("Input x") + smooth + 2 * averaged
        invariance = of("Conditional occlusion, engine.incremental=false") * passes[0] / passes[1]
        return explaining + invariance + TABLE_ROWS * (of(curves) + of("SAD"))

    ours, literal = total("seconds", (1001, 884)), total("other_seconds", (2000, 884))
    return {
        **dict.fromkeys(by_name["SI, SD, CI, CD, both directions"]),
        "network": rows[0]["network"],
        "item": "The paper's table, 16 rows without MS" + ", approximate curves" * approximate + " (put together)",
        "against": RIVAL,
        "seconds": ours,
        "other_seconds": literal,
        "ratio": literal / ours,
        "aim": 12.0 if approximate else 4.5,
    }


def facts(device: torch.device, peak: float, arguments: dict[str, Any], peers: dict[str, str | None]) -> dict[str, Any]:
    """When, on what, with what."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "matrix_product_peak": peak,
        "arguments": arguments,
        "peers": peers,
    }


def write(path: Path, found: dict[str, Any]) -> None:
    """``path`` with the suffixes .json and .md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
    path.with_suffix(".md").write_text(page(found))


def page(found: dict[str, Any]) -> str:
    """The Markdown page."""
    about = found["facts"]
    missing = [name for name, known in about["peers"].items() if known is None]
    present = [f"{name} {known}" for name, known in about["peers"].items() if known is not None]
    said = [
        f"Written by `{about['command']}` on {about['date']}: {about['processor']}, {about['threads']} threads, device",
        f"{about['device']}, torch {about['torch']};",
        f"matrix products reach up to {about['matrix_product_peak'] / 1e9:.0f} GFLOP/s.",
    ]
    how = about["arguments"]
    if how["precision"] != "fp32" or how["compile"]:
        said.append(f"Our side in {how['precision']}{', compiled' * how['compile']}; the others in fp32, uncompiled.")
    if about["load"] is not None:
        said.append(f"Load average of the machine meanwhile: {about['load']:.1f}.")
    said.append(f"It took {about['minutes']:.0f} minutes.")
    if not about["finished"]:
        said.append(f"**Stopped before its end, after {len(found['rows'])} rows.**")
    if how["quick"]:
        said.append("Peers are left out with --quick.")
    if present:
        said.append(f"Peers: {', '.join(present)}.")
    if missing:
        said.append(f"Not installed, so not measured: {', '.join(missing)} (`pip install 'twinsight[bench]'`).")
    lines = [
        "# Benchmarks",
        "",
        " ".join(said),
        "",
        HOW.format(repeats=how["repeats"], most=MOST_ROUNDS * how["repeats"]),
        "",
    ]
    lines.append(f"| {' | '.join(COLUMNS + MORE_COLUMNS)} |")
    lines.append("|---|---|--:|---|--:|--:|--:|---|---|--:|--:|--:|")
    lines += [_line(each) for each in found["rows"]]
    lines += ["", *(f"Not measured: {why}." for why in found["failed"])] if found["failed"] else []
    if found.get("slopes"):
        lines += ["", "## Growth", "", "Log-log slopes: 1 is proportional, 0 is flat.", ""]
        lines += ["| with | from | to | time | memory | memory at the end, MB |", "|---|--:|--:|--:|--:|--:|"]
        lines += [
            f"| {each['of']} | {each['counts'][0]} | {each['counts'][-1]} | {each['time_slope']:.2f} "
            f"| {each['memory_slope']:.2f} | {each['memory'][-1] / 2**20:.0f} |"
            for each in found["slopes"]
        ]
    if found.get("approximations"):
        lines += ["", "## Approximate modes", "", approximations.summary(found["approximations"])]
    if found.get("precisions"):
        lines += ["", "## Precision", "", "Largest change of each metric over the pairs, against fp32 uncompiled.", ""]
        names = list(found["precisions"][0]["moved"])
        lines += [
            f"| precision | compiled | forwards/s | {' | '.join(names)} |",
            f"|---|---|{'--:|' * (1 + len(names))}",
        ]
        lines += [
            f"| {each['precision']} | {each['compile']} | {each['forwards_per_second']:.0f} | "
            + " | ".join(f"{each['moved'][name]:.1e}" for name in names)
            + " |"
            for each in found["precisions"]
        ]
    elif about["device"] == "cpu":
        lines += ["", "No GPU was at hand: reduced precision, compilation and their aims were not measured."]
    if found.get("ranks"):
        rank = found["ranks"]
        lines += [
            "",
            f"Two processes of one core do {rank['speedup']:.2f} times the work of one (aim: 1.8): "
            f"{rank['one_seconds']:.1f} s alone, {rank['two_seconds']:.1f} s side by side; of matrix products "
            f"{rank['products_speedup']:.2f} times.",
        ]
    return "\n".join(lines) + "\n"


def _line(each: Row) -> str:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    sampled = ""
    if each["sampled"] is not None:
        sampled = f"{each['sampled']:.0%} / {each['other_sampled']:.0%}"
    memory = "" if each["memory"] is None else f"{each['memory'] / 2**20:.0f} / {each['other_memory'] / 2**20:.0f}"
    cells = [
        each["network"],
        each["item"],
        shown(each["seconds"], ".2f"),
        each["against"],
        shown(each["other_seconds"], ".2f"),
        shown(each["ratio"], ".2f"),
        shown(each["aim"], ".1f"),
        each["passes"] or "",
        each["other_passes"] or "",
        shown(each["share_of_peak"], ".2f"),
        memory,
        sampled,
    ]
    return f"| {' | '.join(cells)} |"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
