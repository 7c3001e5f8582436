"""The url of a bucket: in the settings, and in the place of RUN_DIR."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardgen.cli import app
from shardgen.coordination.bucket import plan as planning
from shardgen.coordination.open import open_directory
from shardgen.errors import InputMissing, InvalidSettings, PlanConflict, StoreRefuses
from shardgen.operations import doctor
from shardgen.operations.doctor import Verdict
from shardgen.operations.init import initialise
from shardgen.operations.plan import make_plan
from shardgen.operations.verify import open_subject
from shardgen.settings.run_directory import RunDirectory
from shardgen.settings.settings import parse_settings
from tests.bucket.memory import Buckets, in_memory
from tests.photographs import write_photographs
from tests.runs import make_run

HIDDEN = "hunter2"
URL = "s3://bucket/people"


def url_of(text: str, **tables: object) -> str:
    return parse_settings({"manifest": {"url": text}, **tables}, where="shardgen.toml").manifest_url()


@pytest.mark.parametrize("url", [URL, "s3://bucket", "gs://my.bucket/a_b/c-d=e+f", "az://container/people"])
def test_a_bucket_is_taken_as_it_is_written(url: str) -> None:
    assert url_of(url) == url


def test_a_variable_may_name_bucket_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "bucket/people")
    assert url_of("s3://${PLACE}") == URL
    monkeypatch.setenv("PLACE", f"key:{HIDDEN}@bucket/people")
    with pytest.raises(InvalidSettings, match="keys may come only from the environment") as error:
        url_of("s3://${PLACE}")
    assert HIDDEN not in str(error.value) + error.value.hint


@pytest.mark.parametrize(
    ("url", "fact", "hint"),
    [
        ("s3://", "names no bucket", "write s3://bucket/people"),
        ("s3:///people", "names no bucket", "write s3://bucket/people"),
        ("s3:/bucket/people", "begins with s3://, gs:// or az://, in lower case", "write s3://"),
        ("s3:bucket/people", "begins with s3://", "write s3://"),
        ("S3://bucket/people", "in lower case", "write s3://"),
        ("s3a://bucket/people", "begins with s3://", "write s3://"),
        ("gcs://bucket/people", "begins with s3://", "gs:// (Google)"),
        ("abfss://container/people", "begins with s3://", "az:// (Azure"),
        ("s3://bucket/people/", "ends with a slash", f"write {URL}"),
        ("s3://bucket//people", "may contain letters", "write s3://"),
        ("s3://bucket/../people", "may contain letters", "write s3://"),
        ("s3://bucket/my people", "may contain letters", "write s3://"),
        (f"s3://bucket/people?secret={HIDDEN}", "contains a query", "AWS_ENDPOINT_URL"),
        (f"s3://bucket/people#{HIDDEN}", "contains a query", "AWS_REGION"),
        (f"s3://key:{HIDDEN}@bucket/people", "contains a user", "AWS_SECRET_ACCESS_KEY"),
        (f"s3://{HIDDEN}@bucket/people", "contains a user", "AWS_SECRET_ACCESS_KEY"),
        ("s3://bucket:9000/people", "a port", "AWS_ENDPOINT_URL"),
    ],
)
def test_what_is_no_bucket_is_refused_and_no_secret_repeated(url: str, fact: str, hint: str) -> None:
    for ask in (lambda: url_of(url), lambda: open_directory(url)):
        with pytest.raises(InvalidSettings) as error:
            ask()
        assert fact in str(error.value)
        assert hint in error.value.hint
        assert HIDDEN not in str(error.value) + error.value.hint


def test_artifacts_lie_in_the_bucket_and_nowhere_else() -> None:
    assert url_of(URL, artifacts={"url": "artifacts"}) == URL
    for elsewhere in ("/mnt/artifacts", "s3://other/people"):
        with pytest.raises(InvalidSettings, match=r"\[artifacts\] url: with a bucket") as error:
            url_of(URL, artifacts={"url": elsewhere})
        assert "remove the line" in error.value.hint


def test_init_writes_the_bucket_into_the_settings(tmp_path: Path) -> None:
    foregrounds, backgrounds = write_photographs(tmp_path / "sources", foregrounds=1, backgrounds=1)
    folders = {"foregrounds": foregrounds, "backgrounds": backgrounds}
    path = initialise(tmp_path / "people", folders, weights="small", shared=URL)
    assert tomllib.loads(path.read_text(encoding="utf-8"))["manifest"] == {"url": URL}
    with pytest.raises(InvalidSettings, match="--bucket: ends with a slash"):
        initialise(tmp_path / "other", folders, weights="small", shared=f"{URL}/")


@pytest.mark.parametrize("mistyped", ["s3//people/two", "s3/people/two"])
def test_a_url_without_its_colon_is_no_folder(
    mistyped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for ask in (open_directory, open_subject):
        with pytest.raises(InputMissing, match="looks like a url") as error:
            ask(mistyped)
        assert error.value.hint == "write s3://people/two"
    Path(mistyped).mkdir(parents=True)  # one may call a folder so
    with pytest.raises(InputMissing, match="not a run directory"):
        open_directory(mistyped)


@pytest.mark.parametrize("mistyped", ["s3//bucket/people", "s3:/bucket/people", "r2:bucket"])
def test_artifacts_do_not_go_into_a_folder_that_was_meant_as_a_bucket(mistyped: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, changes={"artifacts.url": f'"{mistyped}"'})
    with pytest.raises(InvalidSettings, match="looks like a bucket's url") as error:
        _ = RunDirectory.open(run.path).artifacts
    assert error.value.hint.startswith("write s3://bucket/people")
    (run.path / mistyped).mkdir(parents=True)  # one may call a folder so
    assert RunDirectory.open(run.path).artifacts == run.path / mistyped


@pytest.mark.parametrize("server", ["postgresql://host/people", "postgresql+psycopg://me:secret@host/people"])
def test_the_address_of_a_server_is_no_run_directory(server: str) -> None:
    for ask in (open_directory, open_subject):
        with pytest.raises(InputMissing, match="not a run directory") as error:
            ask(server)
        assert "[manifest] url" in error.value.hint
        assert "secret" not in f"{error.value} {error.value.hint}"


@pytest.fixture
def buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Buckets]:
    monkeypatch.setenv("SHARDGEN_CACHE", str(tmp_path / "cache"))
    with in_memory() as found:
        yield found


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path, changes={"manifest.url": f'"{URL}"', "sources.backgrounds": '"here"'})


class Typed:
    """Commands that are typed in a folder of another machine."""

    def __init__(self, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capsys, self._patch = capsys, patch

    def __call__(self, *words: str) -> tuple[int, str]:
        self._patch.setattr(sys, "argv", ["shardgen", *words])
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert isinstance(ended.value.code, int)
        said = self._capsys.readouterr()
        return ended.value.code, said.out + said.err


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Typed:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return Typed(capsys, monkeypatch)


def test_commands_take_the_url_and_print_it_in_what_is_to_be_typed(
    run: RunDirectory, buckets: Buckets, typed: Typed, tmp_path: Path
) -> None:
    scenes = str(tmp_path / "sources" / "backgrounds")
    code, said = typed("status", URL)
    assert (code, "nothing is planned there yet" in said) == (11, True)
    assert typed("plan", str(run.path), "--backgrounds", scenes)[0] == 0
    code, said = typed("status", URL)
    assert (code, "planned 48" in said) == (0, True)
    assert f"to continue: shardgen run {URL}" in said
    for words in (("verify", URL), ("merge", URL), ("dead-letters", URL), ("requeue", URL, "--batch", "99")):
        code, said = typed(*words)
        assert str(tmp_path / "cache") not in said, said
        assert "Traceback" not in said, said
    assert f"shardgen dead-letters {URL}" in said


@pytest.mark.slow
def test_a_machine_names_its_own_photographs_and_gets_pictures_where_it_stands(
    run: RunDirectory, buckets: Buckets, typed: Typed, tmp_path: Path
) -> None:
    scenes = str(tmp_path / "sources" / "backgrounds")
    assert typed("plan", str(run.path), "--backgrounds", scenes)[0] == 0
    # The settings of the machine that planned name a folder beside them, which no other has.
    code, said = typed("preview", URL, "--samples", "1")
    assert (code, "--backgrounds DIR" in said, "SHARDGEN_BACKGROUNDS" in said) == (11, True, True)
    code, said = typed("preview", URL, "--samples", "1", "--backgrounds", scenes)
    assert (code, said.splitlines()[0]) == (0, "preview.png"), said
    assert (tmp_path / "elsewhere" / "preview.png").is_file()


def test_a_bucket_is_no_place_for_init_and_none_to_extend_or_back_up(
    run: RunDirectory, buckets: Buckets, typed: Typed, tmp_path: Path
) -> None:
    assert typed("plan", str(run.path), "--backgrounds", str(tmp_path / "sources" / "backgrounds"))[0] == 0
    sources = ("--foregrounds", str(tmp_path / "sources"), "--backgrounds", str(tmp_path / "sources"))
    code, said = typed("init", "people", "--bucket", URL, *sources)
    assert (code, "export the bucket's keys" in " ".join(said.split())) == (0, True), said
    code, said = typed("init", URL, "--foregrounds", "a", "--backgrounds", "b")
    assert (code, f"add --bucket {URL}" in said) == (2, True)
    code, said = typed("extend", URL)
    assert (code, f"{URL}: a plan in a bucket cannot grow" in said) == (13, True)
    code, said = typed("backup", URL)
    assert (code, "the objects in it are the record" in said) == (13, True)


def test_doctor_looks_at_a_bucket_with_nothing_but_its_url(
    run: RunDirectory, buckets: Buckets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unplanned = list(doctor._run(URL))
    assert unplanned[0].fact == "create an object: made"
    assert (unplanned[-1].verdict, "nothing is planned there yet" in unplanned[-1].fact) == (
        Verdict.FAILS,
        True,
    )
    monkeypatch.setenv("SHARDGEN_BACKGROUNDS", str(tmp_path / "sources" / "backgrounds"))
    make_plan(open_directory(run.path), {})
    monkeypatch.delenv("SHARDGEN_BACKGROUNDS")
    lines = list(doctor._run(URL))
    assert lines[-1].fact == "48 samples, 48 pending"
    # A machine that only merges has no photographs.
    (tmp_path / "sources").rename(tmp_path / "away")
    monkeypatch.setenv("SHARDGEN_BACKGROUNDS", str(tmp_path / "sources" / "backgrounds"))
    lines = list(doctor._run(URL))
    assert [line.verdict for line in lines if line.subject == "sources"] == [Verdict.LOOK, Verdict.LOOK]
    assert Verdict.FAILS not in {line.verdict for line in lines}
    assert Verdict.FAILS in {line.verdict for line in doctor._run(str(run.path))}


def test_another_plan_needs_another_prefix_too(run: RunDirectory, buckets: Buckets, tmp_path: Path) -> None:
    folders = {"backgrounds": tmp_path / "sources" / "backgrounds"}
    plan = make_plan(open_directory(run.path), folders).plan
    planning.begin(buckets.objects(URL), plan)
    settings = run.path / "shardgen.toml"
    settings.write_text(settings.read_text(encoding="utf-8").replace("grid = [3, 2]", "grid = [2, 2]"))
    with pytest.raises(PlanConflict, match=r"grid: 3x2 -> 2x2") as conflict:
        make_plan(open_directory(run.path), folders)
    assert conflict.value.hint.endswith(
        "use a new directory for the other plan, with another prefix in its [manifest] url"
    )


def test_without_the_extra_every_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "shardgen.toml").write_text(f'[manifest]\nurl = "{URL}"\n', encoding="utf-8")
    script = (
        "import sys; sys.modules['obstore'] = None\n"
        "from shardgen.cli.app import main\n"
        "for words in (['status', sys.argv[1]], ['status', sys.argv[2]], ['merge', sys.argv[1]]):\n"
        "    sys.argv[1:], typed = words, sys.argv[1:]\n"
        "    try:\n        main()\n"
        "    except SystemExit as ended:\n        print(ended.code)\n"
        "    sys.argv[1:] = typed\n"
    )
    command = [sys.executable, "-c", script, URL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.split() == ["11", "11", "11"], done.stderr
    hints = [line for line in done.stderr.splitlines() if line.startswith("hint: ")]
    assert hints == ['hint: python -m pip install "shardgen[bucket]"'] * 3


def test_a_store_that_refuses_at_the_start_waits_for_a_person(
    buckets: Buckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> list[object]:
        raise StoreRefuses(f"{URL}: this machine has no credentials for it", hint="export …")

    monkeypatch.setattr(buckets.use, "listed", refuse)
    with pytest.raises(InputMissing, match="no credentials") as missing:
        open_directory(URL)
    assert missing.value.hint == "export …"
