"""Tables of a set: exact texts of a tiny one, what is marked, counted and left empty, and files."""

import csv
import random
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twinsight.errors import UserError
from twinsight.report import Results, ResultTable, Row, Run, write_tables
from twinsight.report.grids import Entry, Grid
from twinsight.report.results import kind_of

FLAGS = {"degenerate1": False, "degenerate2": False, "nonpositive": False}


def records(**columns):
    """One record per pair; a column of scores is a list, None where the pair has no such column."""
    count = len(next(iter(columns.values())))
    return [
        {"index": place, "pair_id": f"photo{place}", "skipped": None, **FLAGS}
        | {name: values[place] for name, values in columns.items()}
        for place in range(count)
    ]


def timings(count, **costs):
    return [{"index": place, "host": "here", **costs} for place in range(count)]


def row(label, title=None, seconds=None, **scores):
    options = {name: scores.pop(name) for name in ("family", "is_control", "controls", "is_matched") if name in scores}
    why_not = scores.pop("not_applicable", {})
    found = records(**scores)
    spent = [] if seconds is None else timings(len(found), forwards=10, explain_seconds=seconds, metrics_seconds=1.5)
    return Row(label, title or label, [Run(found, spent)], not_applicable=why_not, **options)


def constant(value):
    """Four pairs of one value: intervals can be read off."""
    return [value] * 4


def tiny():
    """Two explainers, a control that is better than both, and one that is matched to the first; one control first."""
    return [
        row("random", "Random", si=constant(0.9), sd=constant(0.1), is_control=True),
        row("cam_a", "CAM & co", 0.25, si=constant(0.5), sd=constant(0.25), family="cam"),
        row("cam_b", "CAM_b 50%", 120, si=constant(0.75), sd=constant(0.5), family="cam"),
        row(
            "matched",
            "Matched random",
            si=constant(0.25),
            sd=constant(0.375),
            family="cam",
            is_control=True,
            controls="cam_a",
            is_matched=True,
        ),
    ]


def grids(rows, **options):
    table = ResultTable.of(Results(rows, resamples=99, **options))
    return table.means(), table.gains()


CAPTION = (
    "4 pairs. Mean and 95% interval over pairs (BCa bootstrap). The best explanation of a column is bold; controls, in "
    "italics, do not compete. F: forward passes a pair, metrics included, without what rows before had encoded. s: "
    "seconds a pair."
)


def test_markdown_of_a_tiny_table():
    means, gains = grids(tiny())
    assert means.markdown().splitlines() == [
        "## Two-image metrics",
        "",
        CAPTION,
        "",
        "| Explainer | SI ↑ | SD ↓ | F | s |",
        "|---|---:|---:|---:|---:|",
        "| CAM & co | 0.500 [0.500, 0.500] | **0.250** [0.250, 0.250] | 10 | 1.75 |",
        "| CAM_b 50% | **0.750** [0.750, 0.750] | 0.500 [0.500, 0.500] | 10 | 122 |",
        "| *Random* | 0.900 [0.900, 0.900] | 0.100 [0.100, 0.100] | - | - |",
        "| *Matched random* | 0.250 [0.250, 0.250] | 0.375 [0.375, 0.375] | - | - |",
    ]
    assert gains.markdown().splitlines()[4:] == [
        "| Explainer | SI ↑ | SD ↓ |",
        "|---|---:|---:|",
        "| CAM & co | +0.250 [+0.250, +0.250] | +0.125 [+0.125, +0.125] |",
        "| CAM_b 50% | +0.500 [+0.500, +0.500]<sup>1</sup> | -0.125 [-0.125, -0.125]<sup>1</sup> |",
        "| *Random* | - | - |",
        "| *Matched random* | - | - |",
        "",
        "1. Against Matched random, of the same family.",
    ]


def test_latex_of_a_tiny_table():
    means, gains = grids(tiny())
    assert means.latex().splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{" + CAPTION.replace("%", r"\%") + "}",
        r"\begin{tabular}{lrrrr}",
        r"\toprule",
        r"Explainer & SI $\uparrow$ & SD $\downarrow$ & F & s \\",
        r"\midrule",
        r"CAM \& co & 0.500 {\scriptsize [0.500, 0.500]} & \textbf{0.250} {\scriptsize [0.250, 0.250]} & 10 & 1.75 \\",
        r"CAM\_b 50\% & \textbf{0.750} {\scriptsize [0.750, 0.750]} & 0.500 {\scriptsize [0.500, 0.500]} & 10 & 122 \\",
        r"\midrule",
        r"\emph{Random} & 0.900 {\scriptsize [0.900, 0.900]} & 0.100 {\scriptsize [0.100, 0.100]} & - & - \\",
        r"\emph{Matched random} & 0.250 {\scriptsize [0.250, 0.250]} & 0.375 {\scriptsize [0.375, 0.375]} & - & - \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    assert r" & $-$0.125 {\scriptsize [$-$0.125, $-$0.125]}\textsuperscript{1} \\" in gains.latex()
    assert r"\textsuperscript{1} Against Matched random, of the same family." in gains.latex()


@pytest.mark.parametrize("text", ["a_b & c", "100 %", "$x^2$ ~ {y}", "#1 \\ <a|b> *", "plain"])
def test_latex_is_balanced_and_markdown_keeps_its_columns_whatever_a_row_is_called(text):
    grid = Grid(text, [("Explainer", None), (text, True)], 1, caption=text)
    grid.lines += [[Entry(text), Entry("1", "[0, 2]", True, [grid.note(text)])], [Entry(text), Entry("-")]]
    latex = grid.latex()
    unescaped = re.sub(r"\\[&%$#_{}]", "", latex)
    assert unescaped.count("{") == unescaped.count("}")
    assert unescaped.count("$") == 2  # the arrow's
    assert all(line.count("&") == 1 for line in unescaped.splitlines() if line.endswith(r"\\") and "&" in line)
    assert not set("%#_^~") & set(unescaped)
    assert re.findall(r"\\begin{(\w+)}", latex) == re.findall(r"\\end{(\w+)}", latex)[::-1]
    lines = [line for line in grid.markdown().splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}


def test_the_best_explanation_is_bold_and_never_a_control():
    table = ResultTable.of(Results(tiny(), resamples=99))
    assert {key for key, cell in table.cells.items() if cell.best} == {("cam_b", "si"), ("cam_a", "sd")}


def test_explanations_that_look_equal_are_bold_together_and_a_lone_one_is_not():
    equal = [row("a", si=constant(0.50001)), row("b", si=constant(0.50002)), row("c", si=constant(0.4))]
    control = row("d", si=constant(0.5), is_control=True)
    table = ResultTable.of(Results([*equal, control], resamples=99))
    assert [table.cells[label, "si"].best for label in "abcd"] == [True, True, False, False]
    alone = ResultTable.of(Results([row("a", si=constant(0.5)), tiny()[0]], resamples=99))
    assert not any(cell.best for cell in alone.cells.values())


def test_metrics_have_the_papers_order_and_the_explainers_theirs():
    rows = [row("b", cic=[0, 1], cd=[1, 2], si=[1, 2]), row("a", sd=[0, 1], score=[0, 1])]
    results = Results(rows, resamples=99)
    assert results.metrics == ("si", "sd", "cd", "cic")
    assert [one.label for one in results.rows] == ["b", "a"]


def test_metrics_beyond_the_papers_follow_and_are_spelt_out():
    rows = [row(label, pointing_game=[0, 1, 1], cic=[0.5, 1, 0]) for label in "ab"]
    means = grids(rows)[0]
    assert "| Explainer | CIC ↑ | Pointing game ↑ |" in means.markdown()
    assert "(BCa bootstrap; Wilson's for CIC and Pointing game)" in means.caption


def test_cells_that_make_no_sense_have_a_footnote_each_reason_once():
    both = "both views need a map, the method makes one"
    rows = [
        row("full", si=[0.5, 0.6], sd=[0.5, 0.6], ci=[0.5, 0.6]),
        row("one", ci=[0.5, 0.7], si=[None, None], sd=[float("nan")] * 2, not_applicable={"si": both, "sd": both}),
        row("failed", ci=[float("nan")] * 2, si=[0.1, 0.2], sd=[0.1, 0.2]),
    ]
    lines = grids(rows)[0].markdown().splitlines()
    assert next(line for line in lines if line.startswith("| one")).startswith(
        "| one | -<sup>1</sup> | -<sup>1</sup> |"
    )
    assert next(line for line in lines if line.startswith("| failed")).endswith("| -<sup>2</sup> |")
    assert lines[-2:] == ["1. Both views need a map, the method makes one.", "2. No pair has a value."]


def test_what_was_counted_is_said():
    found = records(si=[0.1, None, float("inf"), 0.4])
    found[0] |= {"degenerate1": True, "degenerate2": True}
    found[3] |= {"degenerate2": True, "nonpositive": True}
    found.append({"index": 4, "pair_id": "broken", "skipped": "cannot be read"})
    table = ResultTable.of(Results([Row("a", "a", [Run(found)]), row("b", si=[0.5] * 5)], resamples=99))
    lines = table.means().markdown().splitlines()
    assert re.fullmatch(r"\| a<sup>1,2,3,4</sup> \| 0\.250 \[.*\]<sup>5</sup> \|", lines[-8])
    assert lines[-5:] == [
        "1. 1 pair could not be read.",
        "2. 2 pairs with a constant or non-finite map: its ranking is chance.",
        "3. 1 pair with a similarity of zero or less: relative drops mean little.",
        "4. Explained 4 pairs of 5.",
        "5. 2 pairs of 4 without a value.",
    ]
    (line, _) = table.long()
    assert [line[name] for name in ("n", "missing", "pairs", "skipped", "degenerate", "nonpositive")] == [
        2,
        2,
        4,
        1,
        2,
        1,
    ]


def test_rows_in_less_than_single_precision_say_so():
    reduced, exact = ([{**each, "precision": name} for each in records(si=[0.1, 0.4])] for name in ("bf16", "fp32"))
    table = ResultTable.of(Results([Row("a", "a", [Run(reduced)]), Row("b", "b", [Run(exact)])], resamples=99))
    lines = table.means().markdown().splitlines()
    assert lines[-1] == "1. 2 pairs asked for in bf16, less than single precision."
    assert [line["reduced"] for line in table.long()] == [2, 0]


def test_a_gain_is_over_the_own_control_else_over_the_familys_else_there_is_none():
    options = {"is_control": True, "is_matched": True}
    rows = [
        row("a", family="cam", ci=constant(0.5)),
        row("b", family="cam", ci=constant(0.5)),
        row("c", family="occlusion", ci=constant(0.5)),
        row("of_b", family="cam", ci=constant(0.2), controls="b", **options),
        row("of_a", family="cam", ci=constant(0.1), controls="a", **options),
        row("inverted_a", family="cam", ci=constant(0.0), controls="a", is_control=True),
        row("random", ci=constant(0.3), is_control=True),
    ]
    results = Results(rows, resamples=99)
    gains = {one.label: results.gain(one.label, "ci") for one in results.rows}
    assert {label: gain and round(gain.mean, 6) for label, gain in gains.items()} == {
        "a": 0.4,
        "b": 0.3,
        "c": None,
        "of_b": None,
        "of_a": None,
        "inverted_a": -0.1,
        "random": None,
    }
    alone = Results([rows[0], rows[3]], resamples=99)
    assert alone.gain("a", "ci").mean == pytest.approx(0.3)
    assert ResultTable.of(alone).gains().notes == ["Against of_b, of the same family."]
    lines = ResultTable.of(results).gains().markdown().splitlines()
    assert "| c | -<sup>1</sup> |" in lines
    assert "| *random* | - |" in lines
    assert lines[-1] == "1. No matched random control of this explainer or its family."


def test_a_gain_is_a_mean_over_the_pairs_that_both_have():
    control = row("m", sd=[0.5, 0.7, None], is_control=True, is_matched=True, controls="a")
    results = Results([row("a", sd=[0.1, None, 0.3]), control], resamples=99)
    assert (results.gain("a", "sd").mean, results.gain("a", "sd").n) == (pytest.approx(0.4), 1)


def test_there_is_no_table_of_gains_without_a_matched_control():
    assert grids(tiny()[:3])[1] is None


def test_rows_of_one_title_are_told_apart_by_their_labels():
    rows = [row("a", "Twin", si=[0, 1]), row("b", "Twin", si=[0, 1]), row("c", "Other", si=[0, 1])]
    assert list(ResultTable.of(Results(rows, resamples=99)).names.values()) == ["Twin (a)", "Twin (b)", "Other"]


def test_a_set_whose_pairs_were_all_skipped_has_a_table_that_says_so(tmp_path):
    skipped = [{"index": place, "pair_id": str(place), "skipped": "broken"} for place in range(2)]
    rows = [Row(label, label, [Run(skipped)]) for label in "ab"]
    table = write_tables(Results(rows), tmp_path)
    assert table.metrics == ()
    assert "| a<sup>1</sup> |\n| b<sup>1</sup> |\n\n1. 2 pairs could not be read.\n" in table.means().markdown()
    assert {path.name for path in tmp_path.iterdir()} == {"results.md", "results.tex"}


def test_one_pair_has_means_without_intervals(tmp_path):
    table = write_tables(Results([row("a", si=[0.5]), row("b", si=[0.25])]), tmp_path)
    assert "| a | **0.500** |\n| b | 0.250 |\n" in table.means().markdown()
    (line,) = csv.DictReader((tmp_path / "comparisons.csv").open())
    assert (line["difference"], line["low"], line["p"], line["p_holm"]) == ("0.25", "", "", "")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row"),
        ([row("a", si=[1, 2]), row("a", si=[1, 2])], "labels of rows must differ"),
        ([Row("a", "a", [])], "a run for every seed"),
        ([row("a", si=[1]), Row("b", "b", [Run(records(si=[1]))] * 2)], r"a run for every seed, got \[1, 2\] runs"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows, message):
    with pytest.raises(UserError, match=message):
        Results(rows)


def noisy(label, shift, count=12, **options):
    draw = np.random.default_rng(len(label))
    columns = {name: list(draw.random(count) + shift) for name in ("si", "sd", "ci")}
    return row(label, sic=list((draw.random(count) > 0.5).astype(float)), **columns, **options)


def three():
    return [noisy("a", 0.3), noisy("bb", 0.1), noisy("ccc", 0), noisy("dddd", 0.2, is_control=True)]


def test_files_hold_every_number_in_full(tmp_path):
    results = Results(three(), resamples=99)
    write_tables(results, tmp_path)
    table = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [(line["row"], line["metric"]) for line in table[:5]] == [
        *[("a", metric) for metric in ("si", "sd", "ci", "sic")],
        ("bb", "si"),
    ]
    for line in table:
        found = results.interval(line["row"], line["metric"])
        assert (line["mean"], line["low"], line["high"], line["n"]) == (found.mean, found.low, found.high, 12)
        assert line["method"] == ("Wilson" if line["metric"] == "sic" else "BCa")
        assert line["control"] == (line["row"] == "dddd")
    with (tmp_path / "results.csv").open() as file:
        for line, other in zip(csv.DictReader(file), table, strict=True):
            assert (float(line["mean"]), float(line["low"])) == (other["mean"], other["low"])
            assert line["gain"] == ""


def test_comparisons_are_of_every_two_explainers_and_corrected_within_a_metric(tmp_path):
    results = Results(three(), resamples=499)
    write_tables(results, tmp_path)
    lines = pq.read_table(tmp_path / "comparisons.parquet").to_pylist()
    assert [(line["first"], line["second"]) for line in lines] == [("a", "bb"), ("a", "ccc"), ("bb", "ccc")] * 4
    for metric in results.metrics:
        part = sorted((line for line in lines if line["metric"] == metric), key=lambda line: line["p"])
        assert part[0]["p_holm"] == pytest.approx(min(1, 3 * part[0]["p"]))
        assert part[2]["p_holm"] >= part[2]["p"]
    by_metric = {line["metric"]: line for line in lines if (line["first"], line["second"]) == ("a", "ccc")}
    assert by_metric["si"]["difference"] > 0
    assert (by_metric["si"]["better"], by_metric["sd"]["better"]) == ("a", "ccc")


def test_rank_agreement_leaves_controls_out(tmp_path):
    rows = [row(label, si=[high] * 2, sd=[high] * 2, ci=[high] * 2) for label, high in (("a", 1), ("b", 2), ("c", 3))]
    control = row("r", si=[9, 9], sd=[0, 0], ci=[-9, -9], is_control=True)
    write_tables(Results([*rows, control], resamples=99), tmp_path)
    assert (tmp_path / "rank_agreement.md").read_text().splitlines()[4:] == [
        "| Metric | SI | SD | CI |",
        "|---|---:|---:|---:|",
        "| SI | 1 | -1.00 | +1.00 |",
        "| SD | -1.00 | 1 | -1.00 |",
        "| CI | +1.00 | -1.00 | 1 |",
    ]
    with (tmp_path / "rank_agreement.csv").open() as file:
        assert [(line["first"], line["second"], float(line["tau"]), line["n"]) for line in csv.DictReader(file)] == [
            ("si", "sd", pytest.approx(-1), "3"),
            ("si", "ci", pytest.approx(1), "3"),
            ("sd", "ci", pytest.approx(-1), "3"),
        ]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tables_depend_on_records_and_not_on_their_order(tmp_path):
    write_tables(Results(three(), resamples=99), tmp_path / "one")
    shuffled = three()
    for one in shuffled:
        random.Random(0).shuffle(one.runs[0].records)
    write_tables(Results(shuffled, resamples=99), tmp_path / "other")
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_numbers_do_not_depend_on_the_order_of_rows():
    one, other = Results(three(), resamples=99), Results(three()[::-1], resamples=99)
    for label in ("a", "bb", "ccc", "dddd"):
        for metric in one.metrics:
            assert one.interval(label, metric) == other.interval(label, metric)


def test_cells_are_read_whole_or_from_fragments_in_any_order(tmp_path):
    found = records(si=[0.1, 0.2, 0.4, 0.8])
    spent = timings(4, forwards=3.0)
    for name, rows in (("records", found), ("timings", spent)):
        (tmp_path / "whole").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "whole" / f"{name}.parquet")
        for place, part in enumerate((rows[2:], rows[:1], rows[1:3])):  # one pair twice, as after a break
            folder = tmp_path / "parts" / "fragments" / name
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(part), folder / f"{place}.parquet")
    assert Run.read(tmp_path / "whole") == Run.read(tmp_path / "parts") == Run(found, spent)
    with pytest.raises(UserError, match=r"no records in .*empty: run the cell first"):
        Run.read(tmp_path / "empty")


def test_several_seeds_of_a_pair_are_one_pair():
    runs = [Run(records(si=list(np.random.default_rng(seed).random(6)))) for seed in range(3)]
    results = Results([Row("a", "a", runs)], resamples=99)
    found = results.interval("a", "si")
    assert (found.n, found.method) == (6, "two-level")
    assert results.facts(results.rows[0]).pairs == 6
    assert "over pairs (bootstrap of 3 seeds and of pairs)" in ResultTable.of(results).means().caption


def test_costs_are_means_over_the_pairs_that_have_them():
    spent = [{"index": 0, "forwards": 10, "backwards": 2}, {"index": 1, "forwards": 20, "backwards": 4}, {"index": 2}]
    results = Results([Row("a", "a", [Run(records(si=[1, 2, 3]), spent)])], resamples=99)
    assert results.facts(results.rows[0]).costs == {"forwards": 15, "backwards": 3}
    assert "| Explainer | SI ↑ | F | b |" in ResultTable.of(results).means().markdown()


def test_increases_are_shares():
    assert {
        name for name in ("si", "sic", "cic", "cic1", "score", "cad", "pointing_game1") if kind_of(name) == "share"
    } == {*("sic", "cic", "cic1", "pointing_game1")}


def test_the_default_resamples_are_affordable():
    draw = np.random.default_rng(0)
    rows = [
        Row(str(place), str(place), [Run(records(si=list(draw.random(200)), sd=list(draw.random(200))))])
        for place in range(8)
    ]
    results = Results(rows)
    assert len(ResultTable.of(results).long()) == 16
    assert len(results.comparisons) == 56
