"""Parquet tables that know when a bit of them has flipped.

Parquet can keep a checksum for every page, and none for what says which page is what. A seal is a checksum of the whole
file, kept in its own footer; other readers see one more entry of metadata.
"""

import zlib
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from twinsight.errors import UserError

_KEY, _BLANK = b"twinsight.crc32", b"00000000"
_MARK = _KEY + b"\x18\x08"  # as the footer writes it: a text of eight bytes follows
_MAGIC, _BLOCK = b"PAR1", 2**20


class Damaged(UserError):
    """A file is not what was written."""


def write_sealed(table: pa.Table, path: Path) -> None:
    """Write a table with a checksum for every page and one for the whole file."""
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: _BLANK})
    pq.write_table(table, path, write_page_checksum=True)
    with path.open("r+b") as file:
        place = _seal_at(path, file)
        assert place is not None
        seal = _checksum(file, place)
        file.seek(place)
        file.write(seal)


def check_seal(path: Path) -> None:
    """Read a file to its end and compare; one without a seal, as older versions wrote, passes if it looks like a table.

    Raises:
        Damaged: it is not what was written.
        OSError: the disk's trouble; the file may well be whole.
    """
    with path.open("rb") as file:
        place = _seal_at(path, file)
        if place is not None:
            file.seek(place)
            if file.read(len(_BLANK)) != _checksum(file, place):
                raise _damaged(path, "its checksum does not fit")


def read_sealed(path: Path) -> pa.Table:
    """The table in a file.

    Raises:
        Damaged, OSError: as :func:`check_seal`.
    """
    check_seal(path)
    try:
        return pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _damaged(path, error) from None


def _damaged(path: Path, why: object) -> Damaged:
    reason = str(why).strip().partition("\n")[0]
    return Damaged(f"{path} is damaged ({reason}): remove it and run again, and its pairs are computed again")


def _seal_at(path: Path, file: BinaryIO) -> int | None:
    """Where the seal is; None where there is none."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    end = file.read()
    length = int.from_bytes(end[:4], "little")
    if end[4:] != _MAGIC or length > size - 12:
        raise _damaged(path, "it has no end")
    file.seek(size - 8 - length)
    found = file.read(length).find(_MARK)
    return None if found < 0 else size - 8 - length + found + len(_MARK)


def _checksum(file: BinaryIO, place: int) -> bytes:
    """CRC-32 of a file with a blank for its seal, as eight hexadecimal digits."""
    file.seek(0)
    crc, left = 0, place
    while block := file.read(min(_BLOCK, left)):
        crc, left = zlib.crc32(block, crc), left - len(block)
    crc = zlib.crc32(_BLANK, crc)
    file.seek(place + len(_BLANK))
    while block := file.read(_BLOCK):
        crc = zlib.crc32(block, crc)
    return f"{crc:08x}".encode()
