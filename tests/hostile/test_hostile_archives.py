"""Files of weights, maps and embeddings that declare more than they hold, or unpack to more than memory has."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest
import torch

import twinsight
from toy import tiny_model
from twinsight import api
from twinsight.errors import UserError
from twinsight.models import load_model
from twinsight.models.checkpoints import read_tensors
from twinsight.similarity import InfoNCE

BOMB = bytes(100_000_000)
PAIR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


SAFETENSORS = {
    "a head of 2^63 bytes": safetensors({}, length=2**63),
    "a head of 99 MB that is not there": safetensors({}, length=99_000_000),
    "tensors that overlap": safetensors({"a": PAIR, "b": PAIR}, bytes(8)),
    "tensors that overlap in part": safetensors({"a": PAIR, "b": {**PAIR, "data_offsets": [4, 12]}}, bytes(12)),
    "a gap before a tensor": safetensors({"a": {**PAIR, "data_offsets": [8, 16]}}, bytes(16)),
    "a tensor that ends before it begins": safetensors({"a": {**PAIR, "data_offsets": [8, 0]}}, bytes(8)),
    "2^80 values": safetensors({"a": {**PAIR, "shape": [2**40, 2**40]}}, bytes(8)),
    "a terabyte that is not there": safetensors(
        {"a": {**PAIR, "shape": [2**38], "data_offsets": [0, 2**40]}}, bytes(8)
    ),
    "bytes that belong to none": safetensors({"a": PAIR}, bytes(16)),
    "values of objects": safetensors({"a": {**PAIR, "dtype": "O"}}, bytes(8)),
    "a head nested a hundred thousand deep": safetensors(b'{"a":' * 100_000),
    "a head that is no JSON": safetensors(b"{nope"),
    "a head that is no text": safetensors(b'{"\xff\xfe": 1}'),
    "a head that is a list": safetensors(b"[]"),
    "eight bytes": bytes(8),
    "nothing": b"",
}


@pytest.mark.parametrize("what", SAFETENSORS)
def test_safetensors_that_declare_what_is_not_there_are_refused_in_one_line(tmp_path, what):
    path = tmp_path / "a.safetensors"
    path.write_bytes(SAFETENSORS[what])
    with pytest.raises(
        UserError, match=r"^`checkpoint=.*a\.safetensors` is not safetensors, or truncated \(.*\): fetch"
    ):
        read_tensors(path)
    with pytest.raises(UserError, match=r"^`checkpoint=.*a\.safetensors` is not a twinsight weight file \(.*\): give"):
        load_model("pretrained", checkpoint=path)


def repacked(path, spoil, compression=zipfile.ZIP_STORED):
    """A file of ``torch.save`` with the members that ``spoil`` makes of its own."""
    whole = io.BytesIO()
    torch.save({"a": torch.zeros(1000)}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", compression) as made:
        for member in source.infolist():
            made.writestr(member.filename, spoil(member.filename, source.read(member)))
    return path


def twice(path):
    """A zip whose directory lists one member many times."""
    whole = repacked(path, lambda name, content: content).read_bytes()
    start = whole.index(b"PK\x01\x02")
    end = whole.rindex(b"PK\x05\x06")
    entries = whole[start:end]
    count = entries.count(b"PK\x01\x02")
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 50 * count, 50 * count, 50 * len(entries), start, 0)
    path.write_bytes(whole[:start] + 50 * entries + tail)
    return path


TORCH = {
    "its tensors": lambda path: repacked(path, lambda n, c: BOMB if n.endswith("data/0") else c, zipfile.ZIP_DEFLATED),
    "its pickle": lambda path: repacked(path, lambda n, c: c + BOMB if n.endswith(".pkl") else c, zipfile.ZIP_DEFLATED),
    "its version": lambda path: repacked(path, lambda n, c: BOMB if n.endswith("version") else c, zipfile.ZIP_DEFLATED),
    "many times what it holds": twice,
}


@pytest.mark.parametrize("what", TORCH)
def test_weights_that_unpack_to_more_than_the_file_are_not_unpacked(tmp_path, monkeypatch, what):
    path = TORCH[what](tmp_path / "a.pth")
    assert path.stat().st_size < 1_000_000
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpacked"))
    with pytest.raises(
        UserError, match=r"^`checkpoint=.*a\.pth` is no file of torch\.save: it unpacks to [\d,]+ bytes"
    ):
        read_tensors(path)


def test_weights_in_a_zip_of_stored_members_are_read(tmp_path):
    assert read_tensors(repacked(tmp_path / "a.pth", lambda name, content: content))["a"].shape == (1000,)


def npy(shape, dtype="<f4", data=bytes(16)):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": dtype, "fortran_order": False, "shape": shape})
    return head.getvalue() + data


# What lies in map1.npy, and what is said.
MAPS = {
    "zeros without end": (
        npy((1, 2000, 2000), data=bytes(16_000_000)),
        "it unpacks to 16,[0-9,]+ bytes, and at most 1,",
    ),
    "a head of 400 terabytes": (npy((10**7, 10**7)), "Unable to allocate 364"),
    "a head of more than the file": (npy((1, 1000, 1000)), "."),
    "objects": (npy((2,), "|O"), "allow_pickle=False"),
    "a head that is code": (npy((2,)).replace(b"False", b"exit1"), "."),
    "no array": (b"nothing", "."),
}


@pytest.mark.parametrize("what", MAPS)
def test_maps_that_declare_or_unpack_to_too_much_are_refused_in_one_line(tmp_path, monkeypatch, what):
    content, said = MAPS[what]
    with zipfile.ZipFile(tmp_path / "maps.npz", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("map1.npy", content)
    monkeypatch.setattr(api, "_MAP_BYTES", 1_000_000)
    views, path = torch.rand(2, 1, 3, 32, 32), tmp_path / "maps.npz"
    with pytest.raises(UserError, match=rf"^`map(s=.*maps\.npz` cannot be read: |1` must be ).*{said}") as refusal:
        twinsight.evaluate(tiny_model(0), *views, maps=path, metrics=["average_drop"])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "content", [npy((10**7, 10**7)), npy((100, 100)), npy((2,), "|O"), b"", b"PK\x03\x04", BOMB[:99]]
)
def test_embeddings_that_declare_what_is_not_there_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "bank.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"^`negatives=.*bank\.npy` is no \.npy file of embeddings: ") as refusal:
        InfoNCE(tmp_path / "bank.npy")
    assert "\n" not in str(refusal.value)
