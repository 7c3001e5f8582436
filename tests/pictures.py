"""Folders of pictures of every kind for tests, and run directories that make their depth."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from shardgen.settings.run_directory import RunDirectory
from tests.photographs import blob, colours, heic

SIZES = {  # as they are seen
    "a/plain.jpg": (60, 40),
    "a/turned.jpg": (40, 60),
    'a/with, "comma".png': (33, 50),
    "b/one.png": (1, 1),
    "b/grey.webp": (50, 20),
    "b/many.bmp": (31, 17),
    "b/wide.png": (64, 48),
    "phone.heic": (48, 32),
    "scan.tiff": (20, 70),
    "Ž.jpeg": (90, 30),
}
HEADLESS, HOLLOW = "b/headless.jpg", "c/hollow.png"
"""A picture whose headers do not read, and one of 40x30 of which only the pixels do not."""


def write_pictures(folder: Path) -> Path:
    """All of them, and a note that is no picture."""
    for name, (width, height) in SIZES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(zlib.crc32(name.encode()))
        pixels = colours(random, width, height)
        match path.name:
            case "turned.jpg":
                exif = Image.Exif()
                exif[0x0112] = 6
                Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(path, exif=exif, quality=90)
            case 'with, "comma".png':
                Image.fromarray(np.dstack([pixels, blob(width, height)])).save(path)
            case "grey.webp":
                Image.fromarray(pixels[:, :, 0]).save(path)
            case "wide.png":
                Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(path)
            case "phone.heic":
                path.write_bytes(heic(width, height))
            case _:
                Image.fromarray(pixels).save(path)
    (folder / "c").mkdir()
    (folder / HEADLESS).write_bytes((folder / "a/plain.jpg").read_bytes()[:100])
    (folder / HOLLOW).write_bytes(hollow_png(40, 30))
    (folder / "c/note.txt").write_text("not a picture")
    return folder


def hollow_png(width: int, height: int) -> bytes:
    """Headers and checksums are right, but the pixels are nothing that zlib knows."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", b"nothing"), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def make_pictures_run(folder: Path, *, output: str = 'size = "source"', manifest: str = "") -> RunDirectory:
    """Pictures and settings: 12 samples in shards of 8, batches of 4."""
    if not (folder / "pictures").exists():
        write_pictures(folder / "pictures")
    path = folder / "run"
    path.mkdir(exist_ok=True)
    (path / "shardgen.toml").write_text(
        f'[recipe]\nkind = "depth"\n[sources]\npictures = "{folder / "pictures"}"\n'
        f'[depth]\nweights = "small"\ninput = [64, 64]\nmicro_batch = 2\n[output]\n{output}\n'
        "[shards]\nsize = 8\nslice_batches = 2\nbatch = 4\n"
        f"[lease]\nseconds = 30\nheartbeat_seconds = 0.5\n{manifest}",
        encoding="utf-8",
    )
    return RunDirectory.open(path)
