from __future__ import annotations

import csv
import io
import multiprocessing
import pickle
import random
import subprocess
import sys
import threading
import types
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from shardgen.artifacts.folder_store import FolderStore
from shardgen.artifacts.zip_records import ZipLimits
from shardgen.dataset import opened_zip, reader, zip_writer
from shardgen.dataset.merge import MergeInputs, merge
from shardgen.dataset.reader import DataSet
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Block, Output, Plan, Shards
from shardgen.domain.receipt import Facts
from shardgen.errors import ArtifactCorrupt, InputMissing, InvalidSettings, MachineUnfit, PlanConflict
from shardgen.imaging.codec import encode
from shardgen.imaging.options import DepthEncoding, ImageFormat
from shardgen.operations.plan import make_plan as plan_it
from shardgen.recipes import registry
from shardgen.recipes.base import Recipe
from shardgen.recipes.registry import recipe_of
from shardgen.storage.files import make_folders
from tests.dataset import made_runs
from tests.dataset.made_runs import MadeRun, made_facts
from tests.dataset.test_verify_zip import Members, replaced, rewritten
from tests.pictures import make_pictures_run
from tests.plans import at_random, changed, depth_in, grown, make_plan
from tests.text_recipe import Text, TextDocument, TextSources

DEAD = [3, *range(16, 20)]
FORMATS = {one.suffix: one for one in ImageFormat}
PARK = "backgrounds/bg_001.jpg"


def drawn(output: Output, sample: int) -> bytes:
    """A file of an output as it may be: another one for each sample."""
    source = np.random.default_rng(zlib.crc32(f"{output.name} {sample}".encode()))
    if not output.channels:
        return f"{output.name} of {sample}\0".encode()
    width, height = output.size or (10 + sample, 40 - sample)
    largest = 65535 if output.full_scale == 65535 else 255
    shape = (height, width, 3) if output.channels == 3 else (height, width)
    pixels = source.integers(0, largest + 1, shape).astype(np.uint16 if largest > 255 else np.uint8)
    return encode(pixels, FORMATS[output.suffix], 60)  # type: ignore[arg-type]  # one of its two depths


def made(
    folder: Path,
    recipe: Recipe,
    *,
    dead: Collection[int] = (),
    batches: range | None = None,
    exclude: Collection[str] = (),
    facts: Callable[[int], tuple[int, ...]] | None = None,
) -> Path:
    """The recipe's data set, of some batches; its artifacts are made of `drawn` files."""
    plan, outputs = recipe.plan, {output.name: output for output in recipe.plan.outputs}
    make_folders(folder / "artifacts")
    run = MadeRun(plan, FolderStore(folder / "artifacts"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made_runs, "image", lambda name, sample: drawn(outputs[name], sample))
        for batch in batches or range(plan.layout.batch_count):
            samples = plan.layout.batch_samples(batch)  # type: ignore[arg-type]
            of_batch: Facts = {}
            if recipe.fact_columns:
                of_batch = {
                    one: (facts or partial(made_facts, plan))(one) for one in map(SampleIndex, samples)
                }
            run.publish(range(batch, batch + 1), dead=list(dead), facts=of_batch)
        inputs = MergeInputs(
            recipe=recipe,
            source=run,
            store=run.store,
            contact_sheet=False,
            allow_dead_letters=True,
            partial=batches is not None,
            exclude=frozenset(exclude),
        )
        patch.setattr(
            type(recipe), "recount", lambda _recipe, output, data: made_runs.sums_of_image(output, data)
        )
        return merge(inputs, folder / "data.zip").path


def small(plan: Plan, **parts: Any) -> Plan:
    """The plan with images of 20x12 pixels."""
    document: Any = plan.recipe
    depth = replace(depth_in(plan), size=(20, 12))
    return changed(plan, **{"output": replace(document.output, size=(20, 12)), "depth": depth} | parts)


COMPOSITES = small(make_plan(shard_size=50, batch=8, slice_batches=4))


def odd_names(plan: Plan) -> Plan:
    """Names that CSV must quote, line ends among them."""
    sources: Any = plan.blocks[0].sources
    names = ['a "b",\nc.jpg', "a\n\n.jpg", "a,.jpg"]
    named = (replace(one, name=name) for one, name in zip(sources.backgrounds, sorted(names), strict=True))
    return changed(plan, sources=replace(sources, backgrounds=tuple(named)))


def composites(_folder: Path) -> Recipe:
    return recipe_of(odd_names(COMPOSITES))


def people(_folder: Path) -> Recipe:
    plan = small(make_plan(batch=8), compose=at_random(6, people=(1, 3)))
    return recipe_of(odd_names(plan))


def fine_depth(_folder: Path) -> Recipe:
    depth = replace(
        depth_in(COMPOSITES), encoding=DepthEncoding.RELATIVE, format=ImageFormat.PNG, size=(15, 10)
    )
    return recipe_of(changed(COMPOSITES, depth=depth))


def pictures(folder: Path) -> Recipe:
    run = make_pictures_run(folder)
    return run.recipe(plan_it(run, {}).plan)


def text(_folder: Path) -> Recipe:
    document = TextDocument(times=4, rows=2)
    sources = TextSources(lines=tuple("abcdef"), sha256="0" * 64)
    plan = Plan(
        recipe=document,
        outputs=document.outputs,
        shards=Shards(size=10, slice_batches=2, batch=4),
        blocks=(Block(samples=24, sources=sources),),
    )
    return recipe_of(plan)


RECIPES: dict[str, Callable[[Path], Recipe]] = {
    "composites": composites,
    "people": people,
    "fine_depth": fine_depth,
    "pictures": pictures,
    "text": text,
}


@pytest.fixture(scope="module", autouse=True)
def _known() -> Iterator[None]:
    registry.register(Text())
    yield
    del registry._KINDS["text"]


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The zip of each recipe, with dead letters, made when it is first asked for."""
    there: dict[str, Path] = {}

    def zip_of(name: str) -> Path:
        if name not in there:
            folder = tmp_path_factory.mktemp(name)
            facts = (lambda sample: (sample, 7)) if name == "text" else None
            there[name] = made(folder, RECIPES[name](folder), dead=DEAD, facts=facts)
        return there[name]

    return zip_of


@pytest.fixture
def data_set(data_sets: Callable[[str], Path]) -> Path:
    return data_sets("composites")


def files_in(path: Path) -> dict[int, dict[str, bytes]]:
    """The files of each sample by output, as Python's zipfile finds them."""
    found: dict[int, dict[str, bytes]] = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if "/" in name:
                found.setdefault(int(Path(name).stem), {})[name.split("/")[0]] = archive.read(name)
    return found


def rows_in(path: Path) -> dict[int, list[dict[str, str]]]:
    """The rows of each sample in labels.csv."""
    found: dict[int, list[dict[str, str]]] = {}
    with zipfile.ZipFile(path) as archive:
        for row in csv.DictReader(io.StringIO(archive.read("labels.csv").decode(), newline="")):
            found.setdefault(int(row["sample"]), []).append(row)
    return found


def opened_by_opencv(output: Output, data: bytes) -> Any:
    if not output.channels:
        return data
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels[:, :, ::-1] if output.channels == 3 else pixels


def label(recipe: Recipe, column: str, rows: list[dict[str, str]]) -> Any:
    def value(text: str) -> Any:
        if column in recipe.text_columns:
            return text
        return None if not text else float(text) if "." in text else int(text)

    values = [value(row[column]) for row in rows]
    is_list = recipe.has_several_rows and column not in recipe.sample_columns
    return values if is_list else values[0]


def check_all(path: Path, data: DataSet) -> None:
    """Every sample is what zipfile, OpenCV and csv read."""
    files, rows = files_in(path), rows_in(path)
    assert data.samples.tolist() == sorted(files) == sorted(rows)
    assert len(data) == len(files) > 0
    for index, (number, sample) in enumerate(zip(sorted(files), data, strict=True)):
        assert list(sample) == [*(output.name for output in data.outputs), *data.recipe.label_columns]
        for output in data.outputs:
            expected, found = opened_by_opencv(output, files[number][output.name]), sample[output.name]
            if output.channels:
                assert (
                    found.dtype == expected.dtype == (np.uint16 if output.full_scale == 65535 else np.uint8)
                )
                assert found.shape == expected.shape
                assert (found == expected).all()
            else:
                assert found == expected
        for column in data.recipe.label_columns:
            expected = label(data.recipe, column, rows[number])
            assert sample[column] == expected
            assert type(sample[column]) is type(expected)
            assert data.labels[column][index] == expected
        assert data.encoded(index - len(data)) == files[number]


@pytest.mark.parametrize("name", RECIPES)
def test_a_sample_is_what_other_libraries_read_of_it(
    data_sets: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened_zip, "_PIECE_BYTES", 37)  # line ends and quotes fall on both sides
    monkeypatch.setattr(reader, "_ROWS_AT_ONCE", 5)
    path = data_sets(name)
    with DataSet(path) as data:
        check_all(path, data)
        assert set(data.dead_letters) == {one for one in DEAD if one < data.plan.samples}
        for output in data.outputs:
            if output.full_scale:
                assert data.statistics[output.name].images == len(data)
        beside = [file.sha256 for file in data.recipe.files]
        assert [data.recipe.beside(file).sha256 for file in data.recipe.files] == beside
        assert bool(beside) == (name == "pictures")


def test_columns_have_the_types_of_their_values(data_sets: Callable[[str], Path]) -> None:
    data = DataSet(data_sets("composites"))
    assert list(data.labels) == list(data.recipe.label_columns)
    types = {name: column.dtype for name, column in data.labels.items() if isinstance(column, np.ndarray)}
    assert {types[name] for name in data.recipe.text_columns} == {np.dtype(object)}
    assert {types[name] for name in set(types) - data.recipe.text_columns} <= {
        np.dtype(np.int64),
        np.dtype(float),
    }
    names: Any = data.labels["foreground"]
    assert len({id(name) for name in names}) == len(set(names)) < len(names)
    several = DataSet(data_sets("people"))
    boxes: Any = several.labels["output_x"]
    assert boxes[-1] == several[-1]["output_x"]
    assert boxes[2:4] == [several[2]["output_x"], several[3]["output_x"]]
    assert len({len(one) for one in boxes}) > 1
    empty: Any = several.labels["column"]
    assert empty[0] == [None] * len(boxes[0])


@pytest.mark.parametrize("limits", [ZipLimits(offset=5001, members=10), ZipLimits(offset=0)])
@pytest.mark.parametrize("at_once", [1, 5])
def test_a_large_zip_a_part_and_a_grown_plan_are_read(
    tmp_path: Path, limits: ZipLimits, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zip_writer, "ZipLimits", lambda: limits)
    monkeypatch.setattr(opened_zip, "_SAMPLES_AT_ONCE", at_once)
    plan = grown(COMPOSITES, (1, 1))
    path = made(tmp_path, recipe_of(plan), dead=DEAD, batches=range(1, 24), exclude=[PARK])
    with DataSet(path) as data:
        check_all(path, data)
        assert data.selection.excluded
        assert data.selection.pending
        assert data.samples[-1] > COMPOSITES.samples
        assert list(data.dead_letters) == DEAD[1:]


def test_names_that_have_outgrown_their_digits_are_found(tmp_path: Path) -> None:
    """A plan of ten million samples that has grown: the names of the new ones have a digit more."""
    plan = small(make_plan(backgrounds=1000, foregrounds=500, batch=20))
    plan = grown(plan, (1, 0))
    border = 10_000_000 // 20
    facts = (1, 2, 4, 3, 10, 1000, 1, 2, 2, 1, 2)
    path = made(tmp_path, recipe_of(plan), batches=range(border - 1, border + 2), facts=lambda _sample: facts)
    data = DataSet(path)
    assert data.samples[[0, -1]].tolist() == [9_999_980, 10_000_039]
    files = files_in(path)
    assert [data.encoded(index) for index in range(len(data))] == [files[number] for number in sorted(files)]


def test_indexes_are_whole_numbers_and_end(data_set: Path) -> None:
    data = DataSet(data_set)
    assert data[np.int64(2)]["sample"] == data[2]["sample"] == data.labels_of(2)["sample"] == 2
    assert [one["sample"] for one in data.__getitems__([4, 3, -1])] == [
        data.samples[4],
        data.samples[3],
        59 * 2 + 1,
    ]
    for index in (len(data), -len(data) - 1):
        with pytest.raises(IndexError, match=f"sample {index} of {len(data)}"):
            data[index]
    with pytest.raises(TypeError, match="not a slice"):
        data[1:3]  # type: ignore[index]
    with pytest.raises(TypeError):
        data["fgbg"]  # type: ignore[index]


def test_what_is_handed_out_cannot_be_changed(data_sets: Callable[[str], Path]) -> None:
    data, several = DataSet(data_sets("composites")), DataSet(data_sets("people"))
    lists: Any = several.labels["output_x"]
    for array in (data.samples, *data.labels.values(), several.labels["sample"], lists.values, lists.starts):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]
    mappings: list[Any] = [data.labels, data.statistics, data.dead_letters]
    for mapping in mappings:
        with pytest.raises(TypeError, match="item assignment"):
            mapping["sample"] = None


def test_a_closed_one_says_so_whatever_is_asked(data_sets: Callable[[str], Path]) -> None:
    uses: list[Callable[[DataSet], object]] = [
        lambda data: data[0],
        lambda data: data.encoded(0),
        lambda data: data.labels_of(0),
        lambda data: data.labels,
        lambda data: data.statistics,
        lambda data: data.as_torch()[0],
        lambda data: data.recipe.beside(data.recipe.files[0]),
        lambda data: next(iter(data)),
    ]
    for use in uses:
        data = DataSet(data_sets("pictures"))
        data.close()
        data.close()
        with pytest.raises(ValueError, match=r"data\.zip: is closed$") as caught:
            use(data)
        assert type(caught.value) is ValueError


def test_opening_takes_no_library_that_decodes(data_set: Path) -> None:
    script = (
        "import sys, shardgen\n"
        "assert 'numpy' not in sys.modules\n"
        "data = shardgen.DataSet(sys.argv[1])\n"
        "data.encoded(0), data.labels, data.labels_of(0), data.statistics, data.as_torch(), repr(data)\n"
        "heavy = {'cv2', 'PIL', 'tensorflow', 'keras', 'h5py', 'sqlalchemy', 'typer', 'rich', 'torch'}\n"
        "print(len(data), sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, data_set], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{len(DataSet(data_set))} []\n", done.stderr


def test_a_file_is_given_back_and_python_ends_in_silence(data_set: Path) -> None:
    script = (
        "import gc, os, sys, shardgen\n"
        "before = os.listdir('/proc/self/fd')\n"
        "shardgen.DataSet(sys.argv[1])\n"
        "gc.collect()\n"
        "assert os.listdir('/proc/self/fd') == before\n"
        "from shardgen.storage import files\n"
        "sys._kept = [shardgen.DataSet(sys.argv[1]), files]\n"  # a module that is emptied before they go
    )
    command: list[str | Path] = [sys.executable, "-c", script, data_set]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_threads_share_one(data_set: Path) -> None:
    data, files = DataSet(data_set), files_in(data_set)
    wrong: list[object] = []
    together = threading.Barrier(8)

    def read(seed: int) -> None:
        source = random.Random(seed)  # noqa: S311
        together.wait()
        try:
            for _ in range(300):
                index = source.randrange(len(data))
                number = int(data.samples[index])
                if data.encoded(index) != files[number] or data.labels_of(index)["sample"] != number:
                    wrong.append(index)
        except Exception as error:  # noqa: BLE001 - shown by the test
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


FORKING = """
import os, random, sys
import shardgen

data = shardgen.DataSet(sys.argv[1])
known = [data.encoded(index) for index in range(len(data))]
pixels = data[0]["fgbg"]

def read(seed):
    source = random.Random(seed)
    for _ in range(500):
        index = source.randrange(len(data))
        assert data.encoded(index) == known[index]
    assert data[-1]["sample"] == data.samples[-1]  # labels, and OpenCV, which the parent has used before
    assert (data[0]["fgbg"] == pixels).all()

children = []
for seed in range(3):
    child = os.fork()
    if not child:
        code = 1
        try:
            read(seed)
            code = 0
        finally:
            os._exit(code)
    children.append(child)
read(9)
data.close()
print([os.waitpid(child, 0)[1] for child in children])
"""


def test_forked_processes_share_one(data_set: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKING, data_set], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "[0, 0, 0]\n", done.stderr


def crcs_of(data: DataSet, indexes: range) -> list[list[int]]:
    return [[zlib.crc32(file) for file in data.encoded(index).values()] for index in indexes]


def test_a_spawned_process_opens_it_anew(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data_set.parent)
    data = DataSet(data_set.name)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(crcs_of, data, range(5)).result(timeout=60)
    assert found == crcs_of(data, range(5))
    packed = pickle.dumps((data, data.as_torch(labels=("flip",))))
    assert len(packed) < 2000
    monkeypatch.chdir(tmp_path)
    again, view = pickle.loads(packed)  # noqa: S301
    assert again.encoded(7) == data.encoded(7)
    assert (len(view), view.labels) == (len(data), ("flip",))


def test_another_data_set_under_the_same_name_is_not_taken_for_it(tmp_path: Path) -> None:
    path = made(tmp_path / "one", recipe_of(COMPOSITES))
    packed = pickle.dumps(DataSet(path))
    made(tmp_path / "two", recipe_of(COMPOSITES), dead=DEAD).replace(path)
    with pytest.raises(PlanConflict, match="a different data set"):
        pickle.loads(packed)  # noqa: S301


def test_whatever_byte_is_damaged_nothing_wrong_is_read(data_set: Path, tmp_path: Path) -> None:
    """What is read is right, or ArtifactCorrupt says where it is not; of images it names the member."""
    whole, path = data_set.read_bytes(), tmp_path / "data.zip"
    right = DataSet(data_set)
    labels, statistics = dict(right.labels), right.statistics
    files = [right.encoded(index) for index in range(len(right))]

    def what_is_wrong() -> str | None:
        try:
            with DataSet(path) as data:
                assert [data.encoded(index) for index in range(len(data))] == files
                assert data.statistics == statistics
                assert data.labels_of(1)["sample"] == labels["sample"][1]
                assert all(list(data.labels[name]) == list(labels[name]) for name in labels)
        except ArtifactCorrupt as error:
            return "\n".join([str(error), *error.__notes__])
        return None

    found = []
    for position in [*range(0, len(whole), 1009), *range(len(whole) - 1400, len(whole), 23)]:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x40]) + whole[position + 1 :])
        found.append(what_is_wrong())
    wrong = [one for one in found if one is not None]
    assert len(found) - len(wrong) < 60  # local headers, labels.csv and the card are not read
    assert sum("its bytes do not match its CRC" in one for one in wrong) > 50
    for one in wrong:
        assert one.startswith(f"{path}: ")
        assert one.endswith(f"\nhint: shardgen verify {path}")


def test_a_file_that_is_none_of_ours_is_refused(data_set: Path, tmp_path: Path) -> None:
    whole, path = data_set.read_bytes(), tmp_path / "data.zip"
    for size in (0, 10, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ArtifactCorrupt, match=r"data\.zip: "):
            DataSet(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/00000/0000000.jpg", b"")
    with pytest.raises(ArtifactCorrupt, match=r"holds no labels\.csv"):
        DataSet(path)
    path.unlink()
    with pytest.raises(InputMissing, match="is not there"):
        DataSet(path)
    with pytest.raises(InputMissing, match="a folder"):
        DataSet(tmp_path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A zip of names that need no quotes."""
    return made(tmp_path_factory.mktemp("plain"), recipe_of(COMPOSITES), dead=DEAD).read_bytes()


def second_row_twice(data: bytes) -> bytes:
    header, _, *rows = data.decode().splitlines(keepends=True)
    return "".join([header, rows[0], *rows]).encode()


def in_place_of_900(field: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(b",900,", b"," + field + b",")


@pytest.mark.parametrize(
    ("member", "change", "fact"),
    [
        ("plan.json", lambda data: data + b" ", "plan.json: not in canonical form"),
        ("stats.json", lambda _data: b"[1]", "stats.json: cannot be read"),
        ("stats.json", lambda _data: b"nope", "stats.json: cannot be read"),
        ("stats.json", lambda _data: b"[" * 100_000, "stats.json: cannot be read"),
        ("stats.json", lambda _data: b"{}", "stats.json: cannot be read"),
        ("stats.json", lambda data: data.replace(b"[", b'["x",', 1), "stats.json: cannot be read"),
        (
            "stats.json",
            lambda data: data.replace(b"[\n      0.", b'[\n      "', 1),
            "stats.json: cannot be read",
        ),
        ("stats.json", lambda data: data.replace(b"0.", b"NaN, 0.", 1), "stats.json: cannot be read"),
        ("metadata.csv", lambda data: data[: data.rindex(b"\n", 0, -1) + 1], "or other rows than the 115"),
        ("metadata.csv", lambda data: data + b"x\n", "or other rows than the 115"),
        ("metadata.csv", lambda data: data[:-1], "or other rows than the 115"),
        ("metadata.csv", lambda data: data.replace(b"flip", b"flop", 1), "has another header"),
        ("metadata.csv", second_row_twice, "has rows of other samples"),
        *(
            ("metadata.csv", in_place_of_900(field), "has a field that is no whole number")
            for field in (b"many", b"NaN", b"-Infinity", b"true", b"1e3", b"900.0", b"[900]", b'"900,900"')
        ),
        ("mask/00000/0000000.png", lambda _data: b"no image", "mask/00000/0000000.png: "),
        ("dead_letters.csv", lambda data: data + b"7,hung\n", "dead_letters.csv: has another header, or"),
    ],
)
def test_whole_members_with_wrong_contents_are_named(
    tmp_path: Path, plain: bytes, member: str, change: Callable[[bytes], bytes], fact: str
) -> None:
    path = tmp_path / "data.zip"
    path.write_bytes(plain)
    rewritten(path, replaced(member, change))
    said = []
    uses: list[Callable[[DataSet], object]] = [lambda data: data.statistics, lambda data: data[0]]
    uses.append(lambda data: data.labels)
    for use in uses:
        try:
            use(DataSet(path))
        except ArtifactCorrupt as error:
            said.append(str(error))
    assert all(fact in one for one in said)
    # Nobody reads an image for the labels; a plan that cannot be read stops all.
    assert len(said) == {"metadata.csv": 2, "plan.json": 3, "dead_letters.csv": 3}.get(member, 1)


def without(*names: str) -> Callable[[Members], None]:
    def apply(members: Members) -> None:
        members[:] = [member for member in members if member[0] not in names]

    return apply


def test_a_missing_or_strange_image_is_seen_when_it_is_opened(tmp_path: Path) -> None:
    path = made(tmp_path, recipe_of(COMPOSITES))
    rewritten(path, without("mask/00000/0000030.png"))
    with pytest.raises(ArtifactCorrupt, match="holds 359 images, plan and dead letters say 360"):
        DataSet(path)
    rewritten(path, lambda members: members.insert(91, ("mask/00000/0000030.jpg", b"")))
    with pytest.raises(ArtifactCorrupt, match="from sample 0 on: its directory is not"):
        DataSet(path)


def test_a_gap_between_the_last_members_is_seen_when_it_is_opened(tmp_path: Path, plain: bytes) -> None:
    path = tmp_path / "data.zip"
    path.write_bytes(plain)
    rewritten(path, lambda _members: None, gap_before="dead_letters.csv")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with pytest.raises(ArtifactCorrupt, match=r"dead_letters\.csv: starts at byte"):
        DataSet(path)


def outputs_of(plan: Plan) -> set[str]:
    return {output.name for output in plan.outputs}


def test_no_output_has_the_name_of_a_label(tmp_path: Path) -> None:
    """Both are keys of one dict. Whoever registers a kind adds its richest plan here."""
    plans = {name: RECIPES[name](tmp_path / name) for name in ("people", "pictures", "text")}
    assert {recipe.plan.recipe.kind for recipe in plans.values()} == {kind.name for kind in registry.kinds()}
    for recipe in plans.values():
        assert not outputs_of(recipe.plan) & {*recipe.label_columns, "shard", "batch"}


class StandIn(types.ModuleType):
    """As much of PyTorch as is asked for: a tensor of an array shares its memory and is the array here."""

    @staticmethod
    def from_numpy(array: Any) -> Any:
        assert array.flags.c_contiguous
        return array


def test_a_loader_of_pytorch_gets_planes(
    data_sets: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataSet(data_sets("fine_depth"))
    view = data.as_torch(labels=("sample", "flip", "foreground"))
    monkeypatch.setitem(sys.modules, "torch", StandIn("torch"))
    found, sample = view[5], data[5]
    assert list(found) == ["fgbg", "mask", "depth", "sample", "flip", "foreground"]
    assert found["fgbg"].shape == (3, 12, 20)
    assert (found["fgbg"][2] == sample["fgbg"][:, :, 2]).all()
    assert (found["mask"] == sample["mask"][None]).all()
    assert (found["depth"].dtype, found["depth"].shape) == (np.int32, (1, 10, 15))
    assert (found["depth"][0] == sample["depth"]).all()
    assert found["foreground"] == sample["foreground"]
    assert [one["sample"] for one in view.__getitems__([2, -1])] == [2, data.samples[-1]]
    by_transform = data.as_torch(labels="sample", transform=lambda one: (one["sample"], one["mask"].sum()))
    assert by_transform[-1] == (data.samples[-1], data[-1]["mask"].sum())
    assert set(data.as_torch(labels=())[0]) == {"fgbg", "mask", "depth"}
    assert DataSet(data_sets("text")).as_torch()[0]["said"] == b"said of 0\0"
    with pytest.raises(IndexError):
        view[len(view)]


def test_what_is_lacking_is_said(data_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataSet(data_set)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MachineUnfit, match="PyTorch is not installed") as caught:
        data.as_torch()[0]
    assert caught.value.hint == "python -m pip install torch"
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MachineUnfit, match="TensorFlow is not installed"):
        data.as_tf_data()
    for method in (data.as_torch, data.as_tf_data):
        with pytest.raises(InvalidSettings, match="there is no label 'flop'") as unknown:
            method(labels=("flip", "flop"))
        assert "sample, person, background" in unknown.value.hint


def test_a_label_without_values_is_refused_and_lists_are_not(data_sets: Callable[[str], Path]) -> None:
    data = DataSet(data_sets("people"))
    for method in (data.as_torch, data.as_tf_data):
        with pytest.raises(InvalidSettings, match=f"{method.__name__}.*'column' has no value in some rows"):
            method(labels=("flip", "column"))
    assert data.as_torch(labels=("output_x", "background")).labels == ("output_x", "background")


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_tensorflow_gets_all_samples_in_order(data_sets: Callable[[str], Path], name: str) -> None:
    data = DataSet(data_sets(name))
    lacking = {column for column in data.recipe.label_columns if None in np.ravel(first(data.labels[column]))}
    labels = [column for column in data.recipe.label_columns if column not in lacking]
    found = data.as_tf_data(labels=labels)
    assert len(found) == len(data)
    for output in data.outputs:
        shape = found.element_spec[output.name].shape.as_list()
        size = [None, None] if output.size is None else [output.size[1], output.size[0]]
        assert shape == ([*size, output.channels] if output.channels else [])
    for tensors, sample in zip(found, data, strict=True):
        for key in [output.name for output in data.outputs] + labels:
            value = tensors[key].numpy()
            if isinstance(sample[key], np.ndarray):
                assert value.dtype == sample[key].dtype
                assert (value.reshape(sample[key].shape) == sample[key]).all()
            else:
                plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
                assert decoded(plain) == decoded(sample[key])
    if lacking:
        with pytest.raises(InvalidSettings, match="has no value in some rows"):
            data.as_tf_data(labels=tuple(lacking))


def first(column: Any) -> Any:
    return np.array(column[0], object)


def decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [decoded(one) for one in value]
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.slow
def test_tensorflow_gets_another_order_each_time_and_the_same_again(data_set: Path) -> None:
    def orders() -> list[list[int]]:
        data = DataSet(data_set).as_tf_data(shuffle_seed=5)
        return [[int(one) for batch in data.batch(16) for one in batch["sample"]] for _ in range(2)]

    one, two = orders()
    assert sorted(one) == sorted(two) == DataSet(data_set).samples.tolist()
    assert one != two
    assert max(one[:20]) > 60  # all are shuffled, not neighbours only
    assert orders() == [one, two]
