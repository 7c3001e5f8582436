"""The only reader of weights files: the legacy Keras layout in HDF5, by name, executing nothing."""

from __future__ import annotations

import hashlib
import math
import shlex
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from shardgen.depth.densedepth.model_config import MAX_LAYERS, ConfigRefused, ModelConfig, read_model_config
from shardgen.depth.densedepth.topology import TensorKey, Topology, tensor_shapes
from shardgen.errors import InputMissing, MachineUnfit, WeightsRefused
from shardgen.storage.cache import cache_folder

PROBLEMS_IN_MESSAGE = 8  # the rest is counted; `problems` of the error has them all
MAX_PARAMETERS = 250_000_000  # 1 GB in float32; the released network has 42,816,089
MAX_FILE_BYTES = 4 << 30
MAX_CONFIG_CHARACTERS = 32 << 20  # the released network's has 300,000
MAX_ATTRIBUTE_BYTES = 64 << 20
MAX_CHUNK_BYTES = 64 << 20
MAX_EXPANSION = 100  # bytes of tensors for each byte of the file; trained weights hardly compress
SMALL_BYTES = 64 << 20
# Those inside the HDF5 library: for any other it would look for a plug-in, which is code.
FILTERS = frozenset(
    (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF)
)
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# What h5py raises on damaged files, besides OSError.
HDF5_ERRORS = (
    OSError,
    LookupError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
)
Tensors = Mapping[TensorKey, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFile:
    """A checked network. `bytes` and `sha256` are the file's; of random weights, the drawn tensors'."""

    topology: Topology
    tensors: Tensors
    bytes: int
    sha256: str
    keras_version: str

    @property
    def parameters(self) -> int:
        """How many numbers the tensors hold."""
        return sum(tensor.size for tensor in self.tensors.values())


def read_weights(path: Path) -> WeightsFile:
    """Read and check a weights file.

    Raises InputMissing if there is no such file and WeightsRefused, with every problem in `problems`, if it
    is not a whole DenseDepth network. Memory stays near the size of the tensors that the file's own topology
    needs: shapes, dtypes and storage are compared before any tensor is read. Nothing that the file names is
    opened: neither another file nor a filter's plug-in.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise InputMissing(
            f"{path}: no such weights file ({getattr(error, 'strerror', error)})",
            hint="shardgen weights fetch nyu",
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputMissing(f"{path}: not a file, so not a weights file", hint="shardgen weights fetch nyu")
    if status.st_size > MAX_FILE_BYTES:
        raise refused(path, [f"{status.st_size:,} bytes (at most {MAX_FILE_BYTES:,})"])
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
            stream.seek(0)
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        size_bytes = path.stat().st_size
    except OSError as error:
        raise InputMissing(
            f"{path}: cannot be read ({error.strerror})", hint="check its permissions"
        ) from error
    _refuse_foreign_content(path, head)
    try:
        with h5py.File(path, "r") as file:
            config = _config_of(path, file)
            keras_version = _attribute_text(file, "keras_version")[:100]
            tensors = _read_tensors(path, file, config, size_bytes)
    except HDF5_ERRORS as error:
        raise refused(path, [f"damaged or truncated HDF5 ({error})"]) from error
    return WeightsFile(
        topology=config.topology,
        tensors=tensors,
        bytes=size_bytes,
        sha256=sha256,
        keras_version=keras_version,
    )


def refused(path: Path, problems: list[str], *, hint: str = "") -> WeightsRefused:
    """Make the error that names a file's problems: a few in its message, all in `problems`."""
    shown = "; ".join(problem[:300] for problem in problems[:PROBLEMS_IN_MESSAGE])
    if len(problems) > PROBLEMS_IN_MESSAGE:
        shown += f"; and {len(problems) - PROBLEMS_IN_MESSAGE:,} more"
    return WeightsRefused(
        f"{path}: {shown}",
        hint=hint or _fetch_instead(path),
        problems=tuple(problem[:300] for problem in problems),
    )


def _fetch_instead(path: Path) -> str:
    fetched = None
    with suppress(MachineUnfit):  # without a cache nothing was fetched into it
        fetched = cache_folder()
    if path.parent == fetched:
        return f"rm -f {shlex.quote(str(path))}; shardgen weights fetch {path.name.partition('.')[0]}"
    return "a DenseDepth weights file is needed; shardgen weights fetch nyu fetches the released one"


def _refuse_foreign_content(path: Path, head: bytes) -> None:
    if not head:
        raise refused(path, ["the file is empty"])
    if head.startswith(HDF5_SIGNATURE):
        return
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise refused(path, ["a web page, not a weights file: the server or a proxy sent an error page"])
    if start.startswith(b"version https://git-lfs"):
        raise refused(path, ["a Git LFS pointer, not the file itself"], hint="git lfs pull")
    raise refused(path, [f"not HDF5 (it starts with {head[:8]!r})"])


def _text(value: object) -> str:
    if isinstance(value, (bytes, np.bytes_)):
        return value.decode("utf-8", errors="replace")
    return str(value)


def _attribute_text(holder: h5py.Group, name: str) -> str:
    """One text attribute, whose length is looked at first; empty if there is none."""
    if name not in holder.attrs:
        return ""
    attribute = holder.attrs.get_id(name)
    if attribute.shape != () or attribute.dtype.itemsize > MAX_ATTRIBUTE_BYTES:
        raise ValueError(f"{name} is not one text")
    return _text(holder.attrs[name])


def _attribute_names(holder: h5py.Group, name: str) -> list[str]:
    """A list of names, as Keras writes it: of bytes, all of one length (no numbers, where it is empty).

    Of strings that each have their own length, all could be one and the same large one.
    """
    attribute = holder.attrs.get_id(name)
    if len(attribute.shape) != 1:
        raise ValueError(f"{name} is not a list")
    if attribute.shape == (0,):
        return []
    count = attribute.shape[0]
    if attribute.dtype.kind != "S" or count > MAX_LAYERS:
        raise ValueError(f"{name} is not a list of at most {MAX_LAYERS:,} names of bytes")
    if count * attribute.dtype.itemsize > MAX_ATTRIBUTE_BYTES:
        raise ValueError(f"{name} is larger than {MAX_ATTRIBUTE_BYTES:,} bytes")
    return [_text(value) for value in holder.attrs[name]]


def _config_of(path: Path, file: h5py.File) -> ModelConfig:
    if "model_config" not in file.attrs:
        raise refused(
            path,
            ["no model_config: the topology (activations, skip layers) cannot be known, and is not guessed"],
            hint="use a file saved with model.save, not save_weights: shardgen weights fetch nyu",
        )
    text = _attribute_text(file, "model_config")
    if len(text) > MAX_CONFIG_CHARACTERS:
        raise refused(path, [f"model_config: more than {MAX_CONFIG_CHARACTERS:,} characters"])
    try:
        return read_model_config(text)
    except ConfigRefused as error:
        raise refused(
            path, error.problems, hint="only DenseDepth networks as released can be used"
        ) from error


def _read_tensors(
    path: Path, file: h5py.File, config: ModelConfig, size_bytes: int
) -> dict[TensorKey, NDArray[np.float32]]:
    expected = tensor_shapes(config.topology)
    parameter_count = sum(int(np.prod(shape, dtype=object)) for shape in expected.values())
    if parameter_count > MAX_PARAMETERS:
        raise refused(path, [f"{parameter_count:,} parameters (at most {MAX_PARAMETERS:,})"])
    if 4 * parameter_count > SMALL_BYTES + MAX_EXPANSION * size_bytes:
        raise refused(path, [f"{parameter_count:,} parameters in a file of {size_bytes:,} bytes"])
    datasets: dict[TensorKey, h5py.Dataset] = {}
    problems: list[str] = []
    for key, dataset, problem in _datasets(file, config):
        problem = problem or _dataset_problem(key, dataset, expected)  # noqa: PLW2901
        if not problem and key in datasets:
            problem = f"{_label(key)}: stored twice"  # noqa: PLW2901
        if problem:
            problems.append(problem)
        datasets[key] = dataset
    problems += [f"{_label(key)}: missing" for key in expected if key not in datasets]
    if problems:
        raise refused(path, problems)
    tensors = {}
    for key in expected:
        tensor = np.ascontiguousarray(datasets[key][()], dtype=np.float32)
        problems += _value_problems(key, tensor)
        tensor.setflags(write=False)
        tensors[key] = tensor
    if problems:
        raise refused(path, problems)
    return tensors


def _value_problems(key: TensorKey, tensor: NDArray[np.float32]) -> list[str]:
    bad_count = tensor.size - int(np.count_nonzero(np.isfinite(tensor)))
    if bad_count:
        return [f"{_label(key)}: {bad_count:,} of {tensor.size:,} values are not finite"]
    if key[1] == "moving_variance" and tensor.min() < 0:
        return [f"{_label(key)}: a variance below 0"]
    return []


def _label(key: TensorKey) -> str:
    return f"{key[0]} {key[1]}"


def _datasets(file: h5py.File, config: ModelConfig) -> Iterator[tuple[TensorKey, Any, str]]:
    """Every tensor that the file names, as (key, data set, problem).

    Iterates `layer_names`, never the groups' keys: groups nest at the slash of a layer's name. Only the last
    part of a weight's name counts, since TensorFlow may have made its scope unique.
    """
    root = _member(file, "model_weights")
    root = root if isinstance(root, h5py.Group) else file
    for layer in _attribute_names(root, "layer_names"):
        if layer not in config.layer_names:
            yield (layer, ""), None, f"{layer}: stored weights of a layer that model_config lacks"
            continue
        group = _member(root, layer)
        if not isinstance(group, h5py.Group):
            yield (layer, ""), None, f"{layer}: its group is missing"
            continue
        for weight in _attribute_names(group, "weight_names"):
            key = (layer, weight.rpartition("/")[2].partition(":")[0])
            dataset = _member(group, weight)
            if isinstance(dataset, h5py.Dataset) and not (dataset.external or dataset.is_virtual):
                yield key, dataset, ""
            else:
                yield key, None, f"{_label(key)}: missing"


def _member(group: h5py.Group, name: str) -> Any:
    """What lies under a name, found by hard links alone: any other may lead out of the file. Or None."""
    here = group
    for part in name.encode().split(b"/"):
        if part in {b"", b"."} or not isinstance(here, h5py.Group) or not here.id.links.exists(part):
            return None
        if here.id.links.get_info(part).type != h5py.h5l.TYPE_HARD:
            return None
        here = here[part]
    return here


def _dataset_problem(
    key: TensorKey, dataset: h5py.Dataset, expected: Mapping[TensorKey, tuple[int, ...]]
) -> str:
    if key not in expected:
        return f"{_label(key)}: unexpected tensor"
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize > 8:
        return f"{_label(key)}: dtype {dataset.dtype} (expected float32)"
    if dataset.shape != expected[key]:
        return f"{_label(key)}: shape {dataset.shape} (expected {expected[key]})"
    return _storage_problem(key, dataset)


def _storage_problem(key: TensorKey, dataset: h5py.Dataset) -> str:
    """Why reading it could take code, or memory, that the file does not have."""
    creation = dataset.id.get_create_plist()
    filters = {creation.get_filter(index)[0] for index in range(creation.get_nfilters())}
    if not filters <= FILTERS:
        return f"{_label(key)}: compressed by filter {min(filters - FILTERS)}, which is not known here"
    if dataset.chunks is not None and math.prod(dataset.chunks) * dataset.dtype.itemsize > MAX_CHUNK_BYTES:
        return f"{_label(key)}: stored in chunks of more than {MAX_CHUNK_BYTES:,} bytes"
    if dataset.size and not dataset.id.get_storage_size():
        return f"{_label(key)}: was never written"
    return ""


def facts_of(weights: WeightsFile) -> dict[str, object]:
    """What `shardgen weights check FILE` shows of a weights file, by name."""
    topology = weights.topology
    return {
        "bytes": weights.bytes,
        "sha256": weights.sha256,
        "keras version": weights.keras_version,
        "blocks": topology.blocks,
        "growth": topology.growth,
        "activations": topology.activations,
        "decoder width": topology.decoder_width,
        "skips": tuple(up.skip for up in topology.ups),
        "parameters": weights.parameters,
    }
