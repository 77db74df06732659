"""A place where nobody is logged in to Weights & Biases, and what it keeps there of runs on disk."""

import json
import os
import struct

import pyarrow.parquet as pq
import pytest
import wandb
from wandb.proto import wandb_internal_pb2

KEY = "0" * 40
WANDB = ("logger=wandb", "pictures.limit=1", "data.limit=2", "logger.wandb.tags=[mine]")


@pytest.fixture(autouse=True)
def stranger(tmp_path, monkeypatch):
    """Nobody is logged in; W&B's service starts anew, since it remembers what it was started with."""
    wandb.teardown()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    wandb.teardown()


def run_folder(root, cell):
    """The offline run of a cell, found by its id."""
    (folder,) = (root / "wandb").glob(f"offline-run-*-{digest(cell)[:16]}")
    return folder


def digest(cell):
    return pq.read_schema(cell / "records.parquet").metadata[b"cell"].decode()


def logged_records(folder):
    """The records of a ``.wandb`` file: a log of 32 KiB blocks, each entry with checksum, length and kind."""
    (path,) = folder.glob("*.wandb")
    content, place, entry = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        entry += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of several parts
            record = wandb_internal_pb2.Record()
            record.ParseFromString(entry)
            entry = b""
            yield record


def configuration(folder):
    """What ``run.config`` holds."""
    items = {}
    for record in logged_records(folder):
        for item in (*record.config.update, *record.run.config.update):
            items[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return items


def history(folder):
    """Values of ``run.log``, the last of each."""
    found = {}
    for record in logged_records(folder):
        for item in record.history.item:
            found[tuple(item.nested_key) or (item.key,)] = json.loads(item.value_json)
    return found


def table(folder, name):
    (path,) = (folder / "files" / "media" / "table").glob(f"{name}_*.table.json")
    return json.loads(path.read_text())


def described(folder):
    """The record that describes the run."""
    (run,) = (record.run for record in logged_records(folder) if record.HasField("run"))
    return run


def exit_code(folder):
    """What the run ended with; None where it never did."""
    codes = [record.exit.exit_code for record in logged_records(folder) if record.HasField("exit")]
    return codes[0] if codes else None


def runs(root):
    """Folders of all runs below an output folder, by id."""
    found = [(described(folder).run_id, folder) for folder in sorted((root / "wandb").glob("offline-run-*"))]
    assert len(dict(found)) == len(found)
    return dict(found)
