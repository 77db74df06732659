"""The component that takes photos, and how it says no."""

from pathlib import Path
from typing import Any, NoReturn

import gradio as gr

from twinsight.app.photos import check_photo
from twinsight.errors import UserError

class Photo(gr.Image):
    """An uploaded photo, as the path of its file: held against the limits, and never fetched from elsewhere."""

    def __init__(self, **options: Any) -> None:
        super().__init__(type="filepath", image_mode=None, sources=["upload", "clipboard"], **options)

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
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block

    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

def refuse(error: UserError) -> NoReturn:
    """Tell the user what to mend; it stays until it is closed."""
    raise gr.Error(str(error), duration=None, print_exception=False) from None

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
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block

    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component
