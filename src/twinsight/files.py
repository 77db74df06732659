"""Files that are there whole or not at all."""

import json
import os
import uuid
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write(partial)`` make a file beside ``path``, then rename it: readers see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text))


NO_ARRAYS = (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
"""What NumPy answers to files that are none of its own, are damaged, or declare more than memory has."""


def refuse_bomb(path: Path, limit: int) -> None:
    """Go on only with a file that, where it is a zip archive, says that it unpacks to at most ``limit`` bytes.

    Raises:
        ValueError: it unpacks to more.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError):  # for whoever reads it to say
        return
    if unpacked > limit:
        raise ValueError(f"it unpacks to {unpacked:,} bytes, and at most {limit:,} are expected")
