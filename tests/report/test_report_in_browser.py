"""The report as people use it, in Chromium: ``make test-browser``."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from toy_app import patient
from toy_study import EXPLAINERS, explainer, write_study
from twinsight.report.command import main

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outputs")
    failed = explainer("lafam", "LaFAM", is_control=True)
    states = {"lafam": {"state": "failed", "error": "RuntimeError: out of memory"}}
    models = ("demo_simclr", "demo_barlow_twins")
    write_study(root, models=models, explainers=[*EXPLAINERS, failed], states=states)
    assert main(["toy", "--root", str(root), "--no-figures"]) == 0
    return root / "toy" / "report.html"


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The report, open; at the end, that nothing was complained of and nothing was asked of a network."""
    context = patient(browser.new_context(viewport={"width": 1280, "height": 900}))
    opened = context.new_page()
    opened.complaints, opened.asked = [], []
    opened.on("console", lambda message: opened.complaints.append(message.text))
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(report.as_uri())
    opened.wait_for_selector("html[data-ready=true]")
    opened.wait_for_selector("#cards canvas")
    yield opened
    assert opened.complaints == []
    beside = report.with_name("report_files").as_uri()
    assert [url for url in opened.asked if not url.startswith(("data:", report.as_uri(), beside))] == []
    context.close()


def until(page: Any, expression: str) -> None:
    """Wait for an expression to be true; the page's policy forbids Playwright's own way."""
    for _ in range(2400):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"never true: {expression}")


def rows(page: Any, column: int = 1) -> list[str]:
    return page.locator(f"#table-scroll tbody tr > *:nth-child({column})").all_inner_texts()


def names(page: Any) -> list[str]:
    return page.locator("#table-scroll tbody th > span:first-child").all_inner_texts()


def test_columns_sort_best_first_then_worst_first_then_as_they_were(page):
    before = names(page)
    head = page.locator("thead th", has_text="SAD")
    place = 1 + page.locator("thead th").all_inner_texts().index(head.inner_text())
    states = []
    for _ in range(3):
        head.get_by_role("button").click()
        values = [float(text.split(",")[0]) for text in rows(page, place) if not text.startswith("–")]
        states.append((head.get_attribute("aria-sort"), values == sorted(values), values == sorted(values)[::-1]))
    assert states[:2] == [("ascending", True, False), ("descending", False, True)]
    assert (states[2][0], names(page)) == ("none", before)


def test_the_table_is_sorted_by_keyboard_and_keeps_the_focus(page):
    page.locator('thead button[data-key="ci"]').focus()
    page.keyboard.press("Enter")
    assert page.locator("thead th", has_text="CI ").first.get_attribute("aria-sort") == "descending"
    assert page.evaluate("document.activeElement.dataset.key") == "ci"


def test_rows_are_found_by_words_by_model_and_without_controls(page):
    status = page.locator("#table-status")
    assert status.inner_text() == "10 rows"
    page.get_by_label("Find").fill("smooth")
    assert names(page) == ["SmoothGrad", "SmoothGrad"]
    assert status.inner_text() == "2 of 10 rows"
    page.get_by_label("model", exact=True).select_option("demo_barlow_twins")
    assert names(page) == ["SmoothGrad"]
    page.get_by_label("Find").fill("")
    page.get_by_label("Controls").uncheck()
    assert names(page) == ["Grad-CAM", "SmoothGrad", "Pixel invariance"]
    page.get_by_label("Find").fill("no such explainer")
    assert page.get_by_text("No row fits the filter.").is_visible()


def test_the_best_is_bold_controls_are_marked_and_intervals_come_on_hover(page):
    best = page.locator("td.best").first
    assert page.evaluate("(cell) => getComputedStyle(cell).fontWeight", best.element_handle()) == "700"
    assert page.locator("tr", has_text="Random").first.locator(".tag", has_text="control").count() == 1
    best.hover()
    tip = page.get_by_role("tooltip")
    assert "95 % interval [" in tip.inner_text()
    assert "3 pairs" in tip.inner_text()
    page.get_by_label("Intervals").check()
    assert page.locator("td .interval").first.inner_text().startswith("[")


def test_arrows_say_which_way_is_better_to_the_eye_and_to_the_ear(page):
    heads = page.locator("thead th").all_inner_texts()
    assert any(head.startswith("CI") and "↑" in head for head in heads)
    assert any(head.startswith("CD") and "↓" in head for head in heads)
    assert page.get_by_role("columnheader", name="CD , lower is better").count() == 1


def test_the_table_is_copied_as_latex_as_it_is_shown(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("Find").fill("demo_simclr")
    page.get_by_role("button", name="Copy as LaTeX").click()
    page.get_by_text("The table was copied as LaTeX.").wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    body = text.split("\\midrule")
    assert "\\begin{tabular}{ll" in text
    assert "CD $\\downarrow$" in text
    assert "\\textbf{0." in body[1]
    assert "\\emph{Matched random (Grad-CAM)} & demo\\_simclr" in body[2]
    assert "barlow" not in text


def test_where_the_clipboard_is_closed_the_latex_is_shown(page):
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('closed')); }")
    page.get_by_role("button", name="Copy as LaTeX").click()
    dialog = page.get_by_role("dialog")
    assert "\\toprule" in dialog.get_by_role("textbox").input_value()
    page.keyboard.press("Escape")
    assert dialog.count() == 0


def test_pairs_turn_by_button_and_by_arrow_keys(page):
    title = page.locator("#pair-title")
    assert title.inner_text().startswith("1 of 3: astronaut.jpg")
    page.get_by_role("button", name="Next").click()
    assert title.inner_text().startswith("2 of 3")
    page.keyboard.press("ArrowRight")
    assert title.inner_text().startswith("3 of 3")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert title.inner_text().startswith("2 of 3")
    assert page.locator('#strip [aria-current="true"]').get_attribute("aria-label") == "Pair 2: bull_moose.jpg"


def test_the_slider_fades_the_maps_and_arrows_on_it_turn_no_page(page):
    slider = page.get_by_label("Opacity of the maps")
    slider.fill("20")
    assert page.locator("#cards canvas").first.evaluate("(canvas) => canvas.style.opacity") == "0.2"
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#opacity-value").inner_text() == "21 %"
    assert page.locator("#pair-title").inner_text().startswith("1 of 3")


def test_a_bright_corner_is_drawn_and_read_in_that_corner_of_its_view(page):
    card = page.locator(".card", has_text="Grad-CAM").first
    read = """(canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, 256, 256);
      return [16, 200].map((at) => data[4 * (256 * at + at) + 3]);
    }"""
    first, second = (card.locator("canvas").nth(view).evaluate(read) for view in (0, 1))
    assert first[0] > 200 > 40 > first[1]
    assert second[1] > 200 > 40 > second[0]
    view = card.locator(".view").first
    area = view.bounding_box()
    view.hover(position={"x": area["width"] * 0.1, "y": area["height"] * 0.1})
    assert card.locator(".read").inner_text() == "1.00"
    view.hover(position={"x": area["width"] * 0.9, "y": area["height"] * 0.9})
    assert float(card.locator(".read").inner_text()) == pytest.approx(0.09, abs=0.02)
    assert "strongest, 1.00, at the upper left" in view.get_attribute("aria-label")


def test_a_shared_scale_is_the_same_for_all(page):
    def scales():
        return {tuple(card.locator(".ramp span").all_inner_texts()) for card in page.locator(".card").all()}

    own = scales()
    page.get_by_label("shared by all").check()
    assert len(scales()) == 1 <= len(own)
    page.get_by_label("of each map").check()
    assert page.locator(".card").first.locator(".ramp i").count() == 2


def test_explainers_are_chosen_for_charts_and_gallery_alike(page):
    chip = page.locator("#charts .chips").get_by_role("button", name="Random", exact=True)
    assert chip.get_attribute("aria-pressed") == "false"
    chip.click()
    assert page.locator("#gallery .chips [data-row=random]").get_attribute("aria-pressed") == "true"
    page.locator(".card", has_text="Random").last.wait_for()
    assert "Random" in page.locator("#curve-keys").inner_text()


def test_full_maps_are_loaded_from_beside_the_page_when_asked_for(page):
    assert not [url for url in page.asked if "report_files" in url]
    page.get_by_label("Full resolution").check()
    until(page, "document.querySelector('#cards img').src.length > 12000")
    assert [url.rsplit("/", 1)[-1] for url in page.asked if "report_files" in url] == ["pair-0-0.js"]
    page.get_by_role("button", name="Next").click()
    until(page, "largePairs.size === 2")
    assert [url.rsplit("/", 1)[-1] for url in page.asked if "report_files" in url] == ["pair-0-0.js", "pair-0-1.js"]


def test_a_page_that_was_sent_without_its_folder_says_what_is_missing(browser, report, tmp_path):
    alone = tmp_path / "report.html"
    alone.write_bytes(report.read_bytes())
    page = patient(browser.new_page())
    page.goto(alone.as_uri())
    page.wait_for_selector("#cards canvas")
    page.get_by_label("Full resolution").check()
    page.get_by_text("The full maps are not beside this page").wait_for()
    assert page.locator("#cards canvas").count() > 0
    page.close()


def test_issues_name_what_failed_and_lead_to_degenerate_maps(page):
    issues = page.locator("#issues")
    assert "2 cells failed" in issues.inner_text()
    assert "RuntimeError: out of memory" in issues.inner_text()
    assert "truncated file" in issues.inner_text()
    assert "both views need a map" in issues.inner_text()
    issues.get_by_role("button", name="SmoothGrad, demo_simclr, bull_moose.jpg, view 1").click()
    assert page.locator("#pair-title").inner_text().startswith("2 of 3")
    assert page.locator(".card", has_text="SmoothGrad").get_by_text("degenerate map").is_visible()


def test_the_other_model_is_shown_in_charts_and_gallery_together(page):
    shown = "document.querySelector('#{}').selectedOptions[0].text"
    for chosen, other in (("group", "scene"), ("scene", "group")):
        page.locator(f"#{chosen}").select_option(label="demo_barlow_twins on demo_photos")
        assert page.evaluate(shown.format(other)) == "demo_barlow_twins on demo_photos"
        page.locator(f"#{chosen}").select_option(label="demo_simclr on demo_photos")
        assert page.evaluate(shown.format(other)) == "demo_simclr on demo_photos"


def test_dark_and_light_follow_the_system_until_chosen(browser, report):
    seen = {}
    for scheme in ("light", "dark"):
        page = patient(browser.new_page(color_scheme=scheme))
        page.goto(report.as_uri())
        page.wait_for_selector("html[data-ready=true]")
        ground = "getComputedStyle(document.body).backgroundColor"
        seen[scheme] = page.evaluate(ground)
        page.get_by_label("Theme").select_option("dark" if scheme == "light" else "light")
        seen[f"{scheme}, then the other"] = page.evaluate(ground)
        page.close()
    assert seen["light"] == seen["dark, then the other"] == "rgb(255, 255, 255)"
    assert seen["dark"] == seen["light, then the other"] == "rgb(20, 22, 26)"


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(browser, report, width):
    page = patient(browser.new_page(viewport={"width": width, "height": 900}))
    page.goto(report.as_uri())
    page.wait_for_selector("#cards canvas")
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_everything_has_a_name_for_those_who_do_not_see_it(page):
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, textarea, svg[role=img], [role=region], img")]
          .filter((each) => !(each.labels?.length || each.textContent.trim() || each.ariaLabel
            || each.getAttribute("aria-labelledby") || each.hasAttribute("alt") || each.title))
          .map((each) => each.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    assert page.locator("thead th:not([scope=col]), tbody th:not([scope=row])").count() == 0
    assert page.locator("svg").count() >= 4
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((each) => Number(each.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_all_that_can_be_done_by_mouse_can_be_reached_by_tab(page):
    page.locator("#find").focus()
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("(({id, dataset, name}) => id || dataset.key || name)(document.activeElement)"))
    assert {"latex", "table-scroll", "ci", "opacity", "scale", "full", "previous", "next"} <= reached


def test_only_what_is_in_sight_is_unpacked_at_the_start(page):
    assert page.evaluate("unpackedMaps.size") == page.locator(".card").count()
    assert page.evaluate("unpackedMaps.size") < page.evaluate("study.cells.length")
