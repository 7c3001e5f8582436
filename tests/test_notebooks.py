"""The notebooks of `examples/`, every cell from top to bottom, with a folder in the place of Google Drive."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from packaging.requirements import Requirement
from PIL import Image

from shardgen import DataSet
from shardgen.coordination.bucket.objects import Objects
from shardgen.depth.families import DEFAULT
from shardgen.recipes.registry import find_preset
from tests.bucket.servers import Store
from tests.photographs import write_photographs
from tests.runs import SETTINGS, sha256_of, shardgen
from tests.test_examples import assert_parses

ROOT = Path(__file__).parent.parent
PACKAGES = ROOT / "tests" / "colab" / "packages"
QUICKSTART, WORKER, WATCH = (
    ROOT / "examples" / f"colab_{name}.ipynb" for name in ("quickstart", "worker", "watch")
)
each_notebook = pytest.mark.parametrize("path", [QUICKSTART, WORKER, WATCH], ids=lambda path: path.stem)
# A segment is several batches, and nobody waits for others' claims longer than a moment.
# What a form has no field for, so that no test waits for the network, for a segment, or for others' claims.
OF_FORMS = {"compose.grid": "GRID", "output.size": "SIZE"}
SMALL = {key: value for key, value in SETTINGS.items() if key not in OF_FORMS}
MASKS = {key: value for key, value in SMALL.items() if not key.startswith("depth.")}
QUICK = {
    "folder.segment_seconds": "2",
    "folder.segment_batches": "2",
    "folder.settle_seconds": "0",
    "folder.silent_seconds": "60",
    "folder.scan_seconds": "0.5",
}
FORM = {name: SETTINGS[key] for key, name in OF_FORMS.items()}  # 48 samples of two and two photographs


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def sources(path: Path) -> list[str]:
    return [cell.source for cell in read(path).cells if cell.cell_type == "code"]


def cell_with(path: Path, text: str) -> str:
    (found,) = [source for source in sources(path) if text in source]
    return found


@dataclass(slots=True, kw_only=True)
class Colab:
    """One account's runtime: its own disk, its own mount of the one Drive, its own kernel.

    `signed_in` is the account that gcloud knows, if any; `uploads` holds the files that a person chooses, in
    `foregrounds` and `backgrounds`.
    """

    disk: Path
    drive: Path
    secrets: Mapping[str, str] = field(default_factory=dict)
    signed_in: str = ""
    uploads: Path | None = None
    pictures: list[bytes] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)

    @property
    def journal(self) -> Path:
        return self.disk / "journal"

    def environment(self) -> dict[str, str]:
        self.disk.mkdir(exist_ok=True)
        self.journal.touch()
        gcloud = self.disk / "bin" / "gcloud"
        gcloud.parent.mkdir(exist_ok=True)
        gcloud.write_text(f"#!/bin/sh\necho {self.signed_in}\n", encoding="utf-8")
        gcloud.chmod(0o755)
        own = {
            name: str(self.disk / name.lower())
            for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "XDG_CACHE_HOME", "JUPYTER_CONFIG_DIR")
        }
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("SHARDGEN")}
        return (
            inherited
            | own
            | {
                "PYTHONPATH": str(PACKAGES),
                "PATH": f"{gcloud.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
                "FAKE_DRIVE": str(self.drive),
                "FAKE_JOURNAL": str(self.journal),
                "FAKE_SECRETS": json.dumps(self.secrets),
                "FAKE_UPLOADS": str(self.uploads or ""),
                "COLAB_RELEASE_TAG": "release-colab_20260819",
            }
        )

    def notebook(self, path: Path, changes: Mapping[str, str] | None = None, **settings: object) -> Any:
        """The notebook with other settings, as its reader fills in the forms; `changes` are more for init."""
        notebook = read(path)
        more = shlex.join(f"--set={key}={value}" for key, value in (changes or {}).items())
        for cell in notebook.cells:
            cell.source = cell.source.replace("{OPTIONS}", f"{{OPTIONS}} {more}")
        for name, value in {"MOUNT, LOCAL": (str(self.disk / "drive"), str(self.disk)), **settings}.items():
            changed = 0
            for cell in notebook.cells:
                cell.source, count = re.subn(
                    rf"^{name} = .*?(?=  # |$)", f"{name} = {value!r}", cell.source, flags=re.MULTILINE
                )
                changed += count
            assert changed == 1, name
        return notebook

    def run_all(self, notebook: Any, *, after_cell: Any = lambda _source: None) -> str:
        """Run every cell; an error in one is raised. Returns what was printed, and said in pages."""
        client = NotebookClient(notebook, timeout=120, kernel_name="python3")
        with client.setup_kernel(env=self.environment(), cwd=str(self.disk)):
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index)
                if cell.cell_type == "code":
                    after_cell(cell.source)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        outputs = [output for cell in code for output in cell.outputs]
        self.pictures = [
            base64.b64decode(output.data["image/png"])
            for output in outputs
            if output.output_type == "display_data" and "image/png" in output.data
        ]
        pages = [output.data for output in outputs if "text/html" in output.get("data", {})]
        self.pages = [page["text/html"] for page in pages]
        printed = [output.text for output in outputs if output.output_type == "stream"]
        return "".join(printed + [page["text/plain"] for page in pages])


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What the owner's notebook and a watcher's two looks printed, and what Drive holds after them."""

    owner: Colab
    watcher: Colab
    shared: Path
    worked: str
    too_early: str
    watched: str


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("colab")
    drive = folder / "drive of all"
    shared = drive / "MyDrive" / "our people"
    write_photographs(shared)
    os.setxattr(shared.parent, "user.drive.email", b"anna@example.org")
    owner = Colab(disk=folder / "owner", drive=drive)
    watcher = Colab(disk=folder / "watcher", drive=drive)
    early: list[str] = []

    def owners_part(source: str) -> None:
        if "!shardgen plan" in source:
            look = watcher.notebook(WATCH, FOLDER="MyDrive/our people", WAIT=False)
            early.append(watcher.run_all(look))

    settings = {"FOLDER": "MyDrive/our people", "PLANS": True, "WEIGHTS": "small", **FORM}
    notebook = owner.notebook(WORKER, SMALL | QUICK, DEADLINE="10m", END_RUNTIME=True, **settings)
    worked = owner.run_all(notebook, after_cell=owners_part)
    watched = watcher.run_all(watcher.notebook(WATCH, FOLDER="MyDrive/our people"))
    return Story(
        owner=owner, watcher=watcher, shared=shared, worked=worked, too_early=early[0], watched=watched
    )


# The notebooks as files


@each_notebook
def test_a_notebook_is_valid_and_carries_no_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.colab.name == path.name


@each_notebook
def test_a_badge_opens_this_very_notebook_and_there_is_none_without_an_address(path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project.get("urls", {}).get("Repository", "")
    place = repository.removeprefix("https://github.com/")
    colab = "https://colab.research.google.com"
    badge = f"[![Open in Colab]({colab}/assets/colab-badge.svg)]"
    badge += f"({colab}/github/{place}/blob/main/examples/{path.name})"
    text = path.read_text(encoding="utf-8")
    assert (badge if repository else "") in text
    assert text.count("colab-badge") == (1 if repository else 0)


@each_notebook
def test_a_notebook_begins_with_a_copy_of_ones_own_and_no_field_says_who_one_is(path: Path) -> None:
    assert "**Step 0: save a copy in Drive**" in read(path).cells[0].source
    fields = re.findall(r"^(\w+) = .*# @param", "\n".join(sources(path)), re.MULTILINE)
    assert {"FOLDER", "SOURCE"} <= set(fields)
    assert not {"OWNER", "PLANS", "NAME"} & set(fields)
    if path != WATCH:
        assert {"PRESET", "WEIGHTS", "GRID", "SIZE"} <= set(fields)


def test_the_quickstart_is_short() -> None:
    assert len(read(QUICKSTART).cells) <= 10


@each_notebook
def test_every_command_of_a_notebook_parses(path: Path) -> None:
    code = "\n".join(sources(path))
    lines = re.findall(r"^ *!shardgen (.*)$", code, re.MULTILINE)
    assert lines
    for line in lines:
        words = line.replace("{NEEDED}", "nyu").replace(
            "{OPTIONS}", '--preset=grid600 "--set=output.size=[64, 48]"'
        )
        assert_parses(shlex.split(words))
    for line in re.findall(r"command=(\[.*\])", code):
        assert_parses(eval(line, {"NAME": "anna", "DEADLINE": "11h", "ZIP": "people.zip"}))  # noqa: S307


@each_notebook
def test_every_choice_of_a_form_is_one_that_a_command_takes(path: Path) -> None:
    choices = dict(re.findall(r"^(\w+) = .*# @param (\[.*\])$", "\n".join(sources(path)), re.MULTILINE))
    for name in json.loads(choices.get("PRESET", "[]")):
        assert find_preset(name)
    for name in json.loads(choices.get("WEIGHTS", "[]")):
        assert not name or DEFAULT.plan_name(name) == name


@each_notebook
def test_a_command_replaces_its_shell_so_that_the_stop_button_reaches_it(path: Path) -> None:
    for source in sources(path):
        for line in re.findall(r"^ *!(.*)$", source, re.MULTILINE):
            assert not re.search(r"[;&|]", line), line


# Installing


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """How the install cell ended where shardgen was not importable: pip's arguments, and its constraints."""

    code: int
    stderr: str
    arguments: list[str]
    constraints: list[str]


def install(
    path: Path, folder: Path, *, wheels: tuple[str, ...] = (), source: str = "", bucket: str = ""
) -> Installed:
    """Run the cell in a Python without its packages, with a pip that only writes down what it is asked."""
    fakes, shared, disk = folder / "fakes", folder / "shared", folder / "disk"
    (fakes / "pip").mkdir(parents=True)
    (fakes / "pip" / "__init__.py").touch()
    script = f"import json, sys; open({str(folder / 'asked')!r}, 'w').write(json.dumps(sys.argv[1:]))\n"
    (fakes / "pip" / "__main__.py").write_text(script, encoding="utf-8")
    for name, version in (
        *(("tensorflow", "2.20.0"), ("numpy", "2.1.3"), ("protobuf", "5.29.6"), ("keras", "3.13.2")),
        *(("opencv-python", "5.0.0.93"), ("opencv-contrib-python", "4.14.0.94"), ("rich", "13.9.4")),
    ):
        info = fakes / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    shared.mkdir()
    disk.mkdir()
    for age, wheel in enumerate(wheels):
        (shared / wheel).touch()
        os.utime(shared / wheel, (age, age))
    names = f"SHARED, LOCAL, SOURCE, BUCKET = Path({str(shared)!r}), {str(disk)!r}, {source!r}, {bucket!r}\n"
    names += f"MOUNT, FOLDER, SAVE, PHOTOGRAPHS = {str(folder)!r}, 'shared', False, 'samples'\n"
    given = f"import subprocess\nfrom pathlib import Path\n{names}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", given + cell_with(path, "find_spec")],
        env={"PYTHONPATH": str(fakes)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=disk,
    )
    asked, pins = folder / "asked", disk / "preinstalled.txt"
    return Installed(
        code=done.returncode,
        stderr=done.stderr,
        arguments=json.loads(asked.read_text(encoding="utf-8")) if asked.exists() else [],
        constraints=pins.read_text(encoding="utf-8").splitlines(),
    )


@each_notebook
def test_installing_takes_the_newest_wheel_and_holds_what_colab_has(path: Path, tmp_path: Path) -> None:
    found = install(
        path, tmp_path, wheels=("shardgen-0.2.0-py3-none-any.whl", "shardgen-0.1.9-py3-none-any.whl")
    )
    assert found.code == 0, found.stderr
    assert found.arguments == [
        *("install", "--quiet", "--constraint", str(tmp_path / "disk" / "preinstalled.txt")),
        str(tmp_path / "shared" / "shardgen-0.1.9-py3-none-any.whl"),
    ]
    assert found.constraints == [
        "keras==3.13.2",
        "numpy==2.1.3",
        "opencv-contrib-python==4.14.0.94",
        "opencv-python==5.0.0.93",
        "protobuf==5.29.6",
        "tensorflow==2.20.0",
    ]


@each_notebook
def test_installing_takes_the_named_source_before_any_wheel(path: Path, tmp_path: Path) -> None:
    address = "git+https://example.org/shardgen.git"
    found = install(path, tmp_path, wheels=("shardgen-0.1.0-py3-none-any.whl",), source=address)
    assert (found.code, found.arguments[-1]) == (0, address)


@pytest.mark.parametrize("source", ["", "git+https://example.org/shardgen.git"])
def test_installing_for_a_bucket_takes_its_extra(tmp_path: Path, source: str) -> None:
    wheel = "shardgen-0.1.0-py3-none-any.whl"
    found = install(WORKER, tmp_path, wheels=(wheel,), source=source, bucket="s3://bucket/people")
    asked = Requirement(found.arguments[-1])
    assert (asked.name, asked.extras) == ("shardgen", {"bucket"})
    assert asked.url == (source or (tmp_path / "shared" / wheel).as_uri())


@each_notebook
def test_installing_from_nowhere_says_what_is_needed(path: Path, tmp_path: Path) -> None:
    found = install(path, tmp_path)
    assert found.arguments == []
    assert "SOURCE is empty" in found.stderr


# Who works


@pytest.mark.parametrize(
    ("bucket", "of_drive", "gcloud", "name"),
    [
        ("", "anna.b@example.org", "echo ben@example.org", "anna.b"),
        ("", "", "echo ben@example.org", "ben"),
        ("gs://bucket/people", "anna.b@example.org", "echo ben@example.org", "ben"),
        ("gs://bucket/people", "", "echo shardgen@project.iam.gserviceaccount.com", ""),
        ("s3://bucket/people", "", "echo; echo not signed in >&2; exit 1", ""),
        ("", "nobody", "echo", ""),
    ],
)
def test_a_worker_is_called_by_its_account_and_else_by_its_runtime(
    tmp_path: Path, bucket: str, of_drive: str, gcloud: str, name: str
) -> None:
    drive = tmp_path / "MyDrive"
    drive.mkdir()
    if of_drive:
        os.setxattr(drive, "user.drive.email", of_drive.encode())
    program = tmp_path / "bin" / "gcloud"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{gcloud}\n", encoding="utf-8")
    program.chmod(0o755)
    given = f"import os\nBUCKET, MOUNT, FOLDER, LOCAL = {bucket!r}, {str(tmp_path)!r}, 'MyDrive', '.'\n"
    done = subprocess.run(
        [sys.executable, "-c", given + cell_with(WORKER, "def account")],
        env={"PATH": f"{program.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert f"this worker: {name or socket.gethostname()}\n" in done.stdout


# From top to bottom


@pytest.mark.slow
def test_the_workers_notebook_makes_everything_and_ends_its_runtime_after_the_upload(story: Story) -> None:
    assert "is there already" in story.worked
    assert "this worker: anna\n" in story.worked
    assert "the worker ended well" in story.worked
    assert "planned 48   stored 48   dead letters 0   pending 0" in story.worked
    asked = story.owner.journal.read_text(encoding="utf-8").splitlines()
    assert asked == [f"mount {story.owner.disk / 'drive'}", "flush", "unassign"]
    assert not (story.owner.disk / "drive").exists()


@pytest.mark.slow
def test_a_look_before_anything_is_made_merges_nothing_and_fails_nowhere(story: Story) -> None:
    assert "0 of 48 samples" in story.too_early
    assert "48 samples are pending: too early to merge" in story.too_early


@pytest.mark.slow
def test_the_watchers_notebook_shows_and_keeps_a_whole_zip(story: Story) -> None:
    assert "48 of 48 samples" in story.watched
    assert "data:image" in "".join(story.watcher.pages)
    (kept,) = story.shared.glob("*.zip")
    digest = sha256_of(kept)
    assert kept.name == f"our people-{digest[:12]}.zip"
    assert digest in story.watched
    assert sha256_of(story.watcher.disk / "our people.zip") == digest
    with zipfile.ZipFile(kept) as archive:
        assert archive.testzip() is None
        images = [name for name in archive.namelist() if "/" in name]
        assert len(images) == 3 * 48
        assert len(archive.read("labels.csv").splitlines()) == 1 + 48
        sheet = archive.read("contact_sheet.png")
    assert story.watcher.pictures == [sheet]
    assert cv2.imdecode(np.frombuffer(sheet, np.uint8), cv2.IMREAD_COLOR) is not None


@pytest.mark.slow
def test_the_shared_folder_holds_the_run_and_no_database(story: Story) -> None:
    assert sorted(path.name for path in (story.shared / "run").iterdir()) == [
        "plan.json",
        "shardgen.toml",
        "workers",
    ]
    assert not [path for path in story.shared.rglob("*") if "sqlite" in path.name]
    assert all(path.name.startswith("anna-") for path in (story.shared / "run" / "workers").iterdir())


@pytest.mark.slow
def test_a_colleague_joins_over_a_shortcut_and_makes_what_is_left(story: Story, tmp_path: Path) -> None:
    drive = tmp_path / "drive of all"
    others = drive / "of anna"
    shutil.copytree(story.shared, others)
    (drive / "MyDrive").mkdir()
    os.setxattr(drive / "MyDrive", "user.drive.email", b"ben@example.org")
    (drive / "MyDrive" / "people").symlink_to(others, target_is_directory=True)
    ben = Colab(disk=tmp_path / "ben", drive=drive)
    environment = {"XDG_CACHE_HOME": str(tmp_path / "operator")}
    undone = shardgen("requeue", others / "run", "--batch", "3", environment=environment)
    assert undone.returncode == 0, undone.stderr
    said = ben.run_all(ben.notebook(WORKER))
    assert "[ben] made 4 samples; 0 of 48 are pending" in said
    assert "the worker ended well" in said
    assert ben.journal.read_text(encoding="utf-8").splitlines()[-1] == "flush"
    again = shardgen("merge", others / "run", "-o", tmp_path / "again.zip", environment=environment)
    assert again.returncode == 0, again.stderr
    (kept,) = story.shared.glob("*.zip")
    assert sha256_of(tmp_path / "again.zip") == sha256_of(kept)


@pytest.mark.slow
def test_a_folder_that_is_not_visible_is_explained(tmp_path: Path) -> None:
    drive = tmp_path / "drive of all"
    (drive / "MyDrive").mkdir(parents=True)
    colab = Colab(disk=tmp_path / "carl", drive=drive)
    with pytest.raises(CellExecutionError, match="is not visible") as caught:
        colab.run_all(colab.notebook(WORKER))
    assert "shortcut" in str(caught.value)


# A bucket in the place of Drive


@pytest.mark.slow
def test_owner_and_colleague_share_nothing_but_a_bucket(
    tmp_path: Path, bucket_servers: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = bucket_servers("ministack")
    keys = {name: value for name, value in store.environment().items() if name != "AWS_ALLOW_HTTP"}
    urls = {"BUCKET": store.new_url(), "PHOTOGRAPHS": store.new_url()}
    anna, ben = (
        Colab(disk=tmp_path / name, drive=tmp_path / "none", secrets=keys, signed_in=account)
        for name, account in (("anna", "anna@example.org"), ("ben", ""))
    )
    with monkeypatch.context() as context:
        for name, value in keys.items():
            context.setenv(name, value)
        photographs = tmp_path / "photographs"
        write_photographs(photographs)
        objects = Objects.open(urls["PHOTOGRAPHS"])
        for path in photographs.rglob("*.*"):
            objects.create(path.relative_to(photographs).as_posix(), path.read_bytes())
    bens: list[str] = []

    def annas_part(source: str) -> None:
        if "!shardgen plan" in source:
            bens.append(ben.run_all(ben.notebook(WORKER, {}, **urls)))

    settings = {"PLANS": True, "PRESET": "masks-only", "WEIGHTS": "", **FORM, **urls}
    said = anna.run_all(anna.notebook(WORKER, MASKS, END_RUNTIME=True, **settings), after_cell=annas_part)
    assert f"[{socket.gethostname()}] made 48 samples; 0 of 48 are pending" in bens[0]
    assert "[anna] made 0 samples" in said
    for output in (said, *bens):
        assert "planned 48   stored 48   dead letters 0   pending 0" in output
        assert "the worker ended well" in output
    assert [one.journal.read_text(encoding="utf-8") for one in (anna, ben)] == ["unassign\n", ""]
    assert not (ben.disk / "run").exists()
    merged = shardgen("merge", urls["BUCKET"], "-o", tmp_path / "people.zip", environment=keys)
    assert merged.returncode == 0, merged.stderr


# One account


@pytest.mark.slow
def test_the_quickstart_makes_and_saves_a_data_set_of_the_samples_that_ship(
    tmp_path: Path, u2netp: Path
) -> None:
    (tmp_path / "drive of all" / "MyDrive").mkdir(parents=True)
    colab = Colab(disk=tmp_path / "carl", drive=tmp_path / "drive of all")
    cache = Path(colab.environment()["XDG_CACHE_HOME"]) / "shardgen"
    cache.mkdir(parents=True)
    shutil.copyfile(u2netp, cache / u2netp.name)
    said = colab.run_all(colab.notebook(QUICKSTART, SMALL, SIZE="[32, 24]"))
    assert "masks written" in said
    assert "read 96 samples: no findings" in said
    with DataSet(tmp_path / "drive of all" / "MyDrive" / "people" / "people.zip") as data:
        assert len(data) == 3 * 4 * 2 * 4
    cut_outs, preview, *samples = [Image.open(io.BytesIO(one)).size for one in colab.pictures]
    assert min(*cut_outs, *preview) > 100
    assert samples == [(3 * 32, 24)] * 3
    assert colab.journal.read_text(encoding="utf-8").splitlines() == [
        f"mount {colab.disk / 'drive'}",
        "flush",
    ]


@pytest.mark.slow
def test_the_quickstart_takes_photographs_of_drive_or_of_an_upload(tmp_path: Path) -> None:
    given = tmp_path / "MyDrive" / "people"
    write_photographs(given)
    for place in ("Drive", "upload"):
        colab = Colab(disk=tmp_path / place, drive=tmp_path, uploads=given)
        notebook = colab.notebook(QUICKSTART, PHOTOGRAPHS=place)
        (last,) = [index for index, cell in enumerate(notebook.cells) if "files.upload" in cell.source]
        notebook.cells = notebook.cells[: last + 1]
        notebook.cells[last].source = notebook.cells[last].source.partition("SHEET = ")[0]
        colab.run_all(notebook)
        for folder in ("foregrounds", "backgrounds"):
            found = {path.name: path.read_bytes() for path in (colab.disk / "people" / folder).iterdir()}
            assert found == {path.name: path.read_bytes() for path in (given / folder).iterdir()}
            assert found
