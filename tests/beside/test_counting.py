from __future__ import annotations

import io
import json
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks import kill_resume, queues
from benchmarks.beside.consumers import Queue
from benchmarks.beside.data_sets import DATA_SETS, DataSet, Datatrove, Img2dataset, Litdata, Shardgen
from benchmarks.beside.peers import (
    DATATROVE,
    HUEY,
    LITDATA,
    LITEQUEUE,
    PERSIST_QUEUE,
    Found,
    Peer,
    find,
)
from benchmarks.beside.table import aligned, markdown
from benchmarks.beside.tally import Tally
from benchmarks.beside.watching import Ending

ROOT = Path(__file__).parent.parent.parent
MISSING = Peer(name="shardgen-has-no-such-peer", version="1.0")


def opened(kind: type[DataSet], folder: Path) -> DataSet:
    data_set = kind(folder / "set", Path(sys.executable))
    data_set.output.mkdir()
    return data_set


def test_lost_duplicate_and_redone_samples_of_a_made_up_run_are_counted() -> None:
    # Of 0 to 5: 3 and 5 were made and lost, 4 never begun, 1 is there twice, 0 was begun three times.
    tally = Tally.of(planned=range(6), stored=[0, 1, 1, 2], begun=[0, 0, 0, 1, 2, 3, 3, 5, 5])
    assert tally == Tally(lost=3, duplicates=1, redone=4)


def test_a_run_that_nothing_disturbed_counts_as_such() -> None:
    assert Tally.of(planned=range(3), stored=[2, 0, 1], begun=[0, 1, 2]) == Tally(
        lost=0, duplicates=0, redone=0
    )


def write_tar(path: Path, samples: list[int]) -> None:
    with tarfile.open(path, "w") as archive:
        for sample in samples:
            for name, content in (
                (f"{sample}.jpg", b"picture" * 300),
                (f"{sample}.json", json.dumps({"url": f"http://127.0.0.1:1/{sample}.jpg"}).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def test_of_a_tar_that_breaks_off_no_sample_counts(tmp_path: Path) -> None:
    data_set = opened(Img2dataset, tmp_path)
    write_tar(data_set.output / "00000.tar", [0, 1, 2])
    write_tar(data_set.output / "00001.tar", [200, 201])
    (data_set.output / "00001.parquet").write_bytes(b"PAR1")
    assert (data_set.stored(), data_set.half_written()) == ([0, 1, 2, 200, 201], 0)
    tar = data_set.output / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    (data_set.output / "00001.parquet").write_bytes(b"")
    assert (data_set.stored(), data_set.half_written()) == ([0, 1, 2], 2)


def test_a_line_that_breaks_off_is_no_sample_and_a_short_file_is_half_written(tmp_path: Path) -> None:
    data_set = opened(Datatrove, tmp_path)
    lines = [json.dumps({"id": str(sample)}) + "\n" for sample in range(400)]
    (data_set.output / "00000.jsonl").write_text("".join(lines[:200]))
    (data_set.output / "00001.jsonl").write_text("".join(lines[200:])[:-8])
    assert data_set.stored() == list(range(399))
    assert data_set.half_written() == 1


def test_our_own_zip_counts_no_better_than_others(tmp_path: Path) -> None:
    data_set = opened(Shardgen, tmp_path)
    assert (data_set.stored(), data_set.half_written()) == ([], 0)
    path = data_set.output / "dataset.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for sample in range(4):
            for kind in ("fgbg", "mask", "depth"):
                if (sample, kind) != (2, "mask"):
                    archive.writestr(f"{kind}/00000/{sample:07}.jpg", bytes(100))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("fgbg/00000/0000001.jpg", bytes(100))
    assert sorted(data_set.stored()) == [0, 1, 1, 3]
    path.write_bytes(path.read_bytes()[:-30])
    assert (data_set.stored(), data_set.half_written()) == ([], 1)


def test_without_an_index_litdata_has_stored_nothing(tmp_path: Path) -> None:
    data_set = opened(Litdata, tmp_path)
    assert data_set.stored() == []


def test_a_peer_that_is_not_there_is_reported_as_not_installed_and_has_no_figures(tmp_path: Path) -> None:
    assert find(MISSING, tmp_path) is None
    cells = kill_resume.row(Img2dataset, None, None)
    assert cells == (Img2dataset.title, "not installed", *[""] * 7)
    queue = Queue(title="a queue", peer=MISSING, program="none")
    assert queues.row(queue, None, tmp_path, 1.0) == ("a queue", "not installed", *[""] * 6)


def test_the_commands_report_missing_peers_and_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Missing(Litdata):
        peer = MISSING

    monkeypatch.setattr(kill_resume, "DATA_SETS", (Missing,))
    monkeypatch.setattr(queues, "QUEUES", (Queue(title="a queue", peer=MISSING, program="none"),))
    for module in (kill_resume, queues):
        monkeypatch.setattr(sys, "argv", ["benchmark", "--venvs", str(tmp_path), "--markdown"])
        module.main()
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == markdown(module.HEADER, []).splitlines()[0]
        empty = " |" * (len(module.HEADER) - 2)
        assert lines[2].endswith(f" | not installed |{empty.replace(' ', '  ')}")
    assert list(tmp_path.iterdir()) == []


def test_this_python_is_found_where_a_peer_has_no_environment_of_its_own(tmp_path: Path) -> None:
    found = find(Peer(name="numpy"), tmp_path)
    assert found is not None
    assert found.python == Path(sys.executable)
    assert found.version.count(".") >= 1


def test_a_piece_handed_out_twice_is_counted_once_and_a_piece_never_done_is_told() -> None:
    race = queues.Race(pieces=4, begun=Counter({0: 1, 1: 2, 2: 3}), finished=3, errors=0)
    assert race.twice == 2
    assert str(race) == "2 of 4, 1 never done"


def test_cells_say_what_happened() -> None:
    assert str(Ending(exit_code=None)) == "hangs"
    assert str(Ending(exit_code=0)) == "exit code 0"
    assert str(Ending(exit_code=1, left_running=2)) == "exit code 1, 2 of its processes stay"
    whole, holes = Tally(lost=0, duplicates=0, redone=0), Tally(lost=7, duplicates=1, redone=9)
    outcome = kill_resume.Outcome(
        first=Ending(exit_code=0),
        half_written=None,
        after_first=whole,
        again=Ending(exit_code=None),
        in_the_end=holes,
    )
    found = Found(python=Path(sys.executable), version="1.2")
    cells = kill_resume.row(Litdata, found, outcome)
    assert cells[1:] == ("1.2", "exit code 0", "not looked at", "0", "hangs", "7", "1", "9")


def test_tables_are_aligned_or_markdown() -> None:
    rows = [("a|b", "1"), ("c", "")]
    assert aligned(("what", "n"), rows) == "what  n\n----  -\na|b   1\nc"
    assert markdown(("what", "n"), rows) == "| what | n |\n| --- | --- |\n| a\\|b | 1 |\n| c |  |"


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        (kill_resume.HEADER, [(kind.title, kind.peer) for kind in DATA_SETS]),
        (queues.HEADER, [(queue.title, queue.peer) for queue in queues.QUEUES]),
    ],
    ids=["kill_resume", "queues"],
)
def test_the_tables_on_the_page_have_the_benchmarks_columns_rows_and_versions(
    header: tuple[str, ...], rows: list[tuple[str, Peer]]
) -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    start = page.index(markdown(header, []).splitlines()[0]) + 2
    shown = [line.removeprefix("| ").split(" | ") for line in page[start : start + len(rows)]]
    wanted = [[title, peer.version or version("shardgen")] for title, peer in rows]
    assert [cells[:2] for cells in shown] == wanted


def test_the_extra_holds_the_versions_that_the_benchmarks_install() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {one for one in extras["optional-dependencies"]["bench"] if "==" in one}
    peers = (DATATROVE, HUEY, LITDATA, LITEQUEUE, PERSIST_QUEUE)
    of_the_network = {one for one in pinned if one.startswith("openvino==")}  # it hands out no work
    assert pinned - of_the_network == {f"{peer.name}=={peer.version}" for peer in peers}
