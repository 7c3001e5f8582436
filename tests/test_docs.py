from __future__ import annotations

import ast
import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from shardgen.cli.app import app
from shardgen.cli.commands import LINES, load

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
]
PACKAGE = ROOT / "shardgen"
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
# Of a run directory or a zip, not of the package's folders of the same names.
OF_A_RUN = re.compile(r"artifacts/(\.staging/|folder-id|requeued/)|depth/(\d|sub/)")


def _example_lines(text: str) -> list[str]:
    return [line.strip() for line in text.partition("Example:")[2].splitlines() if line.strip()]


@pytest.mark.parametrize("name", sorted(LINES))
def test_the_help_lists_each_command_with_the_first_line_of_its_own(name: str) -> None:
    assert LINES[name] == load(name).help.splitlines()[0]


@pytest.mark.parametrize("name", sorted(set(LINES) - {"weights"}))
def test_every_command_has_help_and_an_example_that_parses(name: str) -> None:
    group = typer.main.get_command(app)
    text = group.get_command(None, name).help or ""  # type: ignore[attr-defined]
    first = text.splitlines()[0]
    assert first.endswith("."), first
    assert len(first) <= 65, first  # the list of commands cuts longer ones off
    examples = _example_lines(text)
    assert examples, f"{name} has no example"
    for example in examples:
        program, command, *arguments = shlex.split(example)
        assert (program, command) == ("shardgen", name)
        found = group.get_command(None, command)  # type: ignore[attr-defined]
        found.make_context(command, [*arguments], resilient_parsing=False)


def test_the_readme_shows_every_command_but_the_rare_ones() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in LINES:
        if name not in ("doctor", "weights"):
            assert f"shardgen {name}" in readme, name


def test_the_readme_is_short_and_so_is_its_picture() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 130
    (picture,) = re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme)
    assert (ROOT / picture).stat().st_size <= 200_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target.read_text(encoding="utf-8")), f"{link}#{anchor}"
    for module in re.findall(r"python -m (benchmarks\.\w+)", text):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_product_on_a_page_is_right(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\n", " ").replace("\N{MULTIPLICATION SIGN}", "x")
    number = r"[\d,]+(?: [a-z]+| \([a-z]+\))*"
    for product, result in re.findall(rf"((?:{number} x )+{number}) = ([\d,]+)", text):
        factors = [int(one) for one in re.findall(r"\d+", product.replace(",", ""))]
        assert math.prod(factors) == int(result.replace(",", "")), product


def _anchors(text: str) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_exit_code_is_documented() -> None:
    from shardgen import errors  # noqa: PLC0415
    from shardgen.worker.heartbeat import EXIT_HUNG  # noqa: PLC0415

    text = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    documented: set[int] = set()
    for first, last in re.findall(r"^\| (\d+)(?:-(\d+))?[ ,]", text, re.MULTILINE):
        documented |= set(range(int(first), int(last or first) + 1))
    codes = {
        value.exit_code
        for value in vars(errors).values()
        if isinstance(value, type)
        and issubclass(value, errors.ShardgenError)
        and not value.__subclasses__()
        and not issubclass(value, errors.SampleError)
    }
    assert codes | {EXIT_HUNG} <= documented


def test_the_documented_answers_of_a_server_are_those_of_the_code() -> None:
    from shardgen.manifest.postgres_errors import ANSWERS  # noqa: PLC0415

    text = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    row = r"^\| (\w{2,5}) \| (.+) \| (waits|says so at once) \| (\d+) \|$"
    assert re.findall(row, text, re.MULTILINE) == [
        (one.code, one.fact, "waits" if one.passes else "says so at once", str(one.kind.exit_code))
        for one in ANSWERS
    ]
    assert [one.code for one in ANSWERS] == sorted({one.code for one in ANSWERS})


def test_the_documented_objects_of_a_bucket_are_those_of_the_code() -> None:
    from shardgen.coordination.bucket.plan import begun_entry  # noqa: PLC0415
    from shardgen.coordination.bucket.rows import Sample, SignOfLife, Version  # noqa: PLC0415

    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8").partition("## 8. A bucket")[2]
    documented = [set(re.findall(r'[{,] ?"(\w+)"', one)) for one in re.findall(r"`\[?({[^`]+})\]?`", text)]
    for kind, more in ((Version, {"nonce"}), (Sample, set()), (SignOfLife, set())):
        assert set(kind.model_fields) | more in documented, kind.__name__
    assert set(json.loads(begun_entry("0" * 64))) in documented


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_the_checkout_that_a_page_names_exists(page: Path) -> None:
    tops = {one.name for root in (ROOT, PACKAGE) for one in root.iterdir() if one.is_dir()}
    for code in re.findall(r"`([\w./:-]+)`", page.read_text(encoding="utf-8")):
        path, _, name = code.partition("::")
        if path.endswith(".py") and "/" not in path:
            assert [*PACKAGE.rglob(path), *(ROOT / "tests").rglob(path)], code
        elif "/" in path and path.partition("/")[0] in tops and not OF_A_RUN.match(path):
            at = next((root / path for root in (ROOT, PACKAGE) if _is_there(root / path)), None)
            assert at is not None, code
            module, name = (at, name) if at.exists() else (at.with_suffix(".py"), name or at.suffix[1:])
            if name and module.exists():
                assert re.search(rf"\b(?:def|class) {name}\b", module.read_text(encoding="utf-8")), code


def _is_there(path: Path) -> bool:
    """A file or folder, a module without its suffix, or `module.name`."""
    return path.exists() or path.with_name(path.name + ".py").exists() or path.with_suffix(".py").exists()


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[[\w./-]+\]\(([\w./-]+)\) \|", index, re.MULTILINE)
    assert len(listed) == len(set(listed))
    pages = {page for page in PAGES if page.name != "README.md"}
    assert {(ROOT / "docs" / one).resolve() for one in listed} == pages


def test_decisions_are_in_the_groups_that_the_page_lists_and_have_no_numbers() -> None:
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    groups = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert re.findall(r"^\[(.+)\]\(#[\w-]+\)(?: ·)?$", text, re.MULTILINE) == groups
    for group in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
        assert re.search(r"^- \*\*", group, re.MULTILINE)
    pointer = re.compile(r"decisions?(?:\.md)?,? #?\d")
    sources = [page for folder in ("shardgen", "tests", "benchmarks", "training", "migrations")
               for page in (ROOT / folder).rglob("*.py")]  # fmt: skip
    assert [page for page in (*PAGES, *sources) if pointer.search(page.read_text(encoding="utf-8"))] == []


def test_glossary_words_are_the_codes_words() -> None:
    defined = {
        name for page in PACKAGE.rglob("*.py") for name in _defined_in(ast.parse(page.read_text("utf-8")))
    }
    rows = [row[2:-2].split(" | ") for row in GLOSSARY.splitlines() if row.startswith("| **")]
    assert len(rows) > 70
    words = [word for row in rows for word in re.findall(r"\*\*([\w -]+)\*\*", row[0])]
    assert len(words) == len(set(words))
    for _, _, names in rows:
        found = re.findall(r"`([^`]+)`", names)
        assert ", ".join(f"`{one}`" for one in found) == names
        for name in found:
            assert name in defined or ("/" in name and (PACKAGE / name).exists()), name


def _defined_in(tree: ast.Module | ast.ClassDef, of: str = "") -> Iterator[str]:
    """Classes, functions and values of a module, and members of its classes as `Class.member`."""
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name):
                yield name
                yield from _defined_in(node, f"{name}.")
            case ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                yield of + name
            case ast.Assign(targets=[ast.Name(id=name)]):
                yield of + name
            case _:
                pass


def test_no_name_is_of_another_vocabulary() -> None:
    banned = re.compile(r"\b(?:class|def)\s+\w*(?:[Jj]ob|[Tt]ask|[Cc]hunk|[Ee]poch)\w*")
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "containers":
            continue  # PNG and WebP files are made of chunks
        assert not banned.search(path.read_text(encoding="utf-8")), path
