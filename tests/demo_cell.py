"""The numbers of `python run.py` as it comes, to be locked; `python tests/demo_cell.py` writes them anew."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from twinsight.study.records import read, unpacked_array

ROOT = Path(__file__).parents[1]
LOCKED = Path(__file__).parent / "golden" / "demo_cell.json"


def run_demo_cell(root: Path) -> list[dict[str, Any]]:
    """Numbers of the twelve demo pairs by name: where the views lie, both maps, the score and all metrics."""
    words = [f"paths.output_root={root}", "logger=none", "pictures.limit=0", "trainer=cpu"]
    done = subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (root / "cells").iterdir()
    numbers = []
    for record, arrays in zip(read(folder), read(folder, "arrays"), strict=True):
        del record["chunk_size"]  # measured on the machine
        maps = {name: unpacked_array(arrays, name).ravel().tolist() for name in ("map1", "map2")}
        numbers.append({**record, **maps})
    return numbers


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        numbers = run_demo_cell(Path(root))
    lines = [json.dumps(each, default=list) for each in numbers]
    LOCKED.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
