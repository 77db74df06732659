"""The pictures of README, from what its commands wrote: ``python docs/images/make.py OUTPUTS`` after

    python run.py
    python run.py explainers=paper
    python run.py -m study=paper 'explainers=[paper,controls]' explainers.of=gradcam data.limit=4 \\
        metrics.insertion_deletion.points=56
    python run.py report paper

Needs Chromium and the extra ``browser``.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
PAIR = "chelsea_cat"


def main(outputs: Path) -> None:
    pair = next(outputs.glob(f"cells/demo_photos-demo_simclr-interaction_cam-*/pictures/*{PAIR}.png"))
    _as_jpeg(pair, HERE / "demo_pair.jpg")
    _as_jpeg(next(outputs.glob(f"sets/*-16-explainers-*/*{PAIR}.png")), HERE / "side_by_side.jpg")
    report = outputs / "paper" / "report.html"
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        _shoot(browser, report, "light", _results, HERE / "report_results.jpg")
        _shoot(browser, report, "dark", _gallery, HERE / "report_gallery.jpg")
        browser.close()


def _shoot(browser: Any, report: Path, scheme: str, prepare: Any, path: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme=scheme)
    page.goto(report.resolve().as_uri())
    page.wait_for_selector("#cards canvas")
    prepare(page)
    page.wait_for_timeout(500)
    shot = path.with_suffix(".png")
    page.screenshot(path=shot)
    _as_jpeg(shot, path)
    shot.unlink()
    page.close()


def _results(page: Any) -> None:
    page.locator('thead button[data-key="ci"]').click()
    page.locator("td.best").nth(4).hover()


def _gallery(page: Any) -> None:
    page.locator("#strip button").nth(1).click()
    page.get_by_label("Full resolution").check()
    page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
    page.evaluate("scrollTo(0, document.getElementById('gallery').offsetTop - 40)")


def _as_jpeg(source: Path, path: Path, width: int = 1280) -> None:
    with Image.open(source) as picture:
        small = picture.convert("RGB")
        if small.width > width:
            small = small.resize((width, round(small.height * width / small.width)), Image.Resampling.LANCZOS)
        small.save(path, quality=82, optimize=True, progressive=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs"))
