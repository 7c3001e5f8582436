"""The same 400 samples made by shardgen, img2dataset, datatrove and litdata, and how to read the results."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from benchmarks.beside import notes
from benchmarks.beside.peers import (
    DATATROVE,
    IMG2DATASET,
    LITDATA,
    ROOT,
    SHARDGEN,
    Peer,
    environment_of_programs,
)
from benchmarks.beside.serving import Pictures
from benchmarks.beside.watching import Mark

SAMPLES, WORKERS, KILL_AT = 400, 2, 100
"""A worker has 200 samples when work is shared evenly; it is killed when it begins its 100th."""
_PER_WORKER = SAMPLES // WORKERS


class DataSet(ABC):
    """One project's way to make the samples in a folder of its own, with one of its Pythons."""

    peer: Peer
    title: str

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder = folder
        self.python = python
        self.notes = folder / "notes"
        self.notes.mkdir(parents=True)
        self.output = folder / "output"

    @abstractmethod
    def prepare(self) -> None:
        """Write the inputs."""

    @abstractmethod
    def command(self) -> list[str | Path]:
        """What is run, and run again."""

    @abstractmethod
    def stored(self) -> list[int]:
        """The samples that a reader of the result gets."""

    def half_written(self) -> int | None:
        """How many files under a final name are not whole; None: not looked at."""
        return None

    def environment(self, *, kill: bool) -> dict[str, str]:
        """The variables of the command."""
        return {
            **environment_of_programs(),
            notes.FOLDER: str(self.notes),
            notes.KILL_AT: str(KILL_AT if kill else 0),
        }

    def on_tick(self, mark: Mark) -> None:  # noqa: B027 - most need not look
        """Look at the running command."""

    def begun(self) -> list[int]:
        """Every sample as often as its making was begun."""
        return notes.begun(self.notes)

    def was_killed(self) -> bool:
        """Whether the kill has fallen."""
        return notes.victim_file(self.notes).exists()

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give back what `prepare` holds."""


def program(python: Path, name: str, *arguments: object) -> list[str | Path]:
    """The command that runs one of our programs in another project's environment."""
    return [python, "-m", f"benchmarks.beside.programs.{name}", *map(str, arguments)]


class Shardgen(DataSet):
    """`shardgen run` with two shards of 200 small samples and the small network."""

    peer = SHARDGEN
    batch = 32
    title = "`shardgen run`, batches of 32"

    def prepare(self) -> None:
        """Photographs and settings; `run` plans."""
        from tests.runs import make_run  # noqa: PLC0415 - other projects' programs come without OpenCV

        changes = {
            "compose.grid": "[5, 4]",
            "shards.size": str(_PER_WORKER),
            "shards.slice_batches": "16",
            "shards.batch": str(self.batch),
            "lease.seconds": "600",  # nothing here is to depend on it
        }
        self.output = make_run(self.folder, changes=changes, foregrounds=2, backgrounds=5).path

    def command(self) -> list[str | Path]:
        """As a user types it."""
        return [
            self.python,
            "-m",
            "shardgen",
            "run",
            self.output,
            "--workers",
            str(WORKERS),
            "--device",
            "cpu",
        ]

    def environment(self, *, kill: bool) -> dict[str, str]:
        """With the hook that makes workers note their samples."""
        path = os.pathsep.join([str(Path(__file__).parent / "hook"), str(ROOT)])
        return {**super().environment(kill=kill), "PYTHONPATH": path}

    def stored(self) -> list[int]:
        """Those with composite, mask and depth map in the merged zip; a broken one holds nothing."""
        path = self.output / "dataset.zip"
        if not _zip_is_whole(path):
            return []
        with zipfile.ZipFile(path) as archive:
            names = [name.split("/") for name in archive.namelist() if name.count("/") == 2]
        kinds = [
            [int(name.partition(".")[0]) for kind, _, name in names if kind == wanted]
            for wanted in ("fgbg", "mask", "depth")
        ]
        everywhere = set.intersection(*map(set, kinds))
        return [sample for sample in kinds[0] if sample in everywhere]

    def half_written(self) -> int:
        """Artifacts and the zip."""
        paths = [*self.output.glob("artifacts/shard-*/*.zip"), *self.output.glob("*.zip")]
        return sum(not _zip_is_whole(path) for path in paths)


class ShardgenSmallBatches(Shardgen):
    """The same with smaller batches: what is lost is counted in batches."""

    batch = 4
    title = "`shardgen run`, batches of 4"


class Img2dataset(DataSet):
    """Pictures from a server on this machine into two tar shards; the server sees what is asked for."""

    peer = IMG2DATASET
    title = "img2dataset, 2 shards of 200"
    _killed = False

    def prepare(self) -> None:
        """Start the server, which makes the second shard wait at its 100th picture until the kill."""
        self.server = Pictures(halt_from=_PER_WORKER, halt_after=KILL_AT - 1)
        (self.folder / "addresses.txt").write_text(
            "".join(f"{self.server.address(number)}\n" for number in range(SAMPLES)), encoding="ascii"
        )

    def command(self) -> list[str | Path]:
        """Two processes."""
        addresses = self.folder / "addresses.txt"
        return program(self.python, "img2dataset_run", addresses, self.output, _PER_WORKER, WORKERS)

    def on_tick(self, mark: Mark) -> None:
        """Kill the worker that writes the second shard when its 100th picture was asked for."""
        if self.server.halted and not self._killed:
            tar = str(self.output / "00001.tar")
            holders = [one for one in mark.processes() if any(file.path == tar for file in one.open_files())]
            for process in holders:
                process.kill()
                self._killed = True
            if self._killed:
                self.server.go_on()

    def was_killed(self) -> bool:
        """By `on_tick`."""
        return self._killed

    def begun(self) -> list[int]:
        """As the server was asked."""
        return self.server.asked

    def stored(self) -> list[int]:
        """The samples of the tars that can be read to their end."""
        return [sample for tar in sorted(self.output.glob("*.tar")) for sample in _samples_of_tar(tar) or []]

    def half_written(self) -> int:
        """Tars that cannot be read to their end, and empty tables."""
        tars = sum(_samples_of_tar(tar) is None for tar in self.output.glob("*.tar"))
        return tars + sum(not table.stat().st_size for table in self.output.glob("*.parquet"))

    def close(self) -> None:
        """Stop the server."""
        self.server.close()


class Datatrove(DataSet):
    """Two files of JSON lines, a rank for each."""

    peer = DATATROVE
    title = "datatrove, 2 ranks of 200"

    def prepare(self) -> None:
        """Write the two files."""
        (self.folder / "input").mkdir()
        for rank in range(WORKERS):
            mine = range(rank * _PER_WORKER, (rank + 1) * _PER_WORKER)
            lines = [json.dumps({"id": str(sample), "text": f"sample {sample}"}) for sample in mine]
            (self.folder / "input" / f"{rank}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def command(self) -> list[str | Path]:
        """Two ranks, two processes."""
        folders = self.folder / "input", self.output, self.folder / "logs"
        return program(self.python, "datatrove_run", *folders, WORKERS)

    def stored(self) -> list[int]:
        """The documents of all complete lines."""
        return [sample for path in sorted(self.output.glob("*.jsonl")) for sample in _samples_of_lines(path)]

    def half_written(self) -> int:
        """Files with fewer documents than their rank had."""
        return sum(len(list(_samples_of_lines(path))) < _PER_WORKER for path in self.output.glob("*.jsonl"))


class Litdata(DataSet):
    """`optimize` in its default way: workers share a queue."""

    peer = LITDATA
    title = "litdata `optimize`, chunks of 32"
    how = "plain"

    def prepare(self) -> None:
        """Nothing: the inputs are numbers."""

    def command(self) -> list[str | Path]:
        """Two workers."""
        return program(self.python, "litdata_run", SAMPLES, self.output, 32, WORKERS, self.how)

    def environment(self, *, kill: bool) -> dict[str, str]:
        """Its caches lie in the folder, too."""
        cache, data = str(self.folder / "cache"), str(self.folder / "cache-data")
        caches = {"DATA_OPTIMIZER_CACHE_FOLDER": cache, "DATA_OPTIMIZER_DATA_CACHE_FOLDER": data}
        return {**super().environment(kill=kill), **caches}

    def stored(self) -> list[int]:
        """What litdata's own reader reads; without an index it reads nothing."""
        if not (self.output / "index.json").exists():
            return []
        read = subprocess.run(  # noqa: S603 - our own program
            program(self.python, "litdata_run", "read", self.output),
            env=self.environment(kill=False),
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        samples: list[int] = json.loads(read.stdout.splitlines()[-1])
        return samples


class LitdataCheckpoint(Litdata):
    """`optimize` with checkpoints: each worker has its own half."""

    title = "litdata `optimize`, `use_checkpoint`"
    how = "checkpoint"


DATA_SETS: tuple[type[DataSet], ...] = (
    Shardgen,
    ShardgenSmallBatches,
    Img2dataset,
    Datatrove,
    Litdata,
    LitdataCheckpoint,
)


def _zip_is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _samples_of_tar(path: Path) -> list[int] | None:
    samples = []
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None and member.name.endswith(".json"):
                    samples.append(Pictures.number(json.load(file)["url"]))
    except (tarfile.TarError, EOFError, ValueError):
        return None
    return samples


def _samples_of_lines(path: Path) -> Iterator[int]:
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield int(json.loads(line)["id"])
