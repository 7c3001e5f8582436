"""Some generated files of every kind; `test_bulk.py` takes all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import pytest

from shardgen.errors import SourceUndecodable
from shardgen.imaging.codec import decode, probe
from tests.imaging.bulk import generated
from tests.imaging.generated.cases import Case, Expect, Verdict, judge

A_KIND = 12  # files of each kind, spread over all there are


@pytest.fixture(scope="module")
def kinds() -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = defaultdict(list)
    for case in generated():
        kind = (
            case.name.split("/")[1].split(" ")[0]
            if case.container in {"profile", "other"}
            else case.name.split("/")[1]
        )
        found[f"{case.container}/{kind}"].append(case)
    return found


def test_files_of_every_kind_are_right_or_refused(kinds: dict[str, list[Case]]) -> None:
    wrong = {}
    for cases in kinds.values():
        for case in cases[:: -(-len(cases) // A_KIND)]:
            outcome = judge(case, decode)
            if outcome.verdict is Verdict.DIFFERS and case.expect is not Expect.MEASURED:
                wrong[case.name] = outcome.reason
    assert not wrong


def test_headers_say_the_size_that_decoding_gives(kinds: dict[str, list[Case]]) -> None:
    """Whatever decodes; and what is refused by its headers is not decoded either."""
    wrong, read = {}, set()
    for kind, cases in kinds.items():
        for case in cases[:: -(-len(cases) // A_KIND)]:
            found, made = _size(probe, case.data), _size(_decoded_size, case.data)
            if made is None:
                continue
            read.add(kind.split("/")[0])
            if found != made:
                wrong[case.name] = (found, made)
    assert not wrong
    assert {"JPEG", "PNG", "WebP", "BMP", "TIFF"} <= read


def _decoded_size(data: bytes) -> tuple[int, int]:
    photo = decode(data)
    return photo.width, photo.height


def _size(of: Callable[[bytes], tuple[int, int]], data: bytes) -> tuple[int, int] | None:
    try:
        return of(data)
    except SourceUndecodable:
        return None


def test_names_tell_the_files_apart(kinds: dict[str, list[Case]]) -> None:
    names = [case.name for cases in kinds.values() for case in cases]
    assert len(set(names)) == len(names)
