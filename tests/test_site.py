"""The documentation as a site, in Chromium: built without a warning, whole without a network. ``make test-browser``."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import pytest

from documents import ROOT
from toy_app import patient

pytestmark = pytest.mark.browser
NOTEBOOKS = sorted((ROOT / "docs" / "howto").glob("*.ipynb"))


class Site(NamedTuple):
    """Where it was built and where it is served."""

    folder: Path
    address: str


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Requests are none of the test's output."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    words = ["build", "--strict", "--site-dir", str(folder)]  # with --quiet, strict would hear of no warning
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder))
    Thread(target=server.serve_forever, daemon=True).start()
    yield Site(folder, f"http://127.0.0.1:{server.server_port}/")
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    """A page to open others in; at the end, that nothing was missing, complained of, or asked of another host."""
    context = patient(browser.new_context(viewport={"width": 1280, "height": 900}))
    opened = context.new_page()
    asked, wrong = [], []
    context.on("request", lambda request: asked.append(request.url))
    context.on("response", lambda response: wrong.append(response.url) if response.status >= 400 else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    yield opened
    assert [url for url in asked if not url.startswith((site.address, "data:", "blob:"))] == []
    assert wrong == []
    context.close()


BROKEN = """async () => {
  const images = [...document.images];
  await Promise.allSettled(images.map((image) => { image.loading = "eager"; return image.decode(); }));
  return images.filter((image) => !image.naturalWidth).map((image) => image.src);
}"""

TEXT = """() => {
  const shown = document.querySelector("article").cloneNode(true);
  for (const part of shown.querySelectorAll("code, math")) part.remove();
  for (const quote of shown.querySelectorAll("blockquote blockquote")) quote.prepend(">>>");
  return shown.textContent;
}"""


def test_every_page_is_whole_at_either_width_and_asks_nothing_of_another_host(page, site):
    names = sorted(str(path.relative_to(site.folder)) for path in site.folder.rglob("*.html") if path.stem != "404")
    assert {"index.html", "explainers.html", "api/index.html", "results/index.html"} <= set(names)
    for name in names:
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(site.address + name)
        page.wait_for_selector("article h1")
        assert page.evaluate(BROKEN) == [], name
        unread = re.findall(
            r".*(?:\$|\\\w|`|>>>|:[a-z]+:|\*\*|\]\().*", page.evaluate(TEXT)
        )  # markup that nothing has read
        assert unread == [], name
        for width in (1280, 400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name


@pytest.mark.parametrize("room", ["explainers", "metrics", "metrics.functional"])
def test_the_reference_has_every_public_class_and_function(site, room):
    module = importlib.import_module(f"twinsight.{room}")
    text = (site.folder / "api" / f"{room.partition('.')[0]}.html").read_text()
    there = set(re.findall(r'id="twinsight\.[\w.]+\.(\w+)"', text))
    assert {name for name in module.__all__ if callable(getattr(module, name))} - there == set()


def test_what_is_searched_is_found_without_another_host(page, site):
    page.goto(site.address)
    page.get_by_placeholder("Search").click()
    page.keyboard.type("interaction", delay=30)
    page.wait_for_selector(".md-search-result__item a")
    found = page.locator(".md-search-result__item a").first.get_attribute("href")
    assert found.startswith(site.address)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_page_with_what_its_cells_show(page, site, notebook):
    page.goto(f"{site.address}howto/{notebook.stem}.html")
    assert page.locator(".md-nav__link--active").filter(visible=True).count() >= 1
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    shown = page.locator("article .highlight code").all_inner_texts()
    assert [cell for cell in cells if not any("".join(cell["source"]).strip() == text.strip() for text in shown)] == []
    widths = page.locator("article img").evaluate_all("(images) => images.map((image) => image.naturalWidth)")
    assert widths
    assert min(widths) > 300
    assert page.locator("article .filename", has_text="Output").count() >= 1
    for width in (1280, 400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
