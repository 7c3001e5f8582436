from __future__ import annotations

import hashlib
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shardgen.storage.bounded import Irregular
from shardgen.storage.lines import LineFile

# Two pieces and more, cut inside lines and inside characters.
LINES = [f"{number}: {'é' * (number * 37 % 61)}".encode() for number in range(40_000)]
DATA = b"".join(line + b"\n" for line in LINES)


def test_any_line_is_found_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(DATA)
    found = LineFile.open(tmp_path / "lines")
    (tmp_path / "lines").unlink()
    assert (len(found), found.size) == (len(LINES), len(DATA))
    assert (found.sha256, found.crc) == (hashlib.sha256(DATA).hexdigest(), zlib.crc32(DATA))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(found.line, range(0, len(LINES), 41))) == LINES[::41]
    assert found.lines(0, len(LINES)) == LINES
    assert b"".join(found.pieces()) == DATA
    assert found.lines(39_990, 50_000) == LINES[39_990:]
    assert found.lines(-5, 2) == LINES[:2]
    assert found.lines(7, 7) == []
    for number in (-1, len(LINES)):
        with pytest.raises(IndexError):
            found.line(number)


def test_lines_inside_another_file_and_in_memory(tmp_path: Path) -> None:
    (tmp_path / "zip").write_bytes(b"before" + DATA + b"behind")
    descriptor = os.open(tmp_path / "zip", os.O_RDONLY)
    try:
        inside = LineFile(lambda offset, size: os.pread(descriptor, size, 6 + offset), len(DATA))
        assert inside.line(20_000) == LINES[20_000]
    finally:
        os.close(descriptor)
    assert LineFile.of(DATA).sha256 == inside.sha256
    assert (len(LineFile.of(b"")), LineFile.of(b"").lines(0, 1)) == (0, [])
    assert LineFile.of(b"\n\na\n").lines(0, 3) == [b"", b"", b"a"]


def test_what_is_cut_off_is_no_file_of_lines() -> None:
    with pytest.raises(ValueError, match="ends inside a line"):
        LineFile.of(DATA[:-1])
    with pytest.raises(ValueError, match="after 5 of 9 bytes"):
        LineFile(lambda offset, size: b"a\nbc\n"[offset : offset + size], 9)


def test_a_folder_and_a_pipe_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Irregular):
        LineFile.open(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        LineFile.open(tmp_path)


def test_what_is_larger_than_it_should_be_is_not_read_to_its_end(tmp_path: Path) -> None:
    read = list[int]()

    def piece(offset: int, size: int) -> bytes:
        read.append(offset)
        return DATA[offset : offset + size]

    with pytest.raises(ValueError, match="more than 1,000 lines"):
        LineFile(piece, len(DATA), lines=1000)
    assert read == [0]
    with pytest.raises(ValueError, match="40,000 lines, not 40,001"):
        LineFile(piece, len(DATA), lines=40_001)
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    with pytest.raises(ValueError, match="bytes, not 9"):
        LineFile.open(tmp_path / "sparse", size=9, lines=1)
    read.clear()

    def endless(offset: int, size: int) -> bytes:
        read.append(offset)
        return b"x" * size

    with pytest.raises(ValueError, match="a line of more than"):
        LineFile(endless, 1 << 40)
    assert read == [0]


def test_bytes_that_are_gone_by_now_are_not_returned_as_fewer_lines() -> None:
    data = bytearray(b"a\nbc\nd\n")
    found = LineFile(lambda offset, size: bytes(data[offset : offset + size]), len(data))
    assert found.lines(1, 3) == [b"bc", b"d"]
    data[4:] = b"xyz"
    with pytest.raises(ValueError, match="changed"):
        found.lines(1, 3)
    del data[4:]
    with pytest.raises(ValueError, match="changed"):
        found.line(1)
