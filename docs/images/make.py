"""The pictures of the documentation.

``python docs/images/make.py explainers`` draws one pair as every explainer sees it, into ``explainers/``; with names
after it, those alone.

``python docs/images/make.py app`` serves the app and explains a demo photo in it, into ``app.jpg``.

``python docs/images/make.py OUTPUTS`` makes those of README from what its commands wrote, after

    python run.py
    python run.py explainers=paper
    python run.py -m study=paper 'explainers=[paper,controls]' explainers.of=gradcam data.limit=4 \\
        metrics.insertion_deletion.points=56
    python run.py report paper

The last two need Chromium and the extra ``browser``, and ``app`` its own.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from twinsight.data import DemoPhotos, PairDataset, SimCLRViews
from twinsight.engine import PairBank
from twinsight.errors import NotApplicable
from twinsight.explainers import EXPLAINERS, PairImages
from twinsight.models import load_model
from twinsight.plotting import draw_explanation
from twinsight.plotting.figure import PixelFigure
from twinsight.plotting.furniture import BAR, draw_color_bar
from twinsight.plotting.heatmap import show_photo
from twinsight.study.pictures import views_as_drawn

HERE = Path(__file__).parent
PAIR = "chelsea_cat"
EXPLAINED = "kingfisher_bird.jpg"
CONTROLLED = "conditional_occlusion"
"""What the controls of an explainer control here."""
WIDTH, GAP, CAPTION = 720, 16, 34


def draw_explainers(names: list[str]) -> None:
    """The pair of ``python run.py``, its views as the photo has them, and a picture for each explainer."""
    model, photos = load_model("demo_simclr"), DemoPhotos()
    pairs = PairDataset(photos, SimCLRViews(model.input_size), model.normalization)
    index = photos.ids.index(EXPLAINED)
    batch: Any = pairs[index]
    views = views_as_drawn(pairs, index, 512)
    folder, bank = HERE / "explainers", PairBank(model)
    folder.mkdir(exist_ok=True)
    _save(_images([{"View 1": views[0], "View 2": views[1]}]), folder / "pair.jpg")
    for name in names or sorted(EXPLAINERS):
        controlled = {"of": CONTROLLED} if name in ("inverted", "matched_random", "partner_swapped") else {}
        try:
            explainer = EXPLAINERS[name](model, **controlled)
        except NotApplicable as reason:
            print(f"{name}: no picture, {reason}")
            continue
        found = explainer(batch.view1, batch.view2, batch.seeds, bank=bank, partner_view2=batch.partner_view2)
        page = _images(_made(found, views)) if isinstance(found, PairImages) else _maps(found, views)
        _save(page, folder / f"{name}.jpg")


def _maps(explanation: Any, views: list[Any]) -> PixelFigure:
    side = (WIDTH - GAP) // 2
    page = PixelFigure(WIDTH, CAPTION + side + BAR)
    left, right = (page.axes(edge, CAPTION, side, side) for edge in (0, side + GAP))
    map1, map2 = explanation.resized(explanation.views[0].shape[-2:])
    artist, _ = draw_explanation(left, right, views[0], views[1], map1[0], None if map2 is None else map2[0])
    draw_color_bar(page, artist, 0, CAPTION + side, WIDTH)
    return page


def _made(found: PairImages, views: list[Any]) -> list[dict[str, Any]]:
    """The images in rows, by their captions, the view that they are about first."""
    rows: dict[str, dict[str, Any]] = {}
    for name, image in found.images.items():
        row, _, column = name.rpartition("/")
        caption = ", ".join(filter(None, (row, column.replace("trunk.stages.", "stage ")))).capitalize()
        rows.setdefault(row, {})[caption] = image[0].movedim(0, -1).numpy()
    about = found.shown[-1]
    return [{f"View {about}": views[about - 1], **row} for row in rows.values()]


def _images(rows: list[dict[str, Any]]) -> PixelFigure:
    columns = len(rows[0])
    side = (WIDTH - GAP * (columns - 1)) // columns
    page = PixelFigure(WIDTH, len(rows) * (CAPTION + side))
    for row, images in enumerate(rows):
        for column, (caption, image) in enumerate(images.items()):
            axes = page.axes(column * (side + GAP), row * (CAPTION + side) + CAPTION, side, side)
            show_photo(axes, image)
            axes.set_title(caption, fontsize=9 if columns == 2 else 8)
    return page


def _save(page: PixelFigure, path: Path) -> None:
    page.figure.savefig(path, pil_kwargs={"quality": 82, "optimize": True, "progressive": True})


def draw_app() -> None:
    """The page with what two explainers found in one of its examples."""
    from twinsight.app.page import build, launch  # of the extra `app`
    from twinsight.app.work import Workshop, default_models

    app = build(Workshop(default_models()))
    _, address, _ = launch(app)
    with _chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 770}, color_scheme="light")
        page.set_default_timeout(180_000)
        page.goto(f"{address}?__theme=light&photo={PAIR}.jpg&explainers=interaction_cam,gradcam")
        page.wait_for_selector("#photo1 img")  # what the address asks for is filled in after the page is there
        page.click("#explain")
        page.wait_for_function("document.querySelectorAll('.card img.heatmap').length === 4")
        page.wait_for_selector("#cancel[disabled]")
        page.evaluate("scrollTo(0, 0)")
        _save_screen(page, HERE / "app.jpg")
    app.close(verbose=False)


def main(outputs: Path) -> None:
    pair = next(outputs.glob(f"cells/demo_photos-demo_simclr-interaction_cam-*/pictures/*{PAIR}.png"))
    _as_jpeg(pair, HERE / "demo_pair.jpg")
    _as_jpeg(next(outputs.glob(f"sets/*-16-explainers-*/*{PAIR}.png")), HERE / "side_by_side.jpg")
    report = outputs / "paper" / "report.html"
    with _chromium() as browser:
        _shoot(browser, report, "light", _results, HERE / "report_results.jpg")
        _shoot(browser, report, "dark", _gallery, HERE / "report_gallery.jpg")


@contextmanager
def _chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # of the extra `browser`; the other pictures need none

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def _shoot(browser: Any, report: Path, scheme: str, prepare: Any, path: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme=scheme)
    page.goto(report.resolve().as_uri())
    page.wait_for_selector("#cards canvas")
    prepare(page)
    _save_screen(page, path)
    page.close()


def _save_screen(page: Any, path: Path) -> None:
    page.wait_for_timeout(500)
    shot = path.with_suffix(".png")
    page.screenshot(path=shot)
    _as_jpeg(shot, path)
    shot.unlink()


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
    wanted = sys.argv[1] if len(sys.argv) > 1 else "outputs"
    if wanted == "explainers":
        draw_explainers(sys.argv[2:])
    elif wanted == "app":
        draw_app()
    else:
        main(Path(wanted))
