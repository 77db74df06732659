"""The component that takes photos, and how it says no."""

from pathlib import Path
from typing import Any, NoReturn

import gradio as gr

from twinsight.app.photos import check_photo
from twinsight.errors import UserError


class _Photo(gr.Image):
    """An uploaded photo, as the path of its file: held against the limits, and never fetched from elsewhere."""

    def get_block_name(self) -> str:
        return "image"  # what it looks like

    async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> Any:
        if url_or_file_path is not None and str(url_or_file_path).startswith(("http://", "https://")):
            raise gr.Error("photos are uploaded, not fetched from addresses")
        return await super().async_move_resource_to_block_cache(url_or_file_path)

    def preprocess(self, payload: Any) -> Any:
        if payload is None or not payload.path:
            return None
        try:
            check_photo(Path(payload.path))
        except UserError as error:
            refuse(error)
        return payload.path


def photo_input(label: str, **options: Any) -> _Photo:
    """Where a photo is dropped, pasted or chosen; its value is the path of the uploaded file."""
    return _Photo(label=label, type="filepath", image_mode=None, sources=["upload", "clipboard"], **options)


def refuse(error: UserError) -> NoReturn:
    """Tell the user what to mend; it stays until it is closed."""
    raise gr.Error(str(error), duration=None, print_exception=False) from None
