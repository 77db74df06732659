"""Notebooks as pages of the site, with what their cells show."""

import base64
import json
from itertools import groupby
from operator import itemgetter
from pathlib import PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files


class Notebook(File):
    """A notebook whose content has been made Markdown; links may name it as it is called in the repository."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: MkDocsConfig) -> None:
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        uri = PurePosixPath(file.src_uri)
        parts: list[str] = []
        for number, cell in enumerate(json.loads(file.content_string)["cells"]):
            source = "".join(cell["source"])
            parts.append(source if cell["cell_type"] == "markdown" else _fenced(source, "python"))
            shown = [_shown(output) for output in cell.get("outputs", [])]
            for kind, outputs in groupby(shown, key=itemgetter(0)):
                content = "".join(content for _, content in outputs)  # what is printed comes in pieces
                if kind == "text":
                    parts.append(_fenced(content, 'text title="Output"'))
                else:
                    picture = uri.with_name(f"{uri.stem}-{number}.{kind}")
                    bits = base64.b64decode(content)
                    files.append(File.generated(config, str(picture), content=bits))
                    parts.append(f"![What the cell above draws]({picture.name})")
        files.remove(file)
        files.append(Notebook.generated(config, file.src_uri, content="\n\n".join(parts)))


def _shown(output: dict[str, Any]) -> tuple[str, str]:
    """What an output shows first of all: ``text`` or a format of pictures, and the content."""
    if output["output_type"] == "stream":
        return "text", "".join(output["text"])
    for kind in ("jpeg", "png"):
        if f"image/{kind}" in output.get("data", {}):
            return kind, output["data"][f"image/{kind}"]
    if "text/plain" in output.get("data", {}):
        return "text", "".join(output["data"]["text/plain"])
    raise PluginError(f"an output of a notebook is neither text nor a picture: {output['output_type']}")


def _fenced(text: str, language: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"
