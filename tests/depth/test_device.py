from __future__ import annotations

import os
import subprocess
import sys

import pytest
import tensorflow as tf

from shardgen.depth import device
from shardgen.depth.device import Device
from shardgen.errors import DepthBackendUnavailable, MachineUnfit
from shardgen.machine.cores import schedulable_cores


def test_the_cpu_is_named_with_its_widest_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset({"avx2", "avx512f", "avx512_bf16"}))
    assert device.describe_cpu(1).endswith("(avx512_bf16, 1 thread)")
    assert device.has_bfloat16()
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset({"avx2", "avx512f"}))
    assert device.describe_cpu(3).endswith("(avx512, 3 threads)")
    assert device.describe_cpu() == device.describe_cpu(schedulable_cores())
    assert not device.has_bfloat16()


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused_with_a_way_out() -> None:
    with pytest.raises(MachineUnfit, match="no GPU") as caught:
        device.prepare("gpu")
    assert "--device cpu" in caught.value.hint


def test_auto_without_a_gpu_is_the_cpu(cpu: Device) -> None:
    assert device.prepare("auto") == cpu
    assert cpu.kind == "cpu"
    assert (cpu.library, cpu.version) == ("tensorflow", tf.__version__)


def test_op_determinism_is_on(cpu: Device) -> None:
    with pytest.raises(RuntimeError, match="determinism"):
        tf.random.uniform([1])


def test_threads_set_after_tensorflow_started_are_refused(cpu: Device) -> None:
    tf.constant(1) + 1
    with pytest.raises(DepthBackendUnavailable, match="already running"):
        device.prepare("cpu", intra_op=3)


@pytest.mark.slow
def test_preparing_sets_the_threads_and_prints_nothing() -> None:
    program = (
        "from shardgen.depth import device; device.prepare('cpu', intra_op=1, inter_op=1)\n"
        "import tensorflow as tf; tf.constant(1) + 1\n"
        "print(tf.config.threading.get_intra_op_parallelism_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_importing_the_depth_package_does_not_import_tensorflow() -> None:
    program = (
        "import sys, shardgen.depth.densedepth.network, shardgen.storage.fetch, shardgen.depth.families\n"
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


class Recorder:
    """Stands in for TensorFlow, which has no GPU here: the calls on it, in order, as (name, arguments)."""

    def __init__(self, name: str = "", calls: list[tuple[str, tuple[object, ...]]] | None = None) -> None:
        self.name, self.calls = name, [] if calls is None else calls

    def __getattr__(self, name: str) -> Recorder:
        return Recorder(f"{self.name}.{name}".lstrip("."), self.calls)

    def __call__(self, *arguments: object) -> None:
        self.calls.append((self.name, arguments))


def test_memory_grows_on_every_gpu_and_only_the_first_is_used() -> None:
    tensorflow = Recorder()
    device._configure(tensorflow, ["first", "second"], intra_op=0, inter_op=0)
    growth = "config.experimental.set_memory_growth"
    assert tensorflow.calls == [
        (growth, ("first", True)),
        (growth, ("second", True)),
        ("config.set_visible_devices", (["first"], "GPU")),
        ("config.experimental.enable_op_determinism", ()),
    ]


def test_on_the_cpu_no_gpu_is_touched() -> None:
    tensorflow = Recorder()
    device._configure(tensorflow, [], intra_op=0, inter_op=0)
    assert tensorflow.calls[0] == ("config.set_visible_devices", ([], "GPU"))
    assert not any("memory" in name for name, _ in tensorflow.calls)
