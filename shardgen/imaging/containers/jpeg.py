"""JPEG: libjpeg-turbo decodes, strictly; what it does not notice of damage is looked for here.

It warns inside a scan where the codes stop making sense. It does not where a progressive file lacks whole
scans, nor where a block of zeros decodes to something.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from shardgen.errors import SourceUndecodable
from shardgen.imaging.containers.base import (
    MAX_PROFILE_BYTES,
    Outline,
    Stored,
    check_size,
    damaged,
    exif_orientation,
    library,
    truncated,
    unsupported,
)

START = b"\xff\xd8\xff"
_END_MARKER = b"\xff\xd9"
# Inside entropy-coded data 0xFF is followed by 0x00 or a restart marker (D0-D7): neither ends a scan.
# A marker may have several 0xFF before its code.
_IS_CODE = ~np.isin(np.arange(256), (0x00, *range(0xD0, 0xD8), 0xFF))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL, _PROGRESSIVE = frozenset({0xC0, 0xC1}), 0xC2
_LOSSLESS_FRAME = 0xF7
_STANDALONE = frozenset({0x01, 0xD8})
_END, _SCAN, _TABLES, _LEVELS, _EXIF, _PROFILE, _ADOBE = 0xD9, 0xDA, 0xC4, 0xDB, 0xE1, 0xE2, 0xEE
# What a picture needs of its headers, JFIF's and Adobe's segments among it, which say what the channels are.
_NEEDED = _FRAMES | {_TABLES, _LEVELS, _SCAN, 0xDD, 0xE0, _ADOBE}
_PROFILE_MARK = b"ICC_PROFILE\0"
_COEFFICIENTS = 64
_STRAY_BYTES = 16  # webcams and old programs leave a few before the end marker
_STRAYS_AT_END = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
# A run of zeros: in AC scans of photographs the longest had 12 bytes. A disk loses blocks of 512.
_ZEROS = bytes(64)
_RUNS_OF_ZEROS = re.compile(rb"\0{64,}")
_MOST_CORRECTION_BYTES = 128  # libjpeg sends correction bits up to 1,000 at a time
_LINE_ENDS = 8  # all of so many line ends being CR LF comes by chance once in 2**64 files
_ANNEX_K = {0x00: 0, 0x01: 0, 0x10: 0x01, 0x11: 0x00}  # the tables of files that bring none


def _check_levels(segment: bytes) -> None:
    """Quantisation tables hold no 0: a step of 0 would make every coefficient 0."""
    position = 0
    while position < len(segment):
        width = 2 if segment[position] >> 4 else 1
        table = segment[position + 1 : position + 1 + _COEFFICIENTS * width]
        steps = [table[at : at + width] for at in range(0, len(table), width)]
        if len(table) != _COEFFICIENTS * width or bytes(width) in steps:
            raise damaged("JPEG", "a quantisation table is broken")
        position += 1 + len(table)


def _are_corrections(codes: bytes) -> bool:
    """Whether runs of zeros are those of a smooth gradient: it corrects nothing, and that time and again."""
    runs = [len(run[0]) for run in _RUNS_OF_ZEROS.finditer(codes)]
    return len(runs) > 1 and max(runs) <= _MOST_CORRECTION_BYTES


@dataclass(slots=True)
class _Facts:
    """What the segments have told so far."""

    frame_kind: int = 0
    frame: bytes = b""
    orientation: int | None = None
    has_adobe_marker: bool = False
    profile_parts: dict[int, bytes] = field(default_factory=dict)
    profile_count: int = 0
    # What a code of nothing but zero bits means in each Huffman table, by class (1 is AC) and number.
    zero_codes: dict[int, int] = field(default_factory=dict)
    # For each component, the bits that every coefficient still lacks; None: not sent at all.
    lacking: dict[int, list[int | None]] = field(default_factory=dict)

    @property
    def components(self) -> int:
        return self.frame[5]

    def note(self, marker: int, segment: bytes) -> None:
        if marker in _FRAMES:
            self._note_frame(marker, segment)
        elif marker == _LOSSLESS_FRAME:
            raise unsupported("JPEG-LS", hint="save it as PNG")
        elif marker == _TABLES:
            self._note_tables(segment)
        elif marker == _LEVELS:
            _check_levels(segment)
        elif marker == _EXIF and segment.startswith(b"Exif\0") and self.orientation is None:
            self.orientation = exif_orientation(segment[6:])
        elif marker == _PROFILE and segment.startswith(_PROFILE_MARK) and len(segment) > 14:
            self.profile_parts.setdefault(segment[12], segment[14:])
            self.profile_count = segment[13]
        elif marker == _ADOBE and segment.startswith(b"Adobe") and len(segment) >= 12:
            self.has_adobe_marker = True

    def _note_frame(self, marker: int, segment: bytes) -> None:
        if self.frame:
            raise damaged("JPEG", "two frame headers")
        if len(segment) < 6 or len(segment) != 6 + 3 * segment[5]:
            raise damaged("JPEG", "its frame header has a wrong length")
        self.frame_kind, self.frame = marker, segment
        bits, height, width, _components = struct.unpack_from(">BHHB", segment)
        if marker not in _SEQUENTIAL and marker != _PROGRESSIVE:
            kind = "arithmetic-coded" if marker >= 0xC9 else "lossless or hierarchical"
            raise unsupported(f"{kind} JPEG", hint="save it as ordinary JPEG or PNG")
        if bits != 8:
            raise unsupported(f"{bits}-bit JPEG", hint="save it as 8-bit JPEG or PNG")
        check_size(width, height)
        self.lacking = {identifier: [None] * _COEFFICIENTS for identifier in segment[6::3]}

    def _note_tables(self, segment: bytes) -> None:
        position = 0
        while position + 17 < len(segment):
            count = sum(segment[position + 1 : position + 17])
            values = segment[position + 17 : position + 17 + count]
            if len(set(values)) != count:
                raise damaged("JPEG", "a Huffman table is broken")
            if count:
                self.zero_codes[segment[position]] = segment[position + 17]
            position += 17 + count

    def note_scan(self, segment: bytes, codes: bytes) -> None:
        """Check one scan: its header and the entropy-coded bytes that follow."""
        if not self.frame:
            raise damaged("JPEG", "a scan without a frame header")
        if len(segment) < 6 or len(segment) != 4 + 2 * segment[0]:
            raise damaged("JPEG", "a scan header has a wrong length")
        first, last, shifts = segment[-3:]
        tables = segment[2:-3:2]
        is_progressive = self.frame_kind == _PROGRESSIVE
        if not is_progressive:
            first, last, shifts = 0, _COEFFICIENTS - 1, 0
        for identifier in segment[1:-3:2]:
            if identifier not in self.lacking or not first <= last < _COEFFICIENTS:
                raise damaged("JPEG", "a scan of a component that it does not have")
            self.lacking[identifier][first : last + 1] = [shifts & 15] * (last + 1 - first)
        has_dc = not is_progressive or (first == 0 and shifts >> 4 == 0)
        has_ac = not is_progressive or first > 0
        dc_tables = {table >> 4 for table in tables if has_dc}
        ac_tables = {16 + (table & 15) for table in tables if has_ac}
        known = self.zero_codes or _ANNEX_K
        if not dc_tables | ac_tables <= set(known):
            raise damaged("JPEG", "a Huffman table is missing")
        # A code of zero bits that is a coefficient fills a block with one value, over and over: no picture
        # does that. Where it ends the block instead, a flat picture is made of zeros.
        tells = first > 0 if is_progressive else any(known[table] & 15 for table in ac_tables)
        is_refined = is_progressive and shifts >> 4 > 0
        if tells and _ZEROS in codes and not (is_refined and _are_corrections(codes)):
            raise damaged("JPEG", "a block of zeros inside its image data")
        line_ends = codes.count(b"\n")
        if line_ends >= _LINE_ENDS and codes.count(b"\r\n") == line_ends:
            raise damaged("JPEG", "mangled by a text-mode transfer (every LF became CR LF)")

    def check_complete(self) -> None:
        if any(bits != 0 for lacking in self.lacking.values() for bits in lacking):
            raise truncated("JPEG", "its last scans are missing")

    @property
    def profile(self) -> bytes:
        """The ICC profile, put together from its numbered parts; empty where one is missing."""
        parts = [self.profile_parts.get(number, b"") for number in range(1, self.profile_count + 1)]
        whole = b"".join(parts)
        return whole if all(parts) and len(whole) <= MAX_PROFILE_BYTES else b""


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height that the header claims."""
    with library("JPEG"):
        height, width, _model, _subsampling = simplejpeg.decode_jpeg_header(data, strict=False)
    return width, height


def outline_of(data: bytes) -> Outline:
    """Size and orientation, once its segments and scans passed; nothing is decoded."""
    facts, _clean, _has_end = _walk(data)
    _refuse_ambiguous(facts)
    _bits, height, width, _components = struct.unpack_from(">BHHB", facts.frame)
    return Outline(width, height, facts.orientation or 1)


def read_jpeg(data: bytes) -> Stored:
    """Decode a JPEG; bytes after its end (phones append some) do not count."""
    facts, clean, has_end = _walk(data)
    _refuse_ambiguous(facts)
    notes = () if has_end else ("its end marker is missing, but the picture is complete",)
    warnings: tuple[str, ...] = ()
    if facts.profile_count and not facts.profile:
        warnings = ("its colour profile is incomplete and was ignored",)
    return Stored(
        pixels=_decode(clean, facts.components),
        orientation=facts.orientation or 1,
        profile=facts.profile,
        notes=notes,
        warnings=warnings,
    )


def _refuse_ambiguous(facts: _Facts) -> None:
    """Adobe's four channels are inverted; without its marker nobody knows."""
    if facts.components == 4 and not facts.has_adobe_marker:
        raise SourceUndecodable(
            "CMYK JPEG without an Adobe marker: its colours are ambiguous", hint="convert it to RGB"
        )


def check_jpeg(data: bytes) -> None:
    """Refuse a damaged JPEG stream, such as a strip of a TIFF together with its tables."""
    facts, clean, _has_end = _walk(data)
    _decode(clean, facts.components)


class Markers:
    """Where the markers of a file are; a pattern would take as long as decoding does."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        levels = np.frombuffer(data, np.uint8)
        at = np.flatnonzero(levels[:-1] == 0xFF) + 1
        self._codes = at[_IS_CODE[levels[at]]]

    def after(self, position: int) -> tuple[int, int] | None:
        """Where the next one begins, at `position` or later, and where its code is."""
        index = int(np.searchsorted(self._codes, position, "right"))
        if index == len(self._codes):
            return None
        code = int(self._codes[index])
        return position + len(self._data[position:code].rstrip(b"\xff")), code


def _walk(data: bytes) -> tuple[_Facts, bytes, bool]:
    """Check segments and scans. Returns facts, the file less what is no part of it, whether it had an end."""
    facts, markers = _Facts(), Markers(data)
    parts = [data[:2]]
    position, in_scans, found = 2, False, None
    while (found := markers.after(position)) is not None:
        begin, code = found
        marker, start = data[code], code + 1
        if marker == _END:
            break
        if marker in _STANDALONE:
            position = start
            continue
        stop = start + int.from_bytes(data[start : start + 2])
        if stop > len(data) or stop < start + 2:
            raise truncated("JPEG", "it ends inside a header")
        segment = data[start + 2 : stop]
        position = stop
        if marker == _SCAN:
            after = markers.after(stop)
            position = len(data) if after is None else after[0]
            facts.note_scan(segment, data[stop:position])
            in_scans = True
        else:
            facts.note(marker, segment)
        if in_scans or marker in _NEEDED:
            # What lies between the segments before the first scan is left out as well: cameras pad, some
            # programs give a segment a wrong length. If something is missing then, its scans show it.
            parts.append(data[begin:position])
    if not in_scans:
        if found is None:
            raise truncated("JPEG", "it ends before its picture")
        raise SourceUndecodable("unreadable JPEG: it holds no image")
    facts.check_complete()
    if found is None:
        parts[-1] = parts[-1].rstrip(b"\xff")  # half an end marker
    return facts, b"".join([*parts, _END_MARKER]), found is not None


def _decode(data: bytes, components: int) -> NDArray[np.uint8]:
    """Grey (H, W), RGB (H, W, 3), or CMYK (H, W, 4) where 255 is no ink."""
    model = {1: "GRAY", 4: "CMYK"}.get(components, "RGB")
    try:
        pixels = simplejpeg.decode_jpeg(data, model)
    except ValueError as error:
        strays = _STRAYS_AT_END.search(str(error))
        if strays is None or int(strays[1]) > _STRAY_BYTES:
            raise _refusal(str(error)) from error
        with library("JPEG"):
            pixels = simplejpeg.decode_jpeg(data[: -2 - int(strays[1])] + _END_MARKER, model)
    return pixels[:, :, 0] if components == 1 else pixels  # type: ignore[no-any-return]


def _refusal(message: str) -> SourceUndecodable:
    if "remature end" in message:
        return truncated("JPEG", "its data end before the last row")
    if "subsampling" in message:
        return unsupported("JPEG with an unusual subsampling", hint="save it as ordinary JPEG or PNG")
    return damaged("JPEG", message.removeprefix("Corrupt JPEG data: "))
