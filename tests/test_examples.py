from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from shardgen.cli.app import app
from shardgen.cli.options import parse_duration
from shardgen.settings.settings import parse_settings
from tests.plain_yaml import documents

ROOT = Path(__file__).parent.parent
SLURM = ROOT / "examples" / "slurm.sh"
KUBERNETES = ROOT / "examples" / "kubernetes.yaml"
RAY_CLUSTER = ROOT / "examples" / "ray_cluster.yaml"
DOCKERFILE = ROOT / "examples" / "Dockerfile"
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in (".md", ".sh", ".yaml")),
]
BEFORE = r"(?:^[ #]*|\b(?:exec|until|if) |-- |^[A-Z_]+=\S+ )"  # where a word is a command
COMMAND = re.compile(BEFORE + r"(?:\.venv/bin/)?shardgen((?: +(?:\"[^\"]*\"|[^\s;&|#`\"()]+))+)")


@cache
def command_line() -> Any:
    return typer.main.get_command(app)


def assert_parses(arguments: list[str]) -> None:
    """By the real command line; a wrong option or a missing value raises."""
    command = command_line()
    name = "shardgen"
    while hasattr(command, "commands"):
        assert arguments[0] in command.commands, arguments
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context(name, list(arguments), resilient_parsing=False)


def command_lines(page: Path) -> list[str]:
    """What follows `shardgen` wherever a page shows a command: code blocks, backticks, scripts, comments."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    if page.suffix == ".md":
        blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
        text = "\n".join(blocks + re.findall(r"`(shardgen [^`]+)`", text))
    lines = [line.replace('"${options[@]}"', "") for line in text.splitlines()]
    return [match.strip() for line in lines for match in COMMAND.findall(line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_every_page_parses(page: Path) -> None:
    lines = command_lines(page)
    assert lines or page.parent.name == "docs", f"{page.name} shows no command"
    for line in lines:
        assert_parses(shlex.split(line))


# Slurm


def run_slurm(folder: Path, environment: dict[str, str], *, squeue: str = "") -> tuple[int, str, list[str]]:
    """Run the script with stand-ins for programs; its exit code, its stderr, and what it would start."""
    binaries = folder / "bin"
    binaries.mkdir()
    for name, body in (
        ("shardgen", f'printf "%s\\n" "$$" "$@" > {folder}/started; exit 17'),
        ("squeue", squeue),
    ):
        (binaries / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (binaries / name).chmod(0o755)
    process = subprocess.Popen(
        ["bash", str(SLURM)],
        env={"PATH": f"{binaries}:{os.environ['PATH']}", "HOME": str(folder), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    _, said = process.communicate(timeout=60)
    started = folder / "started"
    if not started.exists():
        return process.returncode, said, []
    pid, *arguments = started.read_text(encoding="utf-8").splitlines()
    assert int(pid) == process.pid  # a signal sent to the script reaches the worker
    return process.returncode, said, arguments


SETTINGS = {
    "SHARDGEN_RUN": "/shared/people",
    "SHARDGEN_MANIFEST": "postgresql+psycopg://me:secret@db/people",
    "SHARDGEN_FOREGROUNDS": "/shared/cut outs",
    "SHARDGEN_BACKGROUNDS": "/shared/scenes",
}


def test_the_slurm_script_is_sound_shell() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)


@pytest.mark.parametrize(
    ("shown", "deadline"),
    [
        ("1-02:03:04", 86_400 + 2 * 3600 + 3 * 60 + 4 - 90),
        ("11:59:08", 11 * 3600 + 59 * 60 + 8 - 90),
        ("09:08", 9 * 60 + 8 - 90),
        ("UNLIMITED", None),
    ],
)
def test_the_slurm_script_starts_a_worker_that_ends_before_the_time_limit(
    tmp_path: Path, shown: str, deadline: int | None
) -> None:
    environment = SETTINGS | {
        "SLURM_JOB_ID": "78",
        "SLURM_ARRAY_JOB_ID": "70",
        "SLURM_ARRAY_TASK_ID": "7",
    }
    asked = f'[[ "$*" == "--noheader --jobs 78 --format %L" ]] && echo {shown}'
    code, said, (verb, run_dir, *options) = run_slurm(tmp_path, environment, squeue=asked)
    assert (code, said, verb, run_dir) == (17, "", "worker", "/shared/people")
    assert_parses([verb, run_dir, *options])
    given = dict(zip(options[::2], options[1::2], strict=True))
    expected = {"--device": "gpu", "--grace": "20", "--id": "slurm-70_7"}
    found = given.pop("--deadline", None)
    assert (found and parse_duration(found)) == deadline
    assert given == expected


def test_the_slurm_script_believes_slurms_own_end_time(tmp_path: Path) -> None:
    environment = SETTINGS | {"SLURM_JOB_ID": "78", "SLURM_JOB_END_TIME": "99999999999"}
    _, _, arguments = run_slurm(tmp_path, environment, squeue="echo 1:00:00")
    assert parse_duration(arguments[arguments.index("--deadline") + 1]) > 10**9


def test_the_slurm_script_starts_nothing_in_the_last_minutes(tmp_path: Path) -> None:
    environment = SETTINGS | {"SLURM_JOB_ID": "78"}
    assert run_slurm(tmp_path, environment, squeue="echo 2:59") == (
        0,
        "only 179 s are left: too short to start\n",
        [],
    )


def test_the_slurm_script_without_slurm_just_works(tmp_path: Path) -> None:
    _, _, arguments = run_slurm(tmp_path, SETTINGS | {"SHARDGEN_DEVICE": "cpu"}, squeue="exit 1")
    assert arguments == ["worker", "/shared/people", "--device", "cpu", "--grace", "20"]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_slurm_script_names_the_setting_that_is_missing(tmp_path: Path, name: str) -> None:
    code, said, arguments = run_slurm(tmp_path, {key: SETTINGS[key] for key in SETTINGS if key != name})
    assert code != 0
    assert f"{name}: is not set" in said
    assert not arguments
    assert "secret" not in said


def test_the_slurm_script_reads_its_settings_from_a_file(tmp_path: Path) -> None:
    (tmp_path / ".config").mkdir()
    lines = "".join(f"{key}={shlex.quote(value)}\n" for key, value in SETTINGS.items())
    (tmp_path / ".config" / "shardgen.sh").write_text(lines, encoding="utf-8")
    assert run_slurm(tmp_path, {})[2][:2] == ["worker", "/shared/people"]


# Kubernetes


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    found = documents(KUBERNETES.read_text(encoding="utf-8"))
    return {f"{one['kind']} {one['metadata']['name']}": one for one in found}


JOBS = ("Job shardgen-plan", "Job shardgen-work", "Job shardgen-merge")


def test_the_kubernetes_objects_are_those_that_its_comments_speak_of(objects: dict[str, Any]) -> None:
    assert set(objects) == {"ConfigMap shardgen", "PersistentVolumeClaim shardgen", *JOBS}
    text = KUBERNETES.read_text(encoding="utf-8")
    assert set(re.findall(r"job/([\w-]+)", text)) <= {name.split()[1] for name in JOBS}
    steps = {one["metadata"]["labels"]["step"] for one in objects.values()}
    assert steps == set(re.findall(r"-l step=(\w+)", text))


def test_the_kubernetes_settings_are_settings(
    objects: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = objects["ConfigMap shardgen"]["data"]["shardgen.toml"]
    settings = parse_settings(tomllib.loads(text), where="the example")
    monkeypatch.setenv("SHARDGEN_MANIFEST", SETTINGS["SHARDGEN_MANIFEST"])
    assert settings.manifest_url() == SETTINGS["SHARDGEN_MANIFEST"]
    assert Path(settings.engine.artifacts.url).is_absolute()


@pytest.mark.parametrize("name", JOBS)
def test_every_kubernetes_pod_gets_what_its_command_needs(objects: dict[str, Any], name: str) -> None:
    pod = objects[name]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    program, *arguments = container["command"]
    assert program == "shardgen"
    assert_parses(arguments)
    assert container["envFrom"] == [{"secretRef": {"name": "shardgen"}}]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert volumes[mounts["/people"]["name"]]["emptyDir"] == {}  # writable: plan.json goes there
    toml = mounts["/people/shardgen.toml"]
    assert (toml["subPath"], volumes[toml["name"]]["configMap"]["name"]) == ("shardgen.toml", "shardgen")
    claim = volumes[mounts["/shared"]["name"]]["persistentVolumeClaim"]["claimName"]
    assert objects[f"PersistentVolumeClaim {claim}"]["spec"]["accessModes"] == ["ReadWriteMany"]
    variables = {variable["name"] for variable in container.get("env", [])}
    if arguments[0] in ("plan", "worker"):
        assert variables == {"SHARDGEN_FOREGROUNDS", "SHARDGEN_BACKGROUNDS", "SHARDGEN_CACHE"}


def test_kubernetes_tries_again_what_may_pass_and_stops_at_what_a_person_must_change(
    objects: dict[str, Any],
) -> None:
    spec = objects["Job shardgen-work"]["spec"]
    assert "completions" not in spec  # the first success ends the Job, and only the end of all work is one
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert "--deadline" not in container["command"]
    assert pod["restartPolicy"] == "Never"  # what a podFailurePolicy demands
    by_code: dict[int, str] = {}
    for rule in reversed(spec["podFailurePolicy"]["rules"]):  # the first that fits counts
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container["name"]
            by_code |= dict.fromkeys(rule["onExitCodes"]["values"], rule["action"])
    assert [code for code, action in by_code.items() if action == "Ignore"] == [130, 143]
    assert sorted(code for code in by_code if by_code[code] == "FailJob") == [2, *range(10, 30)]


def test_kubernetes_gives_a_worker_the_time_that_its_end_may_take(objects: dict[str, Any]) -> None:
    pod = objects["Job shardgen-work"]["spec"]["template"]["spec"]
    command = pod["containers"][0]["command"]
    grace = float(command[command.index("--grace") + 1])
    # The grace, a moment more for the network, the last beat, and the interpreter's end.
    assert pod["terminationGracePeriodSeconds"] >= grace + max(5, grace / 5) + 5 + 10


def test_the_kubernetes_secret_is_what_the_settings_name(objects: dict[str, Any]) -> None:
    text = KUBERNETES.read_text(encoding="utf-8")
    assert "manifest.env has one line: SHARDGEN_MANIFEST=postgresql" in text
    assert "password" not in json.dumps(objects).lower()


# Ray


def test_the_ray_cluster_is_one_by_rays_own_schema_and_its_head_has_no_workers() -> None:
    import yaml  # type: ignore[import-untyped]  # noqa: PLC0415 - comes with Ray
    from ray.autoscaler._private import util  # noqa: PLC0415

    config = util.prepare_config(yaml.safe_load(RAY_CLUSTER.read_text(encoding="utf-8")))
    util.validate_config(config)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert types["gpu"]["resources"]["GPU"] == 1
    assert not any(types[name]["min_workers"] for name in ("cpu", "gpu"))


def test_the_ray_cluster_says_how_it_is_started_used_and_ended() -> None:
    text = RAY_CLUSTER.read_text(encoding="utf-8")
    for step in ("ray up", "ray dashboard", "ray job submit", "ray job logs", "ray down"):
        assert re.search(rf"^#   {step} ", text, re.MULTILINE), step
    submitted = re.sub(r" *\\\n# +", " ", text)
    (variables,) = re.findall(r"--runtime-env-json '([^']+)'", submitted)
    assert json.loads(variables) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}


# Docker


def instructions(text: str) -> list[tuple[str, str]]:
    """Every instruction of a Dockerfile with its words, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined)]


def test_the_dockerfile_copies_what_is_there_and_installs_extras_that_exist() -> None:
    found = instructions(DOCKERFILE.read_text(encoding="utf-8"))
    assert found[0] == ("FROM", "python:3.11-slim")
    assert {word for word, _ in found} == {"FROM", "ARG", "RUN", "COPY", "USER", "WORKDIR", "CMD"}
    for sources in (rest.split()[:-1] for word, rest in found if word == "COPY"):
        assert all((ROOT / source).exists() for source in sources), sources
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (install,) = [rest for _, rest in found if "pip install" in rest]
    (extras,) = re.findall(r'"/src\[([^\]]+)\]"', install)
    assert ("ARG", "GPU=") in found
    for gpu in ("", "1"):  # as the image's shell puts them together
        line = f'GPU={gpu}; echo "{extras}"'
        said = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
        assert said.strip().split(",") == ["ray", "bucket", "postgres", *(["gpu"] if gpu else [])]
        assert set(said.strip().split(",")) <= set(project["project"]["optional-dependencies"])
    copied = {one for word, rest in found if word == "COPY" for one in rest.split()}
    built = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*built["packages"], *built["force-include"], project["project"]["readme"]} <= copied


def test_the_dockerfile_has_the_readmes_libraries_and_nobody_is_root() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    (line,) = re.findall(r"apt-get install -y ([\w. -]+)`", (ROOT / "README.md").read_text("utf-8"))
    (installed,) = re.findall(r"apt-get install -y ([\w. -]+?) &&", text)
    assert set(line.split()) - {"python3-venv"} <= set(installed.split())  # the image has a Python of its own
    users = [rest for word, rest in instructions(text) if word == "USER"]
    assert users
    assert "root" not in users


def _container_tool() -> str | None:
    """A program that can build images now: with a running engine, where it needs one."""
    for name in ("docker", "podman"):
        if (
            shutil.which(name)
            and not subprocess.run([name, "info"], check=False, capture_output=True).returncode
        ):
            return name
    return None


@pytest.mark.slow
def test_the_image_is_built_and_has_the_command() -> None:
    if (tool := _container_tool()) is None:
        pytest.skip("no container tool with a running engine")
    tag = "shardgen-test:cpu"
    subprocess.run([tool, "build", "-f", str(DOCKERFILE), "-t", tag, str(ROOT)], check=True, timeout=1800)
    try:
        said = subprocess.run(
            [tool, "run", "--rm", tag, "id", "-un"], check=True, capture_output=True, text=True
        )
        assert said.stdout.strip() == "shardgen"
        subprocess.run([tool, "run", "--rm", tag, "shardgen", "ray", "--help"], check=True)
    finally:
        subprocess.run([tool, "image", "rm", tag], check=False)
