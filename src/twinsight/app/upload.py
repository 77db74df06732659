"""Where photos are given, and how the page says no."""

from pathlib import Path
from typing import Any, NoReturn

import gradio as gr

from twinsight.app.photos import check_photo
from twinsight.errors import UserError


def photo_input(label: str, **options: Any) -> gr.Image:
    """A place to drop, paste or choose a photo; its value is the path of the uploaded file, which is within the limits.

    What is changed of Gradio's own: files are checked before anything reads them, and none is fetched from an address.
    """
    image = gr.Image(label=label, type="filepath", image_mode=None, sources=["upload", "clipboard"], **options)
    move = image.async_move_resource_to_block_cache

    async def move_unless_elsewhere(path: Any) -> Any:
        if str(path).startswith(("http://", "https://")):
            raise gr.Error("photos are uploaded, not fetched from addresses")
        return await move(path)

    def checked(payload: Any) -> str | None:
        if payload is None or not payload.path:
            return None
        try:
            check_photo(Path(payload.path))
        except UserError as error:
            refuse(error)
        return payload.path

    # On the object: Gradio writes a stub beside the source of every subclass, and asks for its frontend.
    image.async_move_resource_to_block_cache = move_unless_elsewhere  # type: ignore[method-assign, assignment]
    image.preprocess = checked  # type: ignore[method-assign]
    return image


def refuse(error: UserError) -> NoReturn:
    """Tell the user what to mend; it stays until it is closed."""
    raise gr.Error(str(error), duration=None, print_exception=False) from None
