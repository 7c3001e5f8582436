from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
        ("config.experimental.enable_tensor_float_32_execution", (False,)),
        (growth, ("first", True)),
        (growth, ("second", True)),
        ("config.set_visible_devices", (["first"], "GPU")),
        ("config.experimental.enable_op_determinism", ()),
    ]


def test_on_the_cpu_no_gpu_is_touched() -> None:
    tensorflow = Recorder()
    device._configure(tensorflow, [], intra_op=0, inter_op=0)
    assert tensorflow.calls[0] == ("config.set_visible_devices", ([], "GPU"))
    assert not any("memory" in name or "float_32" in name for name, _ in tensorflow.calls)


@pytest.mark.parametrize(
    ("flags", "few_channels", "given", "found"),
    [
        ({"avx2"}, True, None, "1"),
        ({"avx2"}, True, "0", "0"),
        ({"avx2"}, False, None, None),
        ({"avx2", "avx512_vnni"}, True, None, None),
        ({"asimd"}, True, None, None),
    ],
    ids=["few channels", "the user says no", "many channels", "on by default", "another kind of CPU"],
)
def test_onednn_is_switched_on_where_it_is_faster_and_no_default(
    monkeypatch: pytest.MonkeyPatch,
    flags: set[str],
    given: str | None,
    found: str | None,
    *,
    few_channels: bool,
) -> None:
    def unfit() -> None:
        raise MachineUnfit("seen enough", hint="")

    monkeypatch.setitem(os.environ, "TF_ENABLE_ONEDNN_OPTS", given or "")  # given back after the test
    if given is None:
        del os.environ["TF_ENABLE_ONEDNN_OPTS"]
    monkeypatch.delitem(sys.modules, "tensorflow")
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(device, "import_tensorflow", unfit)
    with pytest.raises(MachineUnfit):
        device.prepare("cpu", few_channels=few_channels)
    assert os.environ.get("TF_ENABLE_ONEDNN_OPTS") == found


PREPARED = (
    "import sys; from shardgen.depth import device; device.prepare('cpu')\n"
    "print(sorted({name.partition('.')[0] for name in sys.modules} & {'keras', 'tf_keras', 'jax'}))"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ('{"backend": "theano"}', {}),
        ('{"floatx": "float33"}', {}),
        ("[]", {}),
        (None, {"KERAS_BACKEND": "theano", "KERAS_MAX_EPOCHS": "many", "TF_USE_LEGACY_KERAS": "1"}),
    ],
    ids=["another backend", "an unknown value", "no object", "variables"],
)
def test_no_setting_of_keras_matters(tmp_path: Path, text: str | None, variables: dict[str, str]) -> None:
    path = tmp_path / "home" / ".keras" / "keras.json"
    if text is None:
        path.mkdir(parents=True)  # cannot be read, whoever asks
    else:
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    given = {"HOME": str(tmp_path / "home"), **variables}
    done = subprocess.run(
        [sys.executable, "-c", PREPARED], capture_output=True, text=True, check=False, env=os.environ | given
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    assert sorted(path.parent.iterdir()) == [path]


@pytest.mark.slow
def test_who_imports_keras_later_still_can_with_settings_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "keras.json").write_text('{"floatx": "float16"}', encoding="utf-8")
    program = (
        f"{PREPARED}\nfrom tensorflow.keras import layers\nimport keras\n"
        "print(layers.__name__.startswith('keras.'), keras.config.floatx())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"KERAS_HOME": str(tmp_path)},
    )
    assert done.stdout == "[]\nTrue float16\n"


def test_a_tensorflow_that_raises_anything_at_its_import_is_named(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise TypeError('Descriptors cannot be created')", "utf-8")
    program = (
        "from shardgen.depth import device; from shardgen.errors import MachineUnfit\n"
        "try:\n    device.prepare('cpu')\nexcept MachineUnfit as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout == "TensorFlow cannot be imported: TypeError: Descriptors cannot be created\n"


@pytest.mark.parametrize(
    ("kind", "flags", "given", "found"),
    [
        ("cpu", {"avx2"}, {}, ""),
        ("cpu", {"avx512_vnni"}, {"TF_ENABLE_ONEDNN_OPTS": "False"}, "TF_ENABLE_ONEDNN_OPTS=0"),
        ("cpu", {"avx512_vnni"}, {"TF_ENABLE_ONEDNN_OPTS": "1"}, ""),
        ("cpu", {"avx2"}, {"TF_ENABLE_ONEDNN_OPTS": "true"}, "TF_ENABLE_ONEDNN_OPTS=1"),
        ("cpu", {"avx2"}, {"TF_ENABLE_ONEDNN_OPTS": "maybe", "TF_USE_DEEP_CONV2D": "0"}, ""),
        ("cpu", {"avx2"}, {"DNNL_MAX_CPU_ISA": "avx", "TF_USE_DEEP_CONV2D": "1"},
         "ONEDNN_MAX_CPU_ISA=avx TF_USE_DEEP_CONV2D=1"),
        ("cpu", {"avx2"}, {"ONEDNN_MAX_CPU_ISA": "all", "ONEDNN_DEFAULT_FPMATH_MODE": "strict"}, ""),
        ("cpu", {"avx2"}, {"XLA_FLAGS": "--xla_dump_to=/d", "NVIDIA_TF32_OVERRIDE": "1"}, ""),
        ("cpu", {"avx2"}, {"TF_XLA_FLAGS": "--a", "XLA_FLAGS": "--b"}, "TF_XLA_FLAGS=--a XLA_FLAGS=--b"),
        ("gpu", {"avx2"}, {"NVIDIA_TF32_OVERRIDE": "1", "TF_USE_DEEP_CONV2D": "1"}, "NVIDIA_TF32_OVERRIDE=1"),
        ("gpu", {"avx2"}, {"NVIDIA_TF32_OVERRIDE": "0"}, ""),
        ("gpu", {"avx2"}, {"TF_CUDNN_USE_AUTOTUNE": "true", "TF_CUDNN_WORKSPACE_LIMIT_IN_MB": "4096"}, ""),
    ],
)  # fmt: skip
def test_only_switches_that_change_bytes_are_named(
    monkeypatch: pytest.MonkeyPatch, kind: str, flags: set[str], given: dict[str, str], found: str
) -> None:
    for name in list(os.environ):
        if name.startswith(("TF_", "ONEDNN_", "DNNL_", "XLA_", "NVIDIA_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset(flags))
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert device.switches(kind) == found


def test_switches_that_differ_far_from_their_beginning_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = set()
    for end in "ab":
        monkeypatch.setenv("TF_XLA_FLAGS", f"--{'x' * 5000}{end}")
        found.add(device.switches("gpu"))
    assert len(found) == 2
    assert max(map(len, found)) < 300


def test_tensorflows_own_number_of_threads_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "3")
    assert "3 threads)" in device.describe_cpu()
    assert "2 threads)" in device.describe_cpu(2)
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "many")
    assert device.describe_cpu() == device.describe_cpu(schedulable_cores())
