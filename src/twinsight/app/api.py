"""The same for programs: one endpoint, ``/explain``, for ``gradio_client`` or plain HTTP."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from twinsight.app.settings import VIEWS, Settings, explainer_names
from twinsight.app.steps import Progress, steps
from twinsight.app.upload import photo_input, refuse
from twinsight.app.work import Explained, LeftOut, Workshop
from twinsight.errors import UserError
from twinsight.protocol import PROTOCOLS


def add_api(workshop: Workshop) -> None:
    """Add the endpoint to the page that is being built."""
    with gr.Column(visible=False):
        inputs = [
            photo_input("photo"),
            photo_input("photo2"),
            gr.Dropdown(list(workshop.models), value="demo_simclr", label="model"),
            gr.Dropdown(list(explainer_names()), value=["interaction_cam"], multiselect=True, label="explainers"),
            gr.JSON({}, label="options"),
            gr.Checkbox(False, label="scored"),
            gr.Dropdown(list(VIEWS), value="simclr", label="views"),
            gr.Number(0, precision=0, label="seed"),
            gr.Number(224, precision=0, label="points"),
            gr.Radio(list(PROTOCOLS), value="sound", label="protocol"),
        ]
        answer, button = gr.JSON(label="answer"), gr.Button()

    async def explain(
        photo: str | None,
        photo2: str | None,
        model: str,
        explainers: list[str],
        options: Any,
        scored: bool,
        views: str,
        seed: int,
        points: int,
        protocol: str,
    ) -> AsyncIterator[dict[str, Any]]:
        """Explain the pair that one photo or two make.

        Answers with ``{"progress": share}`` while it works, and in the end with ``command``, which computes the same,
        and ``explanations``: for each explainer its ``columns`` (``score``; where ``scored`` the metrics), ``map1`` and
        ``map2`` as rows of numbers at the method's own resolution, and ``curves``. ``left_out`` says why others are not
        there. ``options`` are those of each explainer by its name: ``{"gradcam": {"form": "elementwise"}}``.
        """
        try:
            photos = [Path(each) for each in (photo, photo2) if each is not None]
            if not photos:
                raise UserError("give a photo")
            chosen = tuple(explainers)
            settings = Settings(model, chosen, _options(options, chosen), protocol, views, seed, points)
            explanations: dict[str, Any] = {}
            left_out: dict[str, str] = {}
            async for step in steps(workshop, settings, photos, scored):
                if isinstance(step, Progress):
                    yield {"progress": step.done}
                elif isinstance(step, LeftOut):
                    left_out[step.name] = step.why
                else:
                    explanations[step.name] = _plain(step)
        except UserError as error:
            refuse(error)
        command = settings.command(photos, scored, workshop.models)
        yield {"command": command, "explanations": explanations, "left_out": left_out}

    button.click(explain, inputs, answer, api_name="explain", concurrency_id="explaining", concurrency_limit=1)


def _options(given: Any, explainers: tuple[str, ...]) -> Mapping[str, Mapping[str, Any]]:
    given = given or {}
    if not isinstance(given, Mapping) or not all(isinstance(each, Mapping) for each in given.values()):
        raise UserError("`options` must be {explainer: {option: value}}")
    if others := set(given) - set(explainers):
        raise UserError(f"`options` has {', '.join(sorted(others))}, which `explainers` has not")
    return given


def _plain(one: Explained) -> dict[str, Any]:
    map1, map2 = (None if each is None else each.tolist() for each in (one.maps or [None, None]))
    curves = {name: curve.tolist() for name, curve in one.curves.items()}
    return {"title": one.title, "columns": one.columns, "map1": map1, "map2": map2, "curves": curves}
