"""The page: what is chosen on the left, what was found on the right, and the same for programs."""

import errno
import os
import socket
import threading
from collections.abc import AsyncIterator
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import processing_utils, utils
from PIL import Image, ImageOps

from twinsight.app.api import add_api
from twinsight.app.photos import MAX_MEGABYTES, demo_photos
from twinsight.app.results import data_address, results_html
from twinsight.app.settings import VIEWS, Option, Settings, explainer_names, explainer_options
from twinsight.app.steps import Progress, steps
from twinsight.app.upload import photo_input, refuse
from twinsight.app.work import Cancelled, Explained, LeftOut, Workshop
from twinsight.errors import UserError
from twinsight.protocol import PROTOCOLS

ONE, TWO = "One photo, two views of it", "Two photos"
FIRST = ("interaction_cam", "conditional_occlusion")
_EMPTY = '<div class="empty"><p>Give a photo, or take one of the examples, and press <b>Explain</b>.</p></div>'
_CHOOSE_EXAMPLE = """element.addEventListener("click", (event) => {
  const name = event.target.closest("button")?.dataset.photo;
  if (name) trigger("select", { index: name, value: name });
})"""
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def serve(workshop: Workshop, host: str, port: int) -> int:
    """Serve the page until it is interrupted.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    _try_to_listen(host, port)
    page = build(workshop)
    try:
        _, address, _ = launch(page, host, port)
    except OSError:  # taken in the meantime; Gradio's message advises what is not ours
        raise UserError(f"cannot listen at {host}:{port}: it is taken: choose another with --port") from None
    print(f"twinsight app: {address} (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)
    return 0


def _try_to_listen(host: str, port: int) -> None:
    """Ask the system before Gradio, which tells a taken port from a wrong address by nothing."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except socket.gaierror as error:
        raise UserError(f"cannot listen at {host}:{port}: {error.strerror}: choose another with --host") from None
    except OSError as error:
        option = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
        reason = os.strerror(error.errno or 0).lower()
        raise UserError(f"cannot listen at {host}:{port}: {reason}: choose another with {option}") from None


def launch(page: gr.Blocks, host: str = "127.0.0.1", port: int = 0) -> tuple[Any, str, str]:
    """Start serving in threads of its own; ``port`` 0 takes a free one."""
    return page.launch(
        server_name=host,
        server_port=port or None,
        share=False,
        run_history=False,
        _frontend=False,  # no call to itself, which a busy machine answers too late
        prevent_thread_lock=True,
        quiet=True,
        inbrowser=False,
        allowed_paths=[],
        max_file_size=MAX_MEGABYTES * 1_000_000,
        footer_links=["api"],
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=gr.themes.Default(primary_hue="blue", neutral_hue="stone", font=_FONTS, font_mono=_MONO).set(
            body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400"
        ),
        css=(files("twinsight") / "app" / "assets" / "app.css").read_text(),
    )


def build(workshop: Workshop) -> gr.Blocks:
    """The page and its programming interface."""
    with gr.Blocks(title="twinsight", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(
            "<h1>twinsight</h1><p>Why does a self-supervised network find two views similar? "
            "Choose photos and methods; each draws on both views what made them alike.</p>",
            elem_id="intro",
            padding=False,
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320, elem_id="choices"):
                form = _Form(workshop)
            with gr.Column(scale=7, min_width=320):
                results = gr.HTML(_EMPTY, elem_id="results", padding=False)
                with gr.Accordion("Command and link", open=False, elem_id="elsewhere"):
                    command = gr.Code(
                        label="On the command line", language="shell", interactive=False, lines=2, wrap_lines=True
                    )
                    link = gr.Textbox(
                        label="Link to these settings", interactive=False, buttons=["copy"], elem_id="link"
                    )
        _wire(workshop, form, page, [form.status, results, command, link])
        add_api(workshop)
    page.queue(default_concurrency_limit=1, max_size=64)
    return page


class _Form:
    """Everything that can be chosen."""

    def __init__(self, workshop: Workshop) -> None:
        self.kind = gr.Radio([ONE, TWO], value=ONE, label="Pair", show_label=False, elem_id="kind")
        with gr.Row():
            self.photo1 = photo_input("Photo", height=220, min_width=140, elem_id="photo1")
            self.photo2 = photo_input("Second photo", height=220, min_width=140, elem_id="photo2", visible=False)
        self.examples = gr.HTML(
            f"<p>Examples</p><div>{''.join(_thumbnail(name) for name in demo_photos())}</div>",
            js_on_load=_CHOOSE_EXAMPLE,
            elem_id="examples",
            padding=False,
        )
        self.model = gr.Dropdown(list(workshop.models), value="demo_simclr", label="Model", elem_id="model")
        self.explainers = gr.Dropdown(
            list(explainer_names()), value=list(FIRST), multiselect=True, label="Explainers", elem_id="explainers"
        )
        self.options: dict[tuple[str, str], Any] = {}
        self.panels = {name: self._panel(name) for name in explainer_names()}
        with gr.Accordion("Views, protocol, curves", open=False):
            self.views = gr.Dropdown(list(VIEWS), value="simclr", label="Views of one photo", elem_id="views")
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed", info="of views and draws")
            self.protocol = gr.Radio(list(PROTOCOLS), value="sound", label="Protocol", elem_id="protocol")
            self.points = gr.Number(
                56, label="Points per curve", precision=0, minimum=1, maximum=1000, elem_id="points"
            )
        with gr.Column(elem_id="foot"):  # stays in sight, and with it how far the work is
            with gr.Row(elem_id="buttons"):
                self.explain = gr.Button(
                    "Explain", scale=1, variant="primary", size="md", elem_id="explain", min_width=80
                )
                self.score = gr.Button("Explain and score", scale=2, size="md", elem_id="score", min_width=140)
                self.cancel = gr.Button("Cancel", scale=1, size="md", elem_id="cancel", min_width=70, interactive=False)
            self.status = gr.HTML("", elem_id="status", padding=False)

    @property
    def inputs(self) -> list[Any]:
        fixed = [self.kind, self.photo1, self.photo2, self.model, self.explainers, self.views, self.seed]
        return [*fixed, self.protocol, self.points, *self.options.values()]

    def read(self, *values: Any) -> tuple[list[Path], Settings]:
        """Photos and settings that :attr:`inputs` stand for."""
        kind, photo1, photo2, model, explainers, views, seed, protocol, points, *given = values
        wanted = [photo1, photo2] if kind == TWO else [photo1]
        if None in wanted:
            raise UserError("give two photos" if kind == TWO else "give a photo, or take one of the examples")
        chosen: dict[str, dict[str, Any]] = {}
        for (explainer, option), value in zip(self.options, given, strict=True):
            if explainer in explainers and value not in (None, ""):
                chosen.setdefault(explainer, {})[option] = value
        settings = Settings(model, tuple(explainers), chosen, protocol, views, seed, points)
        return [Path(photo) for photo in wanted], settings

    def _panel(self, name: str) -> Any:
        known = explainer_options(name)
        with gr.Accordion(
            f"Options of {name}", open=False, visible=name in FIRST and bool(known), elem_id=f"options-{name}"
        ) as panel:
            for option in known:
                self.options[name, option.name] = _field(name, option)
        return panel


def _field(explainer: str, option: Option) -> Any:
    shown: dict[str, Any] = {"label": option.name, "info": option.note or None, "elem_id": f"{explainer}-{option.name}"}
    if option.valid:
        default = "" if option.default == "null" else option.default
        return gr.Dropdown([(default or "from the protocol", ""), *option.valid], value="", **shown)
    return gr.Textbox("", placeholder=option.default, max_length=200, **shown)


def _wire(workshop: Workshop, form: _Form, page: gr.Blocks, outputs: list[Any]) -> None:
    link = outputs[-1]
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    # By session. The run itself says that it was cancelled: said by the button's own event, as Gradio's `cancels` has
    # it, a bar that was still on its way would take the word's place.
    wanted_no_more: dict[str | None, threading.Event] = {}

    async def run(scored: bool, request: gr.Request, *values: Any) -> AsyncIterator[Any]:
        try:
            photos, settings = form.read(*values)
        except UserError as error:
            refuse(error)
        address = f"{request.headers.get('origin', '')}/?{settings.query(photos)}"
        told = [settings.command(photos, scored, workshop.models), address]
        found: list[Explained | LeftOut] = []
        last_word = ""
        stop = wanted_no_more[request.session_hash] = threading.Event()
        try:
            yield [_bar(Progress(0.0, "Waiting for its turn")), gr.skip(), *told, gr.update(interactive=True)]
            async for step in steps(workshop, settings, photos, scored, stop):
                if isinstance(step, Progress):
                    yield [_bar(step), *[gr.skip()] * 4]
                    continue
                found.append(step)
                yield [gr.skip(), results_html(found), *[gr.skip()] * 3]
        except UserError as error:
            last_word = _alert(str(error))
        except Cancelled:
            last_word = _alert("Cancelled.")
        finally:
            del wanted_no_more[request.session_hash]
        yield [last_word, *[gr.skip()] * 3, gr.update(interactive=False)]

    def cancel(request: gr.Request) -> None:
        if request.session_hash in wanted_no_more:
            wanted_no_more[request.session_hash].set()

    async def explain_only(request: gr.Request, *values: Any) -> AsyncIterator[Any]:
        async for update in run(False, request, *values):
            yield update

    async def explain_and_score(request: gr.Request, *values: Any) -> AsyncIterator[Any]:
        async for update in run(True, request, *values):
            yield update

    for button, work in ((form.explain, explain_only), (form.score, explain_and_score)):
        run_ = button.click(
            work, form.inputs, [*outputs, form.cancel], concurrency_id="explaining", concurrency_limit=1, **private
        )
        run_.then(None, link, None, js="(link) => { history.replaceState(null, '', new URL(link).search) }", **private)
    form.cancel.click(cancel, None, None, queue=False, **private)
    form.kind.change(
        lambda kind: (gr.update(label="First photo" if kind == TWO else "Photo"), gr.update(visible=kind == TWO)),
        form.kind,
        [form.photo1, form.photo2],
        queue=False,
        **private,
    )
    form.explainers.change(
        lambda chosen: [gr.update(visible=name in chosen and bool(explainer_options(name))) for name in form.panels],
        form.explainers,
        list(form.panels.values()),
        queue=False,
        **private,
    )
    form.examples.select(_take_example, [form.kind, form.photo1, form.photo2], [form.photo1, form.photo2], **private)

    def from_link(request: gr.Request) -> list[Any]:
        return _from_link(workshop, form, dict(request.query_params))

    page.load(from_link, None, form.inputs, **private)


def _take_example(kind: str, photo1: str | None, photo2: str | None, event: gr.SelectData) -> tuple[Any, Any]:
    known = demo_photos().get(str(event.value))
    if known is None:
        return gr.skip(), gr.skip()
    photo = _cached(known)
    return (gr.skip(), photo) if kind == TWO and photo1 and not photo2 else (photo, gr.skip())


def _from_link(workshop: Workshop, form: _Form, query: dict[str, str]) -> list[Any]:
    query = {key: value for key, value in query.items() if not key.startswith("__")}
    unchanged = [gr.skip()] * len(form.inputs)
    if not query:
        return unchanged
    try:
        settings = Settings.from_query(query, workshop.models)
    except UserError as error:
        gr.Warning(f"The link was not understood: {error}")
        return unchanged
    known = [demo_photos().get(query.get(key, "")) for key in ("photo", "photo2")]
    photos = [gr.skip() if photo is None else _cached(photo) for photo in known]
    two = "photo2" in query
    photos[1] = gr.update(visible=two) if known[1] is None else gr.update(visible=two, value=photos[1])
    kind = TWO if two else ONE
    given = [settings.options.get(name, {}).get(option, "") for name, option in form.options]
    chosen = [settings.model, list(settings.explainers), settings.views, settings.seed]
    return [kind, *photos, *chosen, settings.protocol, settings.points, *given]


def _cached(photo: Path) -> str:
    """A copy of a demo photo among the uploads, which is all that the page may name."""
    return processing_utils.save_file_to_cache(photo, utils.get_upload_folder())


def _thumbnail(name: str) -> str:
    with Image.open(demo_photos()[name]) as opened:
        small = ImageOps.fit(opened.convert("RGB"), (120, 90))
    title = escape(Path(name).stem.replace("_", " "))
    image = f'<img src="{data_address(small)}" alt="{title}">'
    return f'<button type="button" data-photo="{escape(name)}" title="{title}">{image}</button>'


def _bar(progress: Progress) -> str:
    share = f"{progress.done:.0%}"
    return (
        f'<div class="progress" role="status"><span>{escape(progress.doing)}</span><span>{share}</span>'
        f'<progress value="{progress.done:.3f}" max="1" aria-label="{escape(progress.doing)}">{share}</progress></div>'
    )


def _alert(message: str) -> str:
    return f'<div class="alert" role="alert">{escape(message)}</div>'
