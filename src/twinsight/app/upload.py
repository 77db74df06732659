"""Where photos are given, and how the page says no."""

from abc import ABCMeta
from pathlib import Path
from typing import Any, NoReturn

import gradio as gr
from gradio.component_meta import ComponentMeta

from twinsight.app.photos import check_photo
from twinsight.errors import UserError


def _checked(self: gr.Image, payload: Any) -> str | None:
    """The path of an upload that is within the limits, in place of Gradio's own reading of it."""
    if payload is None or not payload.path:
        return None
    try:
        check_photo(Path(payload.path))
    except UserError as error:
        refuse(error)
    return payload.path


async def _never_fetched(self: gr.Image, path: Any) -> Any:
    if str(path).startswith(("http://", "https://")):
        raise gr.Error("photos are uploaded, not fetched from addresses")
    return await gr.Image.async_move_resource_to_block_cache(self, path)


# A class, since Gradio builds a component anew from its class whenever one of its options changes, for each user; past
# Gradio's own making of classes, which writes a stub beside the source. Its name is that of the part shown in browsers.
PhotoInput: Any = ABCMeta.__new__(
    ComponentMeta,
    "Image",
    (gr.Image,),
    {"preprocess": _checked, "async_move_resource_to_block_cache": _never_fetched, "__module__": __name__},
)


def photo_input(label: str, **options: Any) -> gr.Image:
    """A place to drop, paste or choose a photo; its value is the path of the uploaded file, which is within the limits.

    What is changed of Gradio's own: files are checked before anything reads them, and none is fetched from an address.
    """
    return PhotoInput(label=label, type="filepath", image_mode=None, sources=["upload", "clipboard"], **options)


def refuse(error: UserError) -> NoReturn:
    """Tell the user what to mend; it stays until it is closed."""
    raise gr.Error(str(error), duration=None, print_exception=False) from None
