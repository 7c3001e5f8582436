"""HEIC, which phones write: read where pillow-heif is installed, else refused by name."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from shardgen.errors import MachineUnfit
from shardgen.imaging.containers.base import (
    Outline,
    Stored,
    alpha_apart,
    animated,
    check_size,
    damaged,
    library,
    unsupported,
)

HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"})
AVIF_BRANDS = frozenset({b"avif", b"avis"})
_UNSPECIFIED_OR_BT709 = frozenset({1, 2})
_HDR_TRANSFERS = frozenset({16, 18})  # PQ and HLG
_AS_JPEG = 'or export it as JPEG (on an iPhone: Settings, Camera, Formats, "Most Compatible")'


def brands_of(data: bytes) -> frozenset[bytes]:
    """The brands of an ISO media file; empty for any other."""
    if data[4:8] != b"ftyp":
        return frozenset()
    stop = min(int.from_bytes(data[:4]), len(data), 1024)
    return frozenset({data[8:12], *(data[at : at + 4] for at in range(16, stop - 3, 4))})


def outline_of(data: bytes) -> Outline:
    """Its size as it is seen, once its headers passed. Raises MachineUnfit where pillow-heif is missing."""
    return Outline(*_opened(data).size)


def read_heic(data: bytes) -> Stored:
    """Decode the primary picture; libheif has turned it already.

    Raises MachineUnfit where pillow-heif is missing: the photograph may be fine.
    """
    file = _opened(data)
    numbers = file.info.get("nclx_profile") or {}
    profile = file.info.get("icc_profile") or b""
    warnings: tuple[str, ...] = ()
    if not profile and numbers.get("color_primaries", 2) not in _UNSPECIFIED_OR_BT709:
        warnings = ("its colour space is given by numbers (nclx), which were ignored",)
    with library("HEIC"):
        pixels = np.asarray(file)
    if pixels.dtype != np.uint8:
        raise unsupported(f"HEIC of {pixels.dtype} samples", "export it as JPEG")
    colours, alpha = alpha_apart(pixels)
    bits = file.info.get("bit_depth", 8)
    return Stored(
        pixels=colours,
        alpha=alpha,
        premultiplied=alpha is not None and file.premultiplied_alpha,
        profile=profile,
        notes=(f"{bits} bits per channel converted to 8",) if bits > 8 else (),
        warnings=warnings,
    )


def _opened(data: bytes) -> Any:
    """What pillow-heif will decode, once its headers passed."""
    try:
        import pillow_heif  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MachineUnfit(
            "HEIC: reading it needs pillow-heif, which is not installed here",
            hint=f'python -m pip install "shardgen[heic]", {_AS_JPEG}',
        ) from error
    with library("HEIC"):
        file = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True)
    if not len(file):
        raise damaged("HEIC", "it holds no picture")
    if len(file) > 1:
        raise animated(f"HEIC with {len(file)} pictures")
    check_size(*file.size)
    numbers = file.info.get("nclx_profile") or {}
    if numbers.get("transfer_characteristics") in _HDR_TRANSFERS:
        raise unsupported("HEIC in high dynamic range", "export it as JPEG")
    return file
