"""The app as people use it, in Chromium: ``make test-browser``."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_app_api import stands_still, until

from toy_app import patient
from twinsight.app.photos import demo_photos

pytestmark = pytest.mark.browser


@pytest.fixture
def page(browser: Any, served: Any) -> Iterator[Any]:
    """The app, open; at the end, that nothing was complained of and nothing was asked of another host."""
    context = patient(browser.new_context(viewport={"width": 1280, "height": 900}))
    opened = context.new_page()
    opened.complaints, opened.asked = [], []
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.on("request", lambda request: opened.asked.append(request.url))
    visit(opened, served.address)
    yield opened
    assert opened.complaints == []
    own = (served.address, "data:", "blob:")
    assert [url for url in opened.asked if not url.startswith(own)] == []
    context.close()


def visit(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("#explain")
    page.wait_for_function("document.querySelector('#model input')?.value")
    page.wait_for_timeout(1000)  # what a link asks for is filled in after the page is there


def give(page: Any, place: str, photo: Path) -> None:
    page.set_input_files(f"#{place} input[type=file]", photo)
    page.wait_for_selector(f"#{place} img")


def cards(page: Any, *names: str) -> list[Any]:
    for name in names:
        page.wait_for_selector(f'.card[data-explainer="{name}"]', timeout=180_000)
    page.wait_for_selector("#cancel[disabled]", timeout=180_000)
    return page.locator(".card").all()


def choose(page: Any, *explainers: str) -> None:
    """These explainers and no others."""
    page.locator("#explainers").get_by_title("Clear").click()
    for name in explainers:
        page.locator("#explainers input").fill(name)
        page.get_by_role("option", name=name, exact=True).click()
    page.keyboard.press("Escape")


def open_options(page: Any, explainer: str) -> Any:
    """The panel of an explainer's options, ready to be filled in.

    Gradio goes on setting up fields after they can be seen, for some milliseconds or, on a busy machine, more, and
    then forgets what was typed before. Nobody is as fast as that but Playwright.
    """
    page.get_by_text(f"Options of {explainer}").click()
    panel = page.locator(f"#options-{explainer}")
    panel.locator("input, textarea").first.wait_for()
    panel.evaluate(
        """(panel) => new Promise((done) => {
          let timer;
          setTimeout(done, 60000);
          const wait = () => { clearTimeout(timer); timer = setTimeout(done, 500) };
          new MutationObserver(wait).observe(panel, { subtree: true, childList: true, attributes: true });
          wait();
        })"""
    )
    return panel


def similarity(page: Any) -> str:
    return page.locator(".similarity strong").inner_text()


def test_one_photo_gets_two_views_and_two_heatmaps_per_explainer(page, photo):
    give(page, "photo1", photo)
    choose(page, "interaction_cam", "gradcam")
    page.click("#explain")
    found = cards(page, "interaction_cam", "gradcam")
    assert len(found) == 2
    for card in found:
        heatmaps = card.locator("img.heatmap")
        assert heatmaps.count() == 2
        assert heatmaps.first.get_attribute("src") != heatmaps.last.get_attribute("src")
        assert all(image.evaluate("(image) => image.naturalWidth") > 300 for image in heatmaps.all())
    assert page.locator(".pair img").count() == 2
    assert 0 < float(similarity(page)) <= 1
    assert page.locator(".scores").count() == 0


def test_two_photos_get_scores_and_curves_on_demand_with_a_progress_bar(page, photo, moose):
    page.get_by_label("Two photos").check()
    give(page, "photo1", photo)
    give(page, "photo2", moose)
    choose(page, "smoothgrad")
    page.click("#score")
    page.wait_for_selector("#status progress")
    page.wait_for_function("document.querySelector('#status progress')?.value > 0.05", timeout=180_000)
    (card,) = cards(page, "smoothgrad")
    names = [name.split()[0] for name in card.locator("dt").all_inner_texts()]
    assert names == ["SI", "SD", "CI", "CD", "SAD", "SIC", "CAD", "CIC", "MS"]
    assert all(re.fullmatch(r"−?\d+\.\d{3}", value) for value in card.locator("dd").all_inner_texts())
    assert card.locator("img.chart").evaluate("(image) => image.naturalWidth") > 500
    assert page.locator("#status progress").count() == 0
    page.get_by_text("Command and link").click()
    command = page.locator("#elsewhere .cm-content").inner_text()
    assert "data.file=pairs.csv" in command
    assert "explainer=smoothgrad" in command


def test_changed_options_change_the_maps_and_the_link_brings_them_back(page, served, browser):
    page.locator("#examples").get_by_title("honey bee").click()
    page.wait_for_selector("#photo1 img")
    choose(page, "interaction_cam")
    page.click("#explain")
    before = cards(page, "interaction_cam")[0].locator("img.heatmap").first.get_attribute("src")
    open_options(page, "interaction_cam").locator("#interaction_cam-reduction input").click()
    page.get_by_role("option", name="max", exact=True).click()
    page.click("#explain")
    page.wait_for_selector("text=Interaction-CAM (max)", timeout=180_000)
    (card,) = cards(page, "interaction_cam")
    after = card.locator("img.heatmap").first.get_attribute("src")
    assert after != before
    page.wait_for_url(re.compile(r"interaction_cam\.reduction=max"))
    context = patient(browser.new_context())
    other = context.new_page()
    visit(other, page.url)
    other.wait_for_selector("#photo1 img")
    other.click("#explain")
    again = cards(other, "interaction_cam")[0]
    assert again.locator("img.heatmap").first.get_attribute("src") == after
    context.close()


def test_cancel_stops_the_computing(page, served, photo):
    give(page, "photo1", photo)
    choose(page, "conditional_occlusion")
    open_options(page, "conditional_occlusion").locator("#conditional_occlusion-stride textarea").fill("1")
    before = served.workshop.passes
    page.click("#score")
    until(lambda: served.workshop.passes > before)
    page.click("#cancel:not([disabled])")
    page.wait_for_selector("text=Cancelled.")
    until(lambda: stands_still(served.workshop), 10)
    assert page.locator(".scores").count() == 0
    choose(page, "gradcam")  # the page is of use afterwards
    page.click("#explain")
    assert len(cards(page, "gradcam")) == 1


def test_bad_files_and_values_are_refused_with_a_message(page, tmp_path, moose):
    text = tmp_path / "text.png"
    text.write_text("no photo")
    with page.expect_response(lambda answer: "/upload" in answer.url and answer.request.method == "POST"):
        page.set_input_files("#photo1 input[type=file]", text)
    page.wait_for_timeout(1000)
    page.click("#explain")
    page.get_by_text("text.png is no image").wait_for()
    visit(page, page.url)
    page.click("#explain")
    page.get_by_text("give a photo, or take one of the examples").first.wait_for()
    large = tmp_path / "large.png"
    large.write_bytes(bytes(20_000_001))
    page.set_input_files("#photo1 input[type=file]", large)
    page.get_by_text(re.compile("maximum allowed size|too large", re.I)).first.wait_for()
    visit(page, page.url)
    give(page, "photo1", moose)
    choose(page, "smoothgrad")
    open_options(page, "smoothgrad").locator("#smoothgrad-samples textarea").fill("many")
    page.click("#explain")
    page.get_by_text("`explainer.samples` must be int").wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_narrow_screen_shows_everything_without_scrolling_sideways(browser, served, theme):
    context = patient(browser.new_context(viewport={"width": 400, "height": 800}))
    page = context.new_page()
    visit(page, f"{served.address}?__theme={theme}&photo={next(iter(demo_photos()))}&explainers=gradcam")
    page.wait_for_selector("#photo1 img")
    page.click("#explain")
    cards(page, "gradcam")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    context.close()
