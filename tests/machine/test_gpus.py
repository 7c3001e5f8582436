from __future__ import annotations

from pathlib import Path

import pytest

from shardgen.errors import MachineUnfit
from shardgen.machine.gpus import Gpu, list_gpus, named_gpus, parse_listing, visible_gpus
from tests.gpus import put_nvidia_smi

LISTING = """\
GPU 0: Tesla T4 (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-c6d4f1ef-42e4-7de3-91c7-45d71c87eb3f)
GPU 2: Tesla T4 (UUID: GPU-5d5a1111-d33d-2b2c-524d-9e3d8d2b8a78)
"""
DIVIDED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.20gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)
  MIG 1g.5gb      Device  1: (UUID: MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-c6d4f1ef-42e4-7de3-91c7-45d71c87eb3f)
"""
LISTED = parse_listing(LISTING)
UUID_1 = "GPU-c6d4f1ef-42e4-7de3-91c7-45d71c87eb3f"


def names(gpus: list[Gpu] | tuple[Gpu, ...]) -> list[str]:
    return [gpu.name for gpu in gpus]


def test_a_listing_is_read() -> None:
    assert [str(gpu) for gpu in LISTED] == [
        "GPU 0 (Tesla T4)",
        "GPU 1 (NVIDIA A100-SXM4-40GB)",
        "GPU 2 (Tesla T4)",
    ]
    assert LISTED[1].uuid == UUID_1
    assert parse_listing("No devices found.\n") == []


def test_a_divided_gpu_is_its_parts_by_uuid() -> None:
    found = parse_listing(DIVIDED)
    assert names(found) == [
        "MIG-c7384736-a75d-5afc-978f-d2f1294409fd",
        "MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d",
        "1",
    ]
    assert str(found[0]).endswith("(3g.20gb of NVIDIA A100-SXM4-40GB)")


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, ["0", "1", "2"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("2,0", ["2", "0"]),
        (" 2 , 0", ["2", "0"]),
        ("1,-1,0", ["1"]),
        ("1,7,0", ["1"]),
        ("GPU-c6d4,0", ["GPU-c6d4", "0"]),
        ("GPU-5d5,0", []),  # the beginning of two
        ("MIG-GPU-5d5ba0d6/1/0", ["MIG-GPU-5d5ba0d6/1/0"]),
    ],
)
def test_visible_is_what_cuda_would_see(variable: str | None, expected: list[str]) -> None:
    environment = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    assert names(visible_gpus(LISTED, environment)) == expected


def test_a_visible_uuid_is_known_by_its_number_too() -> None:
    environment = {"CUDA_VISIBLE_DEVICES": f"{UUID_1},2"}
    assert names(named_gpus(["1"], LISTED, environment)) == [UUID_1]
    assert names(named_gpus(["2", UUID_1[:8]], LISTED, environment)) == ["2", UUID_1]


def test_named_gpus_keep_their_order_and_may_repeat() -> None:
    assert names(named_gpus(["2", "0", "0"], LISTED, {})) == ["2", "0", "0"]
    assert names(named_gpus(["GPU-c6"], LISTED, {})) == [UUID_1]
    part = "MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d"
    assert names(named_gpus(["MIG-a28"], parse_listing(DIVIDED), {})) == [part]


@pytest.mark.parametrize("name", ["5", "GPU-ffff", "GPU-5d5", "MIG-1234"])
def test_a_gpu_that_is_not_there_is_refused_by_name(name: str) -> None:
    with pytest.raises(MachineUnfit, match=f"there is no GPU {name} ") as caught:
        named_gpus(["0", name], LISTED, {})
    assert "there: GPU 0 (Tesla T4), GPU 1" in str(caught.value)
    assert caught.value.hint == "--gpus 0,1,2"


def test_a_gpu_outside_of_the_visible_ones_is_refused() -> None:
    with pytest.raises(
        MachineUnfit, match=r"no GPU 0 within CUDA_VISIBLE_DEVICES=2,1 \(there: GPU 2"
    ) as caught:
        named_gpus(["0"], LISTED, {"CUDA_VISIBLE_DEVICES": "2,1"})
    assert caught.value.hint == "--gpus 2,1"
    with pytest.raises(MachineUnfit, match="there: none"):
        named_gpus(["0"], LISTED, {"CUDA_VISIBLE_DEVICES": ""})


def test_without_nvidia_smi_device_files_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    found = list_gpus(tmp_path)
    assert names(found) == ["0", "1"]
    assert names(named_gpus(["GPU-anything"], found, {})) == ["GPU-anything"]
    with pytest.raises(MachineUnfit):
        named_gpus(["2"], found, {})
    assert list_gpus(tmp_path / "empty") == []


def test_nvidia_smi_is_asked_and_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia0").touch()
    put_nvidia_smi(tmp_path, LISTING, monkeypatch)
    assert list_gpus(tmp_path) == LISTED
    put_nvidia_smi(tmp_path, "NVIDIA-SMI has failed", monkeypatch, exit_code=9)
    assert list_gpus(tmp_path) == []
    broken = "Unable to determine the device handle for GPU 3: Unknown Error\n"
    put_nvidia_smi(tmp_path, LISTING + broken, monkeypatch, exit_code=15)
    assert list_gpus(tmp_path) == LISTED
