"""Which NVIDIA GPUs this machine shows, and which of them a run may take; needs no TensorFlow."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shardgen.errors import MachineUnfit, WrongOption

VARIABLE = "CUDA_VISIBLE_DEVICES"
NO_GPU = "-1"  # hides them all; an empty value is taken for an unset one here and there
GPU_NAME = re.compile(r"\d+|(?:GPU|MIG)-[0-9A-Za-z/-]+")
"""What CUDA_VISIBLE_DEVICES takes: a number, or a UUID, of which the first characters may do."""

_DEVICE_FILES = Path("/dev")
_ANSWER_SECONDS = 60.0  # a driver that is loaded for this question takes some
_WHOLE = re.compile(r"GPU (?P<index>\d+): (?P<model>.*?)(?: \(UUID: (?P<uuid>GPU-[^)]+)\))?\s*")
_PART = re.compile(r"\s+MIG (?P<model>.*?)\s+Device\s+\d+: \(UUID: (?P<uuid>MIG-[^)]+)\)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, or one part of a divided one.

    `name` is how CUDA_VISIBLE_DEVICES calls it, `index` its number in `nvidia-smi`; the unknown is empty.
    """

    name: str
    index: str = ""
    model: str = ""
    uuid: str = ""

    def __str__(self) -> str:
        shown = f"GPU {self.name}" if self.name.isdigit() else self.name
        return f"{shown} ({self.model})" if self.model else shown

    def is_called(self, name: str) -> bool:
        """Whether a number, or a UUID's first characters, mean this one."""
        return name in (self.name, self.index) if name.isdigit() else self.uuid.startswith(name)


def list_gpus(device_files: Path = _DEVICE_FILES) -> list[Gpu]:
    """Those that `nvidia-smi -L` lists, in its order; where there is no such program, by their device files.

    A GPU divided by MIG is given as its parts: a process can use but one of them.
    """
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"],  # noqa: S607 - where it lies differs, the PATH knows
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ANSWER_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        count = sum(1 for path in device_files.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
        return [Gpu(name=str(index), index=str(index)) for index in range(count)]
    return parse_listing(done.stdout)  # whatever it exits with: of several GPUs one may be broken


def parse_listing(text: str) -> list[Gpu]:
    """The GPUs in the output of `nvidia-smi -L`."""
    found: list[Gpu] = []
    whole: Gpu | None = None
    for line in text.splitlines():
        if match := _WHOLE.fullmatch(line):
            index = match["index"]
            whole = Gpu(name=index, index=index, model=match["model"], uuid=match["uuid"] or "")
            found.append(whole)
        elif (match := _PART.fullmatch(line)) and whole is not None:
            if found[-1] is whole:
                found.pop()
            model = f"{match['model']} of {whole.model}"
            found.append(Gpu(name=match["uuid"], model=model, uuid=match["uuid"]))
    return found


def visible_gpus(listed: Sequence[Gpu], environment: Mapping[str, str]) -> list[Gpu]:
    """Those that this process may use, in CUDA's order: all, or what CUDA_VISIBLE_DEVICES lists.

    As CUDA does, it ends at the first name that means no GPU.
    """
    named = environment.get(VARIABLE)
    if named is None:
        return list(listed)
    visible: list[Gpu] = []
    for name in (part.strip() for part in named.split(",")):
        found = _called(name, listed)
        if found is None:
            break
        visible.append(replace(found, name=name))
    return visible


def named_gpus(
    names: Sequence[str], listed: Sequence[Gpu], environment: Mapping[str, str]
) -> tuple[Gpu, ...]:
    """The GPUs of these names, in this order. Raises MachineUnfit for one that is not visible."""
    visible = visible_gpus(listed, environment)
    found = {name: _called(name, visible) for name in names}
    missing = [name for name, gpu in found.items() if gpu is None]
    if missing:
        limited = f" within {VARIABLE}={environment[VARIABLE]}" if VARIABLE in environment else ""
        raise MachineUnfit(
            f"--gpus: there is no GPU {', '.join(missing)}{limited} "
            f"(there: {', '.join(map(str, visible)) or 'none'})",
            hint=f"--gpus {','.join(gpu.name for gpu in visible)}"
            if visible
            else "nvidia-smi -L lists them; --device cpu needs none",
        )
    # A number may mean another GPU to CUDA than to nvidia-smi, a UUID never does.
    chosen = [(name, found[name]) for name in names]
    return tuple(gpu if name.isdigit() else replace(gpu, name=gpu.uuid) for name, gpu in chosen if gpu)


def refuse_no_names(names: Sequence[str]) -> None:
    """Raise WrongOption for what can name no GPU on any machine."""
    for name in names:
        if not GPU_NAME.fullmatch(name):
            raise WrongOption("gpus", f"{name!r} is not a GPU's number or UUID, such as 0 or GPU-5d5ba0d6")


def _called(name: str, gpus: Sequence[Gpu]) -> Gpu | None:
    """The one that a name means; None for none, and for the beginning of several UUIDs."""
    found = [gpu for gpu in gpus if gpu.is_called(name)] if GPU_NAME.fullmatch(name) else []
    if found:
        return found[0] if len({gpu.uuid or gpu.name for gpu in found}) == 1 else None
    # The older names of parts (MIG-GPU-.../1/0) and, without nvidia-smi, all UUIDs cannot be looked up.
    is_unknowable = name.startswith(("GPU-", "MIG-")) and ("/" in name or not any(gpu.uuid for gpu in gpus))
    return Gpu(name=name, uuid=name) if gpus and is_unknowable and GPU_NAME.fullmatch(name) else None
