"""The records of a zip file, to the byte: the only place that knows their layout (docs/formats.md: "Final zip")."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s2B5H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
END64_LOCATOR = struct.Struct("<4sIQI")

LOCAL_SIGNATURE = b"PK\x03\x04"
CENTRAL_SIGNATURE = b"PK\x01\x02"
END_SIGNATURE = b"PK\x05\x06"
END64_SIGNATURE = b"PK\x06\x06"
END64_LOCATOR_SIGNATURE = b"PK\x06\x07"

VERSION = 20
VERSION_ZIP64 = 45
UNIX = 3
DATE = 1 << 5 | 1  # 1980-01-01, the first day a zip can name; the time is 0
FILE_MODE = 0o100644 << 16  # 0 makes unzip create files that nobody may read
ZIP64_EXTRA_ID = 1
FULL_16 = 0xFFFF
FULL_32 = 0xFFFFFFFF


class BrokenZip(ValueError):
    """Bytes that are not a zip as we write it; who knows the file's name raises ArtifactCorrupt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZipLimits:
    """From these values on zip64 takes over; smaller ones make its paths testable with small files."""

    offset: int = FULL_32
    members: int = FULL_16


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One stored member; `offset` is where its local header starts."""

    name: str
    crc: int
    size: int
    offset: int

    @property
    def header_size(self) -> int:
        """Bytes of the local header, name and extra included."""
        return LOCAL.size + len(self.name.encode()) + (20 if self.size >= FULL_32 else 0)

    @property
    def data_offset(self) -> int:
        """Where the member's data starts."""
        return self.offset + self.header_size

    @property
    def stop(self) -> int:
        """Where the next local header starts."""
        return self.data_offset + self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """Where the central directory lies; it ends where the end records start."""

    members: int
    offset: int
    size: int


def local_header(entry: Entry) -> bytes:
    """Pack the local header with its name; an extra field only where a size does not fit 32 bits."""
    name = entry.name.encode()
    large = entry.size >= FULL_32
    extra = struct.pack("<2H2Q", ZIP64_EXTRA_ID, 16, entry.size, entry.size) if large else b""
    size = FULL_32 if large else entry.size
    version = VERSION_ZIP64 if large else VERSION
    fields = (version, 0, 0, 0, DATE, entry.crc, size, size, len(name), len(extra))
    return LOCAL.pack(LOCAL_SIGNATURE, *fields) + name + extra


def central_entry(entry: Entry, limits: ZipLimits) -> bytes:
    """Pack the entry in the central directory, with the zip64 extra that size and offset ask for."""
    name = entry.name.encode()
    large, far = entry.size >= FULL_32, entry.offset >= limits.offset
    values = ([entry.size, entry.size] if large else []) + ([entry.offset] if far else [])
    extra = struct.pack(f"<2H{len(values)}Q", ZIP64_EXTRA_ID, 8 * len(values), *values) if values else b""
    version = VERSION_ZIP64 if values else VERSION
    size = FULL_32 if large else entry.size
    fields = (version, UNIX, version, 0, 0, 0, DATE, entry.crc, size, size, len(name), len(extra))
    offset = FULL_32 if far else entry.offset
    return CENTRAL.pack(CENTRAL_SIGNATURE, *fields, 0, 0, 0, FILE_MODE, offset) + name + extra


def end_records(directory: Directory, limits: ZipLimits) -> bytes:
    """Pack what follows the central directory; zip64 records only where a number does not fit."""
    members, size, offset = directory.members, directory.size, directory.offset
    many, big, far = members >= limits.members, size >= FULL_32, offset >= limits.offset
    zip64 = b""
    if many or big or far:
        versions = (VERSION_ZIP64 | UNIX << 8, VERSION_ZIP64)
        zip64 = END64.pack(END64_SIGNATURE, END64.size - 12, *versions, 0, 0, members, members, size, offset)
        zip64 += END64_LOCATOR.pack(END64_LOCATOR_SIGNATURE, 0, offset + size, 1)
    short = FULL_16 if many else members
    sizes = (FULL_32 if big else size, FULL_32 if far else offset)
    return zip64 + END.pack(END_SIGNATURE, 0, 0, short, short, *sizes, 0)


END_RECORDS_MAX = END64.size + END64_LOCATOR.size + END.size


def read_end(tail: bytes, file_size: int) -> Directory:
    """Find the central directory from the file's last `END_RECORDS_MAX` bytes (or all of a shorter file)."""
    if len(tail) < END.size:
        raise BrokenZip(f"is {file_size} bytes, too short for a zip")
    signature, disk, first_disk, here, members, size, offset, comment = END.unpack(tail[-END.size :])
    if signature != END_SIGNATURE or disk or first_disk or here != members or comment:
        raise BrokenZip("does not end with a zip's end record (truncated, or not a zip)")
    end_size = END.size
    locator = tail[-END.size - END64_LOCATOR.size : -END.size]
    if locator.startswith(END64_LOCATOR_SIGNATURE) and len(tail) >= END_RECORDS_MAX:
        wide = END64.unpack(tail[-END_RECORDS_MAX : -END_RECORDS_MAX + END64.size])
        if wide[0] != END64_SIGNATURE or wide[6] != wide[7]:
            raise BrokenZip("has a broken zip64 end record")
        members, size, offset = wide[7:]
        end_size = END_RECORDS_MAX
        if END64_LOCATOR.unpack(locator)[2] != file_size - end_size:
            raise BrokenZip("has a zip64 locator that points elsewhere")
    if offset + size + end_size != file_size:
        raise BrokenZip(
            f"has a directory of {size} bytes at {offset}, which does not end {end_size} bytes before its end"
        )
    if members * CENTRAL.size > size:
        raise BrokenZip(f"claims {members} members in a directory of {size} bytes")
    return Directory(members=members, offset=offset, size=size)


def read_entries(directory: bytes | memoryview) -> Iterator[Entry]:
    """Every entry of a central directory, refusing whatever our own writer would not have written."""
    position, data = 0, bytes(directory)
    while position < len(data):
        entry, position = _read_entry(data, position)
        yield entry


def _read_entry(data: bytes, position: int) -> tuple[Entry, int]:
    if position + CENTRAL.size > len(data):
        raise BrokenZip("has a directory that ends inside an entry")
    fields = CENTRAL.unpack_from(data, position)
    crc, size, name_size, extra_size, offset = fields[8], fields[10], fields[11], fields[12], fields[17]
    name_stop = position + CENTRAL.size + name_size
    stop = name_stop + extra_size
    try:
        name = data[position + CENTRAL.size : name_stop].decode()
        far = offset == FULL_32
        values = struct.unpack_from(f"<{extra_size // 8}Q", data, name_stop + 4) if extra_size else ()
        if size == FULL_32:
            size = values[0]
        if far:
            offset = values[-1]
    except (UnicodeDecodeError, struct.error, IndexError) as error:
        raise BrokenZip(f"has a broken directory entry at byte {position} of its directory") from error
    entry = Entry(name=name, crc=crc, size=size, offset=offset)
    limits = ZipLimits(offset=offset if far else FULL_32)
    if central_entry(entry, limits) != data[position:stop]:
        raise BrokenZip(f"{name!r}: has a directory entry that is not of our making")
    return entry, stop
