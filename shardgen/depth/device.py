"""The only place that chooses a device, configures TensorFlow and translates its errors."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from shardgen.depth.importing import import_tensorflow
from shardgen.domain.wording import counted
from shardgen.errors import DepthBackendUnavailable, MachineUnfit
from shardgen.machine.cores import schedulable_cores

DEVICES = ("auto", "cpu", "gpu")
# Lines of absl's logger, as in "I0000 00:00:1700000000.000000    1 port.cc:153] oneDNN custom ...".
START_UP_NOISE = re.compile(rb"[IWE]\d{4} |WARNING: All log messages before absl::InitializeLog")
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
# Variables that change the bits of what the network computes, each with the value that changes nothing; 0 and
# 1 are read as TensorFlow reads them. What was measured: docs/decisions.md, "The same bytes".
_SWITCHES_OF_CPU = {
    "ONEDNN_CPU_ISA_HINTS": "NO_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT",
    "ONEDNN_MAX_CPU_ISA": "ALL",
    "TF_SET_ONEDNN_FPMATH_MODE": "",
    "TF_USE_DEEP_CONV2D": "0",
}
_ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
_SWITCHES_OF_GPU = {
    "NVIDIA_TF32_OVERRIDE": "0",
    "TF_CONV2D_USE_FP16_ACCUMULATE": "0",
    "TF_CUDNN_DISABLE_CONV_1X1_OPTIMIZATION": "0",
    "TF_CUDNN_USE_AUTOTUNE": "1",
    "TF_CUDNN_USE_RUNTIME_FUSION": "0",
    "TF_CUDNN_WORKSPACE_LIMIT_IN_MB": "4096",
    "TF_ENABLE_WINOGRAD_NONFUSED": "1",
    "TF_FP16_CONV_USE_FP32_COMPUTE": "1",
    "TF_FP16_MATMUL_USE_FP32_COMPUTE": "1",
    "TF_MATMUL_AUTOTUNE_ENABLE": "1",
    "TF_USE_CUBLASLT": "0",
}
_SHOWN_CHARACTERS = 200
# Of malloc.h: give memory back only above a limit, take it in large pieces, never by mmap, from one arena.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_KEPT_MEMORY = ((_M_TRIM_THRESHOLD, 1 << 30), (_M_TOP_PAD, 64 << 20), (_M_MMAP_MAX, 0), (_M_ARENA_MAX, 1))
_READ_AS = {"0": "0", "false": "0", "1": "1", "true": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What the network runs on: `kind` is cpu or gpu, `model` a GPU, or a CPU with its threads.

    The model, the library that computes, as in `tensorflow` `2.21.0`, and its `switches` decide the bytes.
    """

    kind: str
    model: str
    library: str
    version: str
    switches: str = ""


def prepare(choice: str, *, intra_op: int = 0, inter_op: int = 0, few_channels: bool = False) -> Device:
    """Import and configure TensorFlow once per process, before anything else of it is used.

    `choice` is auto, cpu or gpu; `intra_op` and `inter_op` are threads, 0 for TensorFlow's own choice. Op
    determinism is switched on, logs below errors and TensorFloat-32 are switched off; of several GPUs the
    first is used, and its memory grows as needed. `few_channels` switches oneDNN on where it convolves few
    channels faster and is not the default; `switches` says so. Keras is not imported, so no setting of it
    matters. Raises MachineUnfit if a GPU was asked for and there is none, or if TensorFlow cannot be
    imported.
    """
    if choice not in DEVICES:
        raise ValueError(f"device {choice!r} (expected one of {', '.join(DEVICES)})")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if few_channels and "tensorflow" not in sys.modules:
        switch_on_onednn()
    _keep_memory()
    with _without_start_up_noise():
        tf = import_tensorflow()
        try:
            gpus = [] if choice == "cpu" else tf.config.list_physical_devices("GPU")
            _configure(tf, gpus, intra_op=intra_op, inter_op=inter_op)
        except (RuntimeError, ValueError) as error:
            raise DepthBackendUnavailable(
                f"TensorFlow was already running with other settings: {error}", hint="start a new process"
            ) from error
    if choice == "gpu" and not gpus:
        raise MachineUnfit(
            "no GPU that TensorFlow can use",
            hint='--device cpu, or install the GPU extra: pip install "shardgen[gpu]"',
        )
    version = str(tf.__version__)
    kind, model = "cpu", describe_cpu(intra_op)
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        kind, model = "gpu", str(details.get("device_name", "GPU"))
    return Device(kind=kind, model=model, library="tensorflow", version=version, switches=switches(kind))


def switch_on_onednn() -> None:
    """Where it convolves few channels faster and is not the default; TensorFlow heeds it when it is imported.

    What the user has said stays.
    """
    if "avx2" in cpu_flags() and not _is_onednn_default():
        os.environ.setdefault(_ONEDNN, "1")


def switches(kind: str) -> str:
    """Environment variables that change the bits that are computed, as in `TF_USE_DEEP_CONV2D=1`.

    Only those that matter to a device of this `kind` (cpu or gpu) and differ from their default.
    """
    usual = dict(_SWITCHES_OF_GPU)
    if kind == "cpu":
        usual = _SWITCHES_OF_CPU | {_ONEDNN: "1" if _is_onednn_default() else ""}
    if _variable("TF_XLA_FLAGS"):  # nothing else brings XLA in
        usual |= {"TF_XLA_FLAGS": "", "XLA_FLAGS": ""}
    found = []
    for name, default in sorted(usual.items()):
        value = _variable(name)
        if default in ("0", "1") or name == _ONEDNN:
            value = _READ_AS.get(value.lower(), "")
        if value and value.upper() != default:
            found.append(f"{name}={value}")
    return " ".join(found)


def _is_onednn_default() -> bool:
    """Whether it is surely on: with this instruction; elsewhere the default depends on the build."""
    return "avx512_vnni" in cpu_flags()


def _keep_memory() -> None:
    """Let glibc keep what is freed: a tensor's memory would go back to the kernel and come again as zeros.

    That is a fifth of the network's CPU time. The peak does not grow.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    for setting, value in _KEPT_MEMORY:
        mallopt(setting, value)


def _variable(name: str) -> str:
    """The variable's value; of oneDNN's also by the older name, which libraries still read."""
    value = os.environ.get(name) or os.environ.get(name.replace("ONEDNN_", "DNNL_", 1), "")
    value = value.strip()
    if len(value) > _SHOWN_CHARACTERS:
        digest = hashlib.sha256(os.fsencode(value)).hexdigest()
        return f"{value[:_SHOWN_CHARACTERS]}… (sha256 {digest[:8]})"
    return value


@contextmanager
def translated_errors() -> Iterator[None]:
    """No TensorFlow error crosses this border, but those that speak of the input.

    MemoryError says that the device, or the host's allocator, has no memory left.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise MemoryError(str(error)[:300]) from error
    except (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError):
        raise  # the caller finds out which image it is
    except tf.errors.OpError as error:
        raise DepthBackendUnavailable(
            f"TensorFlow failed: {type(error).__name__}: {str(error).splitlines()[0][:300]}",
            hint="shardgen doctor; if that does not help, restart the worker or run with --device cpu",
        ) from error


@contextmanager
def _without_start_up_noise() -> Iterator[None]:
    """Drop what TensorFlow's libraries log before they read TF_CPP_MIN_LOG_LEVEL; pass on everything else."""
    sys.stderr.flush()
    with os.fdopen(os.memfd_create("stderr"), "w+b") as caught:  # needs no writable folder
        stderr = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            for line in caught:
                if not START_UP_NOISE.match(line):
                    sys.stderr.write(line.decode("utf-8", errors="replace"))


def _configure(tf: Any, gpus: list[Any], *, intra_op: int, inter_op: int) -> None:
    if gpus:
        tf.config.experimental.enable_tensor_float_32_execution(False)  # noqa: FBT003
    for gpu in gpus:  # of all, or TensorFlow refuses the mixture
        tf.config.experimental.set_memory_growth(gpu, True)  # noqa: FBT003
    tf.config.set_visible_devices(gpus[:1], "GPU")  # the network runs on one; no memory is taken on others
    for setting, threads in (("intra_op", intra_op), ("inter_op", inter_op)):
        threading = tf.config.threading
        if threads and threads != getattr(threading, f"get_{setting}_parallelism_threads")():
            getattr(threading, f"set_{setting}_parallelism_threads")(threads)
    tf.config.experimental.enable_op_determinism()


@cache
def cpu_flags() -> frozenset[str]:
    """The CPU's flags as Linux lists them; empty where there is no /proc/cpuinfo."""
    return frozenset(_cpu_field("flags").split())


def _cpu_field(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself; without that it is slower than float32."""
    return not cpu_flags().isdisjoint(BFLOAT16_FLAGS)


def describe_cpu(threads: int = 0) -> str:
    """The CPU's name, widest instruction set and threads, as in `AMD EPYC (avx512_bf16, 2 threads)`.

    All decide the bytes: by the number of threads inside an operation libraries cut long sums. 0: as
    TensorFlow chooses, by $TF_NUM_INTRAOP_THREADS, else one for each core.
    """
    flags = cpu_flags()
    instructions = (
        ("amx_bf16", "amx"),
        ("avx512_bf16", "avx512_bf16"),
        ("avx512f", "avx512"),
        ("avx2", "avx2"),
    )
    best = next((name for flag, name in instructions if flag in flags), "baseline")
    wanted = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    by_variable = int(wanted) if re.fullmatch(r"[0-9]{1,4}", wanted) else 0
    count = counted(threads or by_variable or schedulable_cores(), "thread")
    return f"{_cpu_field('model name') or 'CPU'} ({best}, {count})"
