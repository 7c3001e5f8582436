"""Every deliberate error, named by what the reader should do: its family, hint and exit code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from shardgen.domain.receipt import DeadLetterReason
from shardgen.domain.remarks import Remark
from shardgen.domain.wording import nearest, with_run_dir


class ShardgenError(Exception):
    """What happened (`subject: fact`), and one action in `hint` ("" if there is none).

    For programs `code` is the name of its class, and `exit_code` what the command line exits with.
    `problems` names everything that is wrong, where that may be more than one thing; `remarks` does so of
    files, those with the same problem together.
    """

    exit_code: ClassVar[int] = 1
    run_dir: Path | str | None = None
    """Which run directory, or bucket, the hint means by RUN_DIR; `explained` sets it."""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        problems: tuple[str, ...] = (),
        remarks: tuple[Remark, ...] = (),
    ) -> None:
        super().__init__(message)
        self._hint = hint
        self.problems = problems
        self.remarks = remarks
        self._note_hint()

    @property
    def code(self) -> str:
        """The name of the class, which stays the same from version to version."""
        return type(self).__name__

    @property
    def hint(self) -> str:
        """What to do: one command, as it can be pasted into a shell, or one action.

        The parts deep inside do not know what the user calls the run directory, and write RUN_DIR for it.
        """
        return self._hint if self.run_dir is None else with_run_dir(self._hint, self.run_dir)

    @hint.setter
    def hint(self, hint: str) -> None:
        self._hint = hint
        self._note_hint()

    def name_run(self, run_dir: Path | str) -> None:
        """Let the hint name this run directory, or bucket; a name that it has already stays."""
        if self.run_dir is None:
            self.run_dir = run_dir
            self._note_hint()

    def _note_hint(self) -> None:
        """Put the hint where a Python traceback prints it, below the error."""
        others = [note for note in getattr(self, "__notes__", []) if not note.startswith(_NOTED)]
        self.__notes__ = [*others, _NOTED + self.hint] if self.hint else others


_NOTED = "hint: "


class OperatorError(ShardgenError):
    """A person must change something; never retried. Exit codes 10-19."""

    exit_code = 19


class PlanConflict(OperatorError):
    """The settings, sources, zip or artifacts at hand are not those of the plan."""

    exit_code = 10


class InputMissing(OperatorError):
    """A folder, file or extra that a person must provide is not there."""

    exit_code = 11


class WrongOption(ValueError):
    """An option of a function or a command has a value that makes no sense; `option` names it."""

    def __init__(self, option: str, fact: str) -> None:
        super().__init__(f"{option}: {fact}")
        self.option, self.fact = option, fact


def choose(text: str, known: Iterable[str], *, option: str) -> str:
    """The one of these words that was written, in any case. Raises WrongOption with the nearest one."""
    words = {word.lower(): word for word in known}
    if (found := words.get(text.strip().lower())) is not None:
        return found
    meant = nearest(text, words.values())
    question = f"; did you mean {meant}?" if meant else ""
    raise WrongOption(option, f"{text!r} is not one of {', '.join(words.values())}{question}")


MAX_WORKERS = 256  # of one `run`
MAX_DRAWN = 400  # samples of a preview; they are in memory together


def refuse_number(option: str, value: object, *, at_most: int | None = None) -> None:
    """Raise WrongOption, in the words of the command line, for what is no whole number from 1 on."""
    if not isinstance(value, int) or isinstance(value, bool):
        problem = "must be a whole number"
    elif value < 1:
        problem = "must be at least 1"
    elif at_most is not None and value > at_most:
        problem = f"must be at most {at_most}"
    else:
        return
    raise WrongOption(option, f"{problem} (found {value!r})")


class InvalidSettings(OperatorError):
    """`shardgen.toml` or an option holds a value that cannot be used."""

    exit_code = 12


class ManifestMismatch(OperatorError):
    """The manifest is of another version, of another program, on a wrong disk, or in a rebuild's way."""

    exit_code = 13


class RunIncomplete(OperatorError):
    """Samples are still pending, and no worker will make them without help."""

    exit_code = 14


class RunHasHoles(OperatorError):
    """Everything was tried, but there are dead letters and nobody allowed them."""

    exit_code = 15


class TooManyDead(RunHasHoles):
    """Too many finished samples are dead letters, so nothing more is leased."""


class SourcesRefused(OperatorError):
    """Photographs that cannot be used; `remarks` names them all at once."""

    exit_code = 16


class WeightsRefused(OperatorError):
    """A weights file that is not what it should be; `problems` lists everything wrong with it."""

    exit_code = 17


class MachineUnfit(OperatorError):
    """This machine lacks something: a GPU that was asked for, a CPU instruction set, memory, a library."""

    exit_code = 18


class ChecksFailed(OperatorError):
    """`doctor` found something that would stop work here."""

    exit_code = 19


IMAGE_LIBRARIES = {
    "cv2": "opencv-python",
    "imagecodecs": "imagecodecs",
    "PIL": "pillow",
    "simplejpeg": "simplejpeg",
    "tifffile": "tifffile",
}
"""What pictures are decoded with: the module, and the package that brings it."""


def missing_image_library(error: ImportError) -> MachineUnfit:
    """What the failed import of one of them means: it is not there, or a library of the system is not."""
    package = IMAGE_LIBRARIES.get((error.name or "").partition(".")[0], error.name)
    if isinstance(error, ModuleNotFoundError):
        return MachineUnfit(f"{package} is not installed", hint=f"python -m pip install {package}")
    return MachineUnfit(
        f"{package} cannot be loaded: {error}",
        hint="on Debian or Ubuntu, as root: apt-get install -y libgl1 libglib2.0-0",
    )


@contextmanager
def explained(run_dir: Path | str) -> Iterator[None]:
    """Let errors from inside say what to do about this run directory, or bucket.

    An image library that cannot be loaded, and memory that is not there, become MachineUnfit.
    """
    try:
        try:
            yield
        except ImportError as error:
            if (error.name or "").partition(".")[0] not in IMAGE_LIBRARIES:
                raise
            raise missing_image_library(error) from error
        except MemoryError as error:
            # numpy's own words say how much could not be had.
            words = " ".join(str(error).split()) or "there is none left"
            raise MachineUnfit(
                f"this machine has too little memory: {words}",
                hint="close other programs, or use smaller photographs; what is recorded is kept",
            ) from error
    except ShardgenError as error:
        error.name_run(run_dir)
        raise


class CorruptionError(ShardgenError):
    """Bytes disagree with the record; never retried, never repaired silently. Exit codes 20-29."""

    exit_code = 29


class ArtifactMissing(CorruptionError):
    """A receipt names an artifact that is not there."""

    exit_code = 20


class ArtifactCorrupt(CorruptionError):
    """An artifact's (or a finished zip's) bytes are not those of the record."""

    exit_code = 21


class ReceiptConflict(CorruptionError):
    """Two records of one batch disagree."""

    exit_code = 22


class ManifestCorrupt(CorruptionError):
    """The manifest cannot be read as a database, or its counters contradict its rows."""

    exit_code = 23


class TransientError(ShardgenError):
    """The same call may succeed later. Exit codes 30-39."""

    exit_code = 39


class ManifestBusy(TransientError):
    """The manifest stayed locked by other processes for longer than the timeout."""

    exit_code = 30


class StorageFailed(TransientError):
    """A disk is full, read-only or failing (ENOSPC, EROFS, EIO, ...)."""

    exit_code = 31


class ManifestGone(StorageFailed):
    """The manifest was deleted or moved away under the process that had it open."""


class StoreRefuses(StorageFailed):
    """A bucket's store refuses this machine: a person must renew its credentials, say.

    A worker in the middle waits for that; at the start of a command it is an operator's error.
    """


class DepthBackendUnavailable(TransientError):
    """The network cannot run now: out of memory at micro-batch 1, a lost device."""

    exit_code = 32


class DownloadFailed(TransientError):
    """A download did not finish; what arrived is kept and the next try resumes there."""

    exit_code = 33


class WorkersFailed(TransientError):
    """Worker processes kept ending for a reason that no slice explains."""

    exit_code = 34


class WorkerHung(TransientError):
    """A worker finished nothing for so long that it, or the `run` that started it, ended it."""

    exit_code = 35


class SliceFailed(TransientError):
    """A slice cannot be made for a reason that no sample explains; tried too often, it is blocked."""

    exit_code = 36


class DeviceBroken(TransientError):
    """Computing raises whatever it is given: no slice's fault, and a new process may help."""

    exit_code = 37


class LeaseLost(ShardgenError):
    """Not a failure: another worker owns the slice now. Drop the slice and lease another."""

    exit_code = 40


class SampleError(ShardgenError):
    """This one sample cannot be made; it becomes a dead letter with `reason`."""

    reason: ClassVar[DeadLetterReason]


class SourceUndecodable(SampleError):
    """A photograph's bytes do not decode."""

    reason = DeadLetterReason.UNREADABLE


class ComposeFailed(SampleError):
    """The composite of this sample could not be made."""

    reason = DeadLetterReason.COMPOSE


class NoMask(ComposeFailed):
    """Nothing says which part of a photograph is foreground."""


class ComputeFailed(SampleError):
    """What the device should compute of this sample raised an exception, or gave no numbers."""

    reason = DeadLetterReason.NON_FINITE


class DepthNotFinite(ComputeFailed):
    """The network's output for this sample holds NaN or infinity, in float32 too."""


class EncodeFailed(SampleError):
    """One of this sample's images could not be encoded."""

    reason = DeadLetterReason.ENCODE


class KilledProcess(SampleError):
    """Made alone, this sample killed its process time after time."""

    reason = DeadLetterReason.KILLED_PROCESS


class HungProcess(SampleError):
    """Made alone, this sample hung its process time after time."""

    reason = DeadLetterReason.HUNG


class Stopped(Exception):
    """The operator stopped the command by a signal; every worker that it started has ended."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number


_NOTE_CHARACTERS = 500


def note_of(error: BaseException | None) -> str:
    """What the error says, in a line; of one that nobody foresaw, its kind too."""
    if error is None:
        return ""
    kind = "" if isinstance(error, ShardgenError) else f"{type(error).__name__}: "
    return (kind + " ".join(str(error).split()))[:_NOTE_CHARACTERS]
