from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from shardgen.coordination.report import Report
from shardgen.errors import InvalidSettings, MachineUnfit
from shardgen.launch.allocation import Share, Wanted, choose_gpus, settle_workers
from shardgen.launch.local import LocalLauncher
from shardgen.launch.supervisor import RunOptions, run_workers
from shardgen.machine.gpus import Gpu
from shardgen.operations.status import report
from shardgen.recipes.composites.composer import CACHE_BYTES
from shardgen.recipes.composites.plan import CompositesPlan
from shardgen.recipes.registry import recipe_of
from shardgen.settings.run_directory import RunDirectory
from tests import environs
from tests.gpus import put_nvidia_smi
from tests.plans import make_plan
from tests.runs import make_run, plan_run, shardgen

TWO = "GPU 0: Tesla T4 (UUID: GPU-5d5ba0d6)\nGPU 1: Tesla V100 (UUID: GPU-c6d4f1ef)\n"
ONE = TWO.splitlines(keepends=True)[0]
OURS = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "SHARDGEN_THREADS", "OMP_NUM_THREADS")


def settled(run: RunDirectory, wanted: Wanted) -> tuple[tuple[Share, ...], str]:
    said: list[str] = []
    shares = settle_workers(run, run.plan(), wanted, choose_gpus(wanted), say=said.append)
    return shares, said[0]


def gpus_of(shares: tuple[Share, ...]) -> list[str]:
    return [share.gpu.name if share.gpu else "" for share in shares]


def ours(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name in OURS}


def test_without_a_number_there_is_a_worker_for_each_gpu(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nvidia_smi(tmp_path, TWO, monkeypatch)
    shares, said = settled(run, Wanted())
    assert gpus_of(shares) == ["0", "1"]
    assert [share.device for share in shares] == ["gpu", "gpu"]
    assert said.startswith("2 workers: worker-0 on GPU 0 (Tesla T4), worker-1 on GPU 1 (Tesla V100)")
    put_nvidia_smi(tmp_path, "", monkeypatch)
    shares, _ = settled(run, Wanted())
    assert gpus_of(shares) == [""]


def test_one_gpu_needs_nothing_typed_and_its_worker_may_fall_back(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nvidia_smi(tmp_path, ONE, monkeypatch)
    shares, said = settled(run, Wanted())
    assert (gpus_of(shares), shares[0].device) == (["0"], "auto")
    assert said.startswith("1 worker: worker-0 on GPU 0 (Tesla T4)")
    assert settled(run, Wanted(gpus=("0",)))[0][0].device == "gpu"


def test_more_workers_than_gpus_are_fewer_and_it_says_so(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nvidia_smi(tmp_path, TWO, monkeypatch)
    shares, said = settled(run, Wanted(workers=3))
    assert gpus_of(shares) == ["0", "1"]
    assert said.startswith("2 workers (not 3: one a GPU; to share: --gpus 0,1,0): ")
    assert gpus_of(settled(run, Wanted(workers=1))[0]) == ["0"]


def test_named_gpus_decide_the_number_of_workers_and_may_be_shared(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nvidia_smi(tmp_path, TWO, monkeypatch)
    assert gpus_of(settled(run, Wanted(gpus=("1",)))[0]) == ["1"]
    assert gpus_of(settled(run, Wanted(gpus=("1", "0", "1")))[0]) == ["1", "0", "1"]
    assert gpus_of(settled(run, Wanted(gpus=("1", "0"), workers=1))[0]) == ["1"]


def test_contradictions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_nvidia_smi(tmp_path, TWO, monkeypatch)
    with pytest.raises(InvalidSettings, match="--workers 3 with 2 GPUs in --gpus") as caught:
        choose_gpus(Wanted(workers=3, gpus=("0", "1")))
    assert "--gpus 0,1,0" in caught.value.hint
    with pytest.raises(InvalidSettings, match="--device cpu"):
        choose_gpus(Wanted(device="cpu", gpus=("0",)))
    with pytest.raises(MachineUnfit, match="no GPU 5"):
        choose_gpus(Wanted(gpus=("0", "5")))


def test_workers_take_the_gpus_that_a_scheduler_has_chosen_in_its_order(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nvidia_smi(tmp_path, TWO, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-c6d4f1ef,0")
    shares, _ = settled(run, Wanted(workers=2))
    assert [ours(share.environment(os.environ))["CUDA_VISIBLE_DEVICES"] for share in shares] == [
        "GPU-c6d4f1ef",
        "0",
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus_of(settled(run, Wanted(workers=1))[0]) == [""]


def test_a_share_is_handed_over_in_the_environment() -> None:
    before = {"PATH": "/bin"}
    share = Share(threads=3, gpu=Gpu(name="2"))
    assert share.environment(before) == {
        "PATH": "/bin",
        "SHARDGEN_THREADS": "3",
        "OMP_NUM_THREADS": "3",
        "CUDA_VISIBLE_DEVICES": "2",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    assert Share(device="cpu").environment(before) == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "-1"}
    assert Share().environment(before) == before


def test_what_was_set_before_keeps_its_meaning() -> None:
    before = {"CUDA_VISIBLE_DEVICES": "2,3", "OMP_NUM_THREADS": "7"}
    after = Share(threads=1, gpu=Gpu(name="3")).environment(before)
    # Under another order of counting, 3 would be another GPU.
    assert after == {"CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "7", "SHARDGEN_THREADS": "1"}
    ordered = Share(gpu=Gpu(name="1")).environment({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"})
    assert ordered == {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}


class Seen(Exception):
    """Everything that a test wanted to see of a run was seen."""


@pytest.mark.slow
def test_a_worker_that_is_started_again_gets_the_gpu_of_its_predecessor(tmp_path: Path) -> None:
    run = make_run(tmp_path, changes={"compose.grid": "[20, 20]", "shards.size": "1000"})
    run = plan_run(run)
    # On auto, as there are no such GPUs: the workers fall back to the CPU and live.
    shares = tuple(Share(threads=1, gpu=Gpu(name=name)) for name in ("7", "5"))
    first: dict[int, int] = {}

    def look(_found: Report, pids: Mapping[int, int]) -> None:
        if len(pids) < 2:
            return
        for number, share in enumerate(shares):
            assert ours(psutil.Process(pids[number]).environ()) == ours(share.environment(os.environ))
        if not first:
            first.update(pids)
            for pid in pids.values():
                os.kill(pid, signal.SIGKILL)
        elif not set(first.values()) & set(pids.values()):
            raise Seen

    launcher = LocalLauncher(run, shares, say=print)
    with pytest.raises(Seen):
        run_workers(run, run.plan(), launcher, RunOptions(), say=print, on_look=look)


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where every Python process of this test leaves its environment."""
    folder = tmp_path / "environments"
    folder.mkdir()
    paths = [str(Path(environs.__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    monkeypatch.setenv("SHARDGEN_TEST_ENVIRONS", str(folder))
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    return folder


def workers_seen(folder: Path) -> dict[str, tuple[str, str]]:
    """By name: CUDA_VISIBLE_DEVICES and --device of the workers that were started."""
    seen = {}
    for path in folder.iterdir():
        found = json.loads(path.read_text(encoding="utf-8"))
        arguments = found["arguments"]
        if "worker" in arguments:
            name, device = (arguments[arguments.index(flag) + 1] for flag in ("--id", "--device"))
            seen[name] = (found["environment"].get("CUDA_VISIBLE_DEVICES", "unset"), device)
    return seen


@pytest.mark.slow
def test_a_real_run_gives_worker_k_the_kth_gpu_and_says_once_that_they_cannot_use_them(
    run: RunDirectory, environments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nvidia_smi(tmp_path, TWO.replace("GPU 0", "GPU 70").replace("GPU 1", "GPU 71"), monkeypatch)
    done = shardgen("run", run.path)
    assert workers_seen(environments) == {"worker-0": ("70", "gpu"), "worker-1": ("71", "gpu")}
    assert "2 workers: worker-0 on GPU 70 (Tesla T4), worker-1 on GPU 71 (Tesla V100)" in done.stderr
    assert done.stderr.count("no GPU that TensorFlow can use") == 1
    assert "; 2 of 2 workers ended with exit code 18" in done.stderr
    assert done.returncode == 14, done.stderr


@pytest.mark.slow
def test_a_real_run_with_one_gpu_that_cannot_be_used_goes_on_without_it(
    run: RunDirectory, environments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nvidia_smi(tmp_path, ONE.replace("GPU 0", "GPU 70"), monkeypatch)
    done = shardgen("run", run.path)
    assert done.returncode == 0, done.stderr
    assert workers_seen(environments) == {"worker-0": ("70", "auto")}
    assert report(run).stored == 48


@pytest.mark.slow
def test_a_real_run_on_the_cpu_hides_the_gpus(
    run: RunDirectory, environments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nvidia_smi(tmp_path, TWO, monkeypatch)
    done = shardgen("run", run.path, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert workers_seen(environments) == {"worker-0": ("-1", "cpu")}


@pytest.mark.slow
def test_a_gpu_that_is_not_there_stops_a_run_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    put_nvidia_smi(tmp_path, TWO, monkeypatch)
    done = shardgen("run", run.path, "--gpus", "0,5")
    assert done.returncode == 18
    assert done.stderr.splitlines() == [
        "error: --gpus: there is no GPU 5 (there: GPU 0 (Tesla T4), GPU 1 (Tesla V100))",
        "hint: --gpus 0,1",
    ]
    assert [path.name for path in run.path.iterdir()] == ["shardgen.toml"]
    assert shardgen("run", run.path, "--gpus", "0,first").returncode == 2


@pytest.mark.slow
def test_all_of_a_workers_pools_keep_to_its_threads(run: RunDirectory) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COUNT_THREADS, run.path],
        env={**os.environ, **Share(device="cpu", threads=1).environment(os.environ)},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert json.loads(done.stdout) == {"prepare-sample": 1, "encode": 1, "intra_op": 1, "opencv": 1}


COUNT_THREADS = """
import json, sys, threading
from pathlib import Path
from shardgen.domain.steps import BatchStep
from shardgen.recipes.base import DeviceChoice
from shardgen.settings.run_directory import RunDirectory
from shardgen.worker.worker import Worker, WorkerOptions

pools = ("prepare-sample", "encode")
seen = dict.fromkeys(pools, 0)

def count(step):
    if step is BatchStep.ENCODED:
        names = [thread.name for thread in threading.enumerate()]
        for pool in pools:
            seen[pool] = max(seen[pool], sum(name.startswith(pool) for name in names))

options = WorkerOptions(device=DeviceChoice.from_environment("cpu"))
Worker(RunDirectory.open(Path(sys.argv[1])), options, on_step=count).work()
import cv2, tensorflow as tf
seen["intra_op"] = tf.config.threading.get_intra_op_parallelism_threads()
seen["opencv"] = cv2.getNumThreads()
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_doctor_names_the_gpu_that_tensorflow_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_nvidia_smi(tmp_path, TWO.replace("GPU 1", "GPU 71"), monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "71")  # nor can one that is really there
    done = shardgen("doctor")
    words = " ".join(done.stdout.replace("│", " ").split())
    assert "it cannot use GPU 71 (Tesla V100)" in words


def test_a_recipe_without_depth_leaves_gpus_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = plan_run(make_run(tmp_path, changes={"depth.model": '"none"'}))
    put_nvidia_smi(tmp_path, ONE, monkeypatch)
    shares, said = settled(run, Wanted(workers=2))
    assert gpus_of(shares) == ["", ""]
    assert re.match(r"2 workers, about 0\.\d GiB each", said)


def test_prepared_photographs_count_up_to_what_is_kept_of_them(tmp_path: Path) -> None:
    run = make_run(tmp_path)

    def needed(backgrounds: int) -> int:
        return recipe_of(make_plan(backgrounds=backgrounds, foregrounds=1)).demand(run.local).bytes_for(1)

    width, height = CompositesPlan(make_plan()).compose.canvas
    a_photograph = width * height * 6
    assert needed(21) - needed(1) == 20 * a_photograph
    assert needed(1000) - needed(1) == CACHE_BYTES - 2 * a_photograph
