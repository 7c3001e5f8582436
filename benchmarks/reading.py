"""A data set read at random: `shardgen.DataSet` beside `zipfile`, a webdataset tar and Parquet; and opened.

    python -m benchmarks.reading [--folder DIR] [--read 20000] [--rounds 5] [--samples 408040]

`--read` samples of three small images (JPEG, PNG, JPEG) are written in each format, and read in rounds in
which all take turns: in random order, and the tar from its beginning, the only way that it has. Everything is
in the page cache. What is not installed of webdataset and pyarrow is left out. Then a zip of `--samples`,
whose images are a hole in the file, is opened in fresh processes, so that peak memory is their own. Removes
what it wrote.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import shardgen
from benchmarks.merge import MEMBER_BYTES, simulated_plan
from shardgen.artifacts.zip_records import Entry, local_header
from shardgen.dataset.labels import label_rows, labels_header
from shardgen.dataset.member_table import MemberColumns, MemberTable
from shardgen.dataset.metadata import Metadata
from shardgen.dataset.output import CARD, DEAD_LETTERS, LABELS, METADATA, PLAN, STATS
from shardgen.dataset.zip_writer import FinalZip, Spool
from shardgen.domain.identifiers import BatchIndex, SampleIndex
from shardgen.domain.plan import Plan
from shardgen.domain.sample import member_name
from shardgen.recipes.registry import recipe_of
from shardgen.storage.files import DiskFiles

VARIANTS = 64
ROW_GROUP = 100  # rows; small, for whoever reads at random
_AT_ONCE = 4096
_PAGE = 128  # batches whose labels are made at once
_FACTS = (110, 16, 270, 314, 53_540, 1000, 36, 5, 90, 105, 5_952)

Images = list[tuple[bytes, ...]]
"""Encoded files of some samples, which all samples have in turns."""


def made_images() -> Images:
    """Composites, masks and depth of 200x200 pixels: blurred noise and ellipses."""
    import cv2  # noqa: PLC0415 - the opening is measured without it

    from shardgen.imaging.codec import encode  # noqa: PLC0415
    from shardgen.imaging.options import ImageFormat  # noqa: PLC0415

    source = np.random.default_rng(0)
    found: Images = []
    for _ in range(VARIANTS):
        size = (200, 200)
        coarse = source.integers(0, 256, (12, 12, 3), np.uint8)
        pixels = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
        pixels = cv2.add(pixels, source.integers(0, 16, pixels.shape, np.uint8))
        mask = np.zeros(size, np.uint8)
        center, axes = source.integers(60, 140, 2).tolist(), source.integers(20, 60, 2).tolist()
        cv2.ellipse(mask, center, axes, float(source.integers(180)), 0, 360, 255, -1)
        found.append(
            (
                encode(pixels, ImageFormat.JPEG, 25),  # type: ignore[arg-type]
                encode(mask, ImageFormat.PNG, 0),
                encode(np.ascontiguousarray(pixels[:, :, 0]), ImageFormat.JPEG, 60),  # type: ignore[arg-type]
            )
        )
    return found


def write_zip(path: Path, plan: Plan, images: Images, *, hollow: bool = False) -> None:
    """A whole data set; with `hollow` its images are a hole in the file, which costs nothing to write."""
    table, files = MemberTable(plan), DiskFiles()
    sizes = np.array([[len(file) for file in one] for one in images], np.uint32)
    crcs = np.array([[zlib.crc32(file) for file in one] for one in images], np.uint32)
    with ExitStack() as stack:
        directory, labels, metadata = (stack.enter_context(Spool(path.parent)) for _ in range(3))
        descriptor = files.create(path)
        stack.callback(files.close, descriptor)
        archive = FinalZip(files, descriptor, table=table, directory=directory)
        for start in range(0, plan.samples, _AT_ONCE):
            samples = np.arange(start, min(start + _AT_ONCE, plan.samples), dtype=np.int64)
            turns = samples % len(images)
            stops = table.stops(samples, sizes[turns]) + archive.size
            offsets = np.concatenate([[archive.size], stops.ravel()[:-1]]).reshape(stops.shape)
            columns = MemberColumns(samples=samples, crcs=crcs[turns], sizes=sizes[turns], offsets=offsets)
            directory.write(table.render_central(columns, zip64_offset=archive.limits.offset))
            if not hollow:
                files.write(descriptor, b"".join(_members(plan, samples, images)))
            archive.size = int(stops[-1, -1])
            archive.members += stops.size
        os.lseek(descriptor, archive.size, os.SEEK_SET)
        for piece in _labels(plan):
            labels.write(piece)
        for piece in Metadata(recipe_of(plan)).file(labels.read()):
            metadata.write(piece)
        archive.add_spooled(LABELS, labels)
        archive.add_spooled(METADATA, metadata)
        archive.add(STATS, b"{}\n")
        archive.add(DEAD_LETTERS, b"sample,reason\n")
        archive.add(PLAN, plan.canonical_json)
        archive.add(CARD, b"# Made by a benchmark\n")
        archive.finish()


def _members(plan: Plan, samples: NDArray[np.int64], images: Images) -> Iterator[bytes]:
    for sample in map(SampleIndex, samples.tolist()):
        for output, data in zip(plan.outputs, images[sample % len(images)], strict=True):
            name = member_name(output, sample, digits=plan.name_digits)
            yield local_header(Entry(name=name, crc=zlib.crc32(data), size=len(data), offset=0))
            yield data


def _labels(plan: Plan) -> Iterator[bytes]:
    recipe = recipe_of(plan)
    yield labels_header(recipe).encode()
    for batch in map(BatchIndex, range(plan.layout.batch_count)):
        facts = dict.fromkeys(map(SampleIndex, plan.layout.batch_samples(batch)), _FACTS)
        yield label_rows(recipe, batch, without=(), facts=facts).encode()


def write_tar(path: Path, plan: Plan, images: Images) -> None:
    """The same files as webdataset has them."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in range(plan.samples):
            for output, data in zip(plan.outputs, images[sample % len(images)], strict=True):
                info = tarfile.TarInfo(f"{sample:07d}.{output.name}.{output.suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_parquet(path: Path, plan: Plan, images: Images) -> None:
    """The same files as columns of bytes, not compressed once more, with a page index."""
    import pyarrow as pa  # noqa: PLC0415 - optional
    import pyarrow.parquet as pq  # noqa: PLC0415

    columns = {
        output.name: pa.array([images[sample % len(images)][at] for sample in range(plan.samples)])
        for at, output in enumerate(plan.outputs)
    }
    pq.write_table(
        pa.table(columns), path, compression="none", row_group_size=ROW_GROUP, write_page_index=True,
        use_dictionary=False,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What one reader read in one round; bytes are those of the stored files."""

    samples: int
    bytes: int
    seconds: float

    @property
    def samples_per_second(self) -> float:
        """Of the round."""
        return self.samples / self.seconds

    @property
    def bytes_per_second(self) -> float:
        """Of the round."""
        return self.bytes / self.seconds


Reader = Callable[[Sequence[int]], int]
"""Reads these samples; returns the bytes of their files."""


def zipfile_reader(path: Path, plan: Plan) -> Reader:
    """One open `ZipFile`; a sample's members by their names."""
    archive = zipfile.ZipFile(path)
    names = [
        [member_name(output, SampleIndex(sample), digits=plan.name_digits) for output in plan.outputs]
        for sample in range(plan.samples)
    ]

    def read(order: Sequence[int]) -> int:
        return sum(len(archive.read(name)) for sample in order for name in names[sample])

    return read


def encoded_reader(path: Path) -> Reader:
    """`DataSet.encoded`."""
    data = shardgen.DataSet(path)

    def read(order: Sequence[int]) -> int:
        return sum(len(file) for sample in order for file in data.encoded(sample).values())

    return read


def decoded_reader(path: Path) -> Reader:
    """`DataSet[i]`: decoded, with the labels."""
    data = shardgen.DataSet(path)
    data.labels_of(0)
    sizes = data._sizes.sum(axis=1).tolist()  # noqa: SLF001 - of stored files; what comes out is larger

    def read(order: Sequence[int]) -> int:
        total = 0
        for sample in order:
            data[sample]
            total += sizes[sample]
        return total

    return read


def webdataset_reader(path: Path) -> Reader:
    """All from the beginning: a tar knows no other order."""
    import webdataset as wds  # noqa: PLC0415 - optional

    def read(_order: Sequence[int]) -> int:
        total = 0
        for sample in wds.WebDataset(str(path), shardshuffle=False, empty_check=False):
            total += sum(len(value) for name, value in sample.items() if not name.startswith("__"))
        return total

    return read


def parquet_reader(path: Path, plan: Plan) -> Reader:
    """The row group that a sample lies in, and its row of that."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - optional

    file = pq.ParquetFile(path, memory_map=True)
    names = [output.name for output in plan.outputs]

    def read(order: Sequence[int]) -> int:
        total = 0
        for sample in order:
            group, row = divmod(sample, ROW_GROUP)
            table = file.read_row_group(group)
            total += sum(len(table[name][row].as_py()) for name in names)
        return total

    return read


def readers(folder: Path, plan: Plan, images: Images) -> dict[str, tuple[Reader, int]]:
    """Write each format; who reads it, and by how much it reads fewer samples a round, being slow."""
    write_zip(folder / "data.zip", plan, images)
    found: dict[str, tuple[Reader, int]] = {
        "zipfile, random": (zipfile_reader(folder / "data.zip", plan), 1),
        "DataSet.encoded, random": (encoded_reader(folder / "data.zip"), 1),
        "DataSet[i], random, decoded, labels": (decoded_reader(folder / "data.zip"), 4),
    }
    try:
        reader = webdataset_reader(folder / "data.tar")
    except ModuleNotFoundError:
        print("webdataset: not installed")
    else:
        write_tar(folder / "data.tar", plan, images)
        found["webdataset tar, in order"] = reader, 1
    try:
        write_parquet(folder / "data.parquet", plan, images)
    except ModuleNotFoundError:
        print("pyarrow: not installed")
    else:
        found[f"Parquet, random, {ROW_GROUP} rows a group"] = (
            parquet_reader(folder / "data.parquet", plan),
            20,
        )
    return found


def read_in_turns(folder: Path, samples: int, rounds: int) -> dict[str, list[Rate]]:
    """Every reader's rate in every round."""
    plan, images = simulated_plan(samples), made_images()
    found: dict[str, list[Rate]] = {}
    known = readers(folder, plan, images)
    source = random.Random(0)  # noqa: S311
    for _ in range(rounds):
        order = source.sample(range(plan.samples), plan.samples)
        for name, (read, fewer) in known.items():
            part = order[: max(1, len(order) // fewer)]
            start = time.perf_counter()
            size = read(part)
            seconds = time.perf_counter() - start
            found.setdefault(name, []).append(Rate(samples=len(part), bytes=size, seconds=seconds))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Seconds and peak MiB of a fresh process: of importing, opening, and of reading all labels then."""

    samples: int
    import_seconds: float
    open_seconds: float
    open_cpu_seconds: float
    open_mib: float
    labels_seconds: float
    labels_mib: float


_OPEN = """
import json, sys, time
def peak():  # what getrusage says is the parent's, where that was larger
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
start = time.perf_counter()
from shardgen import DataSet
imported, before = time.perf_counter(), time.process_time()
data = DataSet(sys.argv[1])
opened, cpu, open_mib = time.perf_counter(), time.process_time() - before, peak()
assert len(data.labels["sample"]) == len(data)
print(json.dumps({
    "samples": len(data), "import_seconds": imported - start, "open_seconds": opened - imported,
    "open_cpu_seconds": cpu, "open_mib": open_mib,
    "labels_seconds": time.perf_counter() - opened, "labels_mib": peak(),
}))
"""


def open_anew(path: Path) -> Opening:
    """Open it in a process that imports nothing else."""
    command = [sys.executable, "-c", _OPEN, str(path)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    return Opening(**json.loads(answer))


def write_hollow(path: Path, samples: int) -> int:
    """A zip of so many samples of the usual sizes; returns the bytes of its images' directory."""
    plan = simulated_plan(samples)
    write_zip(path, plan, [tuple(map(bytes, MEMBER_BYTES.values()))], hollow=True)
    numbers = np.arange(plan.samples, dtype=np.int64)
    return MemberTable(plan).central_size(numbers, zip64_from=3 * plan.samples)


def _print_rates(found: dict[str, list[Rate]]) -> None:
    base = found["zipfile, random"]
    width = max(map(len, found))
    print(f"{'':{width}} samples/s    MB/s   of zipfile's bytes/s: median, rounds")
    for name, rates in found.items():
        ratios = [
            one.bytes_per_second / other.bytes_per_second for one, other in zip(rates, base, strict=True)
        ]
        samples, size = (
            statistics.median(getattr(one, what) for one in rates)
            for what in ("samples_per_second", "bytes_per_second")
        )
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"{name:{width}} {samples:9,.0f} {size / 1e6:7.1f}   {statistics.median(ratios):.2f} ({shown})")


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary one)")
    parser.add_argument("--read", type=int, default=20_000, help="samples to read; 0: none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=408_040, help="samples of the zip to open; 0: none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.read:
            _print_rates(read_in_turns(folder, options.read, options.rounds))
        if options.samples:
            size = write_hollow(folder / "hollow.zip", options.samples)
            for _ in range(options.rounds):
                found = open_anew(folder / "hollow.zip")
                print(
                    f"{found.samples:,} samples, a directory of {size / 1e6:.0f} MB: import "
                    f"{found.import_seconds:.2f} s, open {found.open_seconds:.2f} s (CPU "
                    f"{found.open_cpu_seconds:.2f} s), {found.open_mib:.0f} MiB; all labels "
                    f"{found.labels_seconds:.1f} s, {found.labels_mib:.0f} MiB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
