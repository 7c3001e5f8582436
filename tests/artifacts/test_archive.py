from __future__ import annotations

import hashlib
import io
import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgen.artifacts.archive import build_artifact, read_artifact
from shardgen.artifacts.check import examine
from shardgen.artifacts.names import ArtifactName
from shardgen.domain.identifiers import Fence, SampleIndex, ShardIndex, SliceIndex
from shardgen.domain.lease import Attempt
from shardgen.errors import ArtifactCorrupt
from tests.artifacts.attempts import why_not_whole
from tests.dataset.made_runs import WORKER, batch_content
from tests.plans import make_plan

PLAN = make_plan(batch=4)
ATTEMPT = Attempt(shard=ShardIndex(0), slice=SliceIndex(0), fence=Fence(3), worker=WORKER)


def artifact() -> bytes:
    contents = [
        batch_content(PLAN, 0),
        batch_content(PLAN, 1, dead=[5]),
        batch_content(PLAN, 2, dead=range(8, 12)),
    ]
    return build_artifact(PLAN.fingerprint, ATTEMPT, contents)[0]


def test_an_artifact_opens_with_zipfile_and_its_members_are_stored_files_of_1980() -> None:
    with zipfile.ZipFile(io.BytesIO(artifact())) as archive:
        assert archive.testzip() is None
        infos = archive.infolist()
    assert infos[0].filename == "fgbg/00000/0000000.jpg"
    assert infos[1].filename == "mask/00000/0000000.png"
    assert infos[-1].filename == "receipt.json"
    for info in infos:
        assert info.compress_type == zipfile.ZIP_STORED
        assert info.date_time == (1980, 1, 1, 0, 0, 0)
        assert (info.flag_bits, info.extra, info.create_system) == (0, b"", 3)
        assert (info.create_version, info.extract_version) == (20, 20)
        assert info.external_attr == 0o100644 << 16
        assert stat.S_ISREG(info.external_attr >> 16)


def test_receipt_json_is_canonical_and_holds_no_detail() -> None:
    with zipfile.ZipFile(io.BytesIO(artifact())) as archive:
        data = archive.read("receipt.json")
    content = json.loads(data)
    assert data == json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert set(content) == {"fingerprint", "shard", "slice", "fence", "worker", "batches"}
    assert content["batches"][1]["dead_letters"] == [{"sample": 5, "reason": "compose"}]
    assert content["batches"][0]["members"] == [0, 12]
    assert content["batches"][2]["members"] == [21, 21]
    assert set(content["batches"][0]["sums"]["mask"]) == {"images", "pixels", "sum", "squares"}


def test_members_sha256_runs_from_the_first_local_header_to_the_end_of_the_last_data() -> None:
    data = artifact()
    _, receipt = read_artifact(data, name="a.zip")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
    second, after = infos[12], infos[21]
    expected = hashlib.sha256(data[second.header_offset : after.header_offset]).hexdigest()
    assert receipt.batches[1].members_sha256 == expected
    assert receipt.batches[2].members_sha256 == hashlib.sha256(b"").hexdigest()


def test_an_artifact_reads_back_as_it_was_built() -> None:
    contents = [batch_content(PLAN, 0), batch_content(PLAN, 1)]
    data, built = build_artifact(PLAN.fingerprint, ATTEMPT, contents)
    entries, read = read_artifact(data, name="a.zip")
    assert read == built
    members = [member for content in contents for member in content.members]
    assert [(entry.name, data[entry.data_offset : entry.stop]) for entry in entries] == members
    assert why_not_whole(data, name="a.zip", fingerprint=PLAN.fingerprint) is None


def test_the_same_batches_give_the_same_bytes() -> None:
    assert artifact() == artifact()


def test_an_artifact_of_another_plan_is_not_whole() -> None:
    why = why_not_whole(artifact(), name="a.zip", fingerprint="0" * 64)
    assert why is not None
    assert "another plan" in why


@given(st.data())
def test_an_artifact_with_any_byte_flipped_is_not_whole(data: st.DataObject) -> None:
    whole = artifact()
    position = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[position] ^= data.draw(st.integers(1, 255))
    why = why_not_whole(bytes(flipped), name="a.zip", fingerprint=PLAN.fingerprint)
    assert why is not None
    assert why.startswith("a.zip: ")


@given(st.integers(0, len(artifact()) - 1))
def test_a_truncated_artifact_is_not_whole(size: int) -> None:
    assert why_not_whole(artifact()[:size], name="a.zip", fingerprint=PLAN.fingerprint) is not None


def with_receipt(change: Callable[[dict[str, object]], object]) -> bytes:
    """The artifact with another receipt.json whose CRC and directory are right."""
    data = artifact()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        content = json.loads(archive.read("receipt.json"))
        members = [(info.filename, archive.read(info)) for info in archive.infolist()[:-1]]
    change(content)
    receipt = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    body, directory = b"", b""
    for name, member in [*members, ("receipt.json", receipt)]:
        fields = (0, 0, 0, 33, zlib.crc32(member), len(member), len(member), len(name), 0)
        directory += struct.pack(
            "<4s2B5H3I5H2I", b"PK\1\2", 20, 3, 20, *fields, 0, 0, 0, 0o100644 << 16, len(body)
        )
        directory += name.encode()
        body += struct.pack("<4s5H3I2H", b"PK\3\4", 20, *fields) + name.encode() + member
    count = len(members) + 1
    return (
        body
        + directory
        + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    )


def test_the_independent_writer_of_this_test_makes_the_same_bytes() -> None:
    assert with_receipt(lambda _content: None) == artifact()


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda content: content.pop("fence"), "fence"),
        (lambda content: content.update(fence="3"), "fence"),
        (lambda content: content.update(host="there"), "host"),
        (lambda content: content["batches"][1].update(batch=7), "batch 7"),
        (lambda content: content["batches"][1].update(members=[11, 21]), "do not follow"),
        (lambda content: content["batches"][2].update(members=[21, 22]), "22"),
        (lambda content: content["batches"][0]["sums"]["mask"].update(sum=[1, 2]), "channels"),
        (lambda content: content["batches"][1]["dead_letters"][0].update(reason="bored"), "reason"),
        (lambda content: content.update(batches=[]), "without a batch"),
    ],
)
def test_a_receipt_json_that_contradicts_itself_is_refused_by_name_and_fact(
    change: Callable[[dict[str, object]], object], fact: str
) -> None:
    with pytest.raises(ArtifactCorrupt, match=fact) as raised:
        read_artifact(with_receipt(change), name="a.zip")
    assert str(raised.value).startswith("a.zip: ")


def with_facts(facts: object) -> Callable[[dict[str, object]], object]:
    return lambda content: content["batches"][0].update(facts=facts)  # type: ignore[index]


def test_facts_stand_in_receipt_json_by_sample_and_read_back() -> None:
    facts = {SampleIndex(3): (7, -1), SampleIndex(0): (0,), SampleIndex(2): (10**15 - 1,)}
    data, built = build_artifact(HEADER, [replace(batch_content(PLAN, 0), facts=facts)])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        content = json.loads(archive.read("receipt.json"))
    assert content["batches"][0]["facts"] == [[0, 0], [2, 10**15 - 1], [3, 7, -1]]
    _, read = read_artifact(data, name="a.zip")
    assert read.batches[0].facts == built.batches[0].facts == facts
    assert read_artifact(with_receipt(with_facts([[0, 1], [1, 2]])), name="a.zip")


@pytest.mark.parametrize(
    "facts",
    [
        [[0, 1.5]],
        [[0, 1.0]],
        [[0, True]],
        [[0, "1"]],
        [[0, None]],
        [[0, 10**40]],
        [[0]],
        [[1, 0], [0, 0]],
        [[0, 1], [0, 1]],
        {"0": [1]},
    ],
    ids=str,
)
def test_facts_that_are_no_integers_by_sample_are_refused(facts: object) -> None:
    with pytest.raises(ArtifactCorrupt, match=r"facts|canonical"):
        read_artifact(with_receipt(with_facts(facts)), name="a.zip")


@pytest.mark.parametrize("facts", [(), (1.5,), (True,), (10**15,)], ids=str)
def test_facts_that_could_not_be_read_back_are_not_written(facts: tuple[int, ...]) -> None:
    content = replace(batch_content(PLAN, 0), facts={SampleIndex(0): facts})
    with pytest.raises(ValueError, match="whole numbers"):
        build_artifact(HEADER, [content])


@pytest.mark.parametrize("value", [1.5, 1.0, True, None, [1]], ids=str)
def test_a_provenance_of_other_than_texts_and_integers_is_refused(value: object) -> None:
    def change(content: Any) -> None:
        content["batches"][0]["provenance"]["micro_batch"] = value

    with pytest.raises(ArtifactCorrupt, match=r"provenance|canonical"):
        read_artifact(with_receipt(change), name="a.zip")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["batches"][0]["sums"].pop("mask"),
        lambda content: content["batches"][0]["sums"].update(extra=content["batches"][0]["sums"]["mask"]),
        lambda content: content["batches"][0]["sums"]["mask"].update(images=3),
        lambda content: content["batches"][0]["sums"]["mask"].update(sum=[1, 2], squares=[1, 2]),
        lambda content: content["batches"][1].update(dead_letters=[]),
        lambda content: content["batches"][1].update(facts=[[5, 1]]),
        lambda content: content["batches"][1].update(facts=[[0, 1]]),
    ],
    ids=[
        "no mask",
        "another output",
        "images",
        "channels",
        "letter",
        "facts of the dead",
        "of another batch",
    ],
)
def test_a_receipt_json_that_is_well_formed_but_contradicts_the_plan_is_refused(
    change: Callable[[dict[str, object]], object],
) -> None:
    name = ArtifactName(
        shard=ShardIndex(0), batches=range(3), fence=Fence(3), worker=WORKER[-8:], random="00000000"
    )
    assert len(examine(PLAN, name, artifact())) == 3
    with pytest.raises(ArtifactCorrupt, match="contradicts itself or the plan"):
        examine(PLAN, name, with_receipt(change))


def test_a_receipt_json_whose_bytes_are_not_those_of_its_crc_is_refused() -> None:
    data = artifact()
    assert data.count(b'"fence":3') == 1
    with pytest.raises(ArtifactCorrupt, match="CRC"):
        read_artifact(data.replace(b'"fence":3', b'"fence":4'), name="a.zip")


def test_a_batch_must_follow_the_one_before() -> None:
    with pytest.raises(ValueError, match="consecutive"):
        build_artifact(PLAN.fingerprint, ATTEMPT, [batch_content(PLAN, 0), batch_content(PLAN, 2)])


@given(
    shard=st.integers(0, 10**6),
    first=st.integers(0, 10**9),
    count=st.integers(1, 300),
    fence=st.integers(1, 10**6),
)
def test_an_artifact_name_reads_back(shard: int, first: int, count: int, fence: int) -> None:
    name = ArtifactName(
        shard=ShardIndex(shard),
        batches=range(first, first + count),
        fence=Fence(fence),
        worker="0abc1234",
        random="zz99aa00",
    )
    assert ArtifactName.parse(str(name)) == name


def test_artifact_names_look_as_documented() -> None:
    one = ArtifactName(
        shard=ShardIndex(1), batches=range(3125, 3126), fence=Fence(7), worker="0abc1234", random="deadbeef"
    )
    assert str(one) == "shard-00001/batch-00003125.f0007.0abc1234.deadbeef.zip"
    assert "batch-00003125-00003127.f" in str(
        ArtifactName(
            shard=ShardIndex(1),
            batches=range(3125, 3128),
            fence=Fence(7),
            worker="0abc1234",
            random="deadbeef",
        )
    )


@pytest.mark.parametrize(
    "name",
    [
        "shard-00001/batch-00003125.f0007.0abc1234.deadbeef.zip.tmp",
        "../shard-00001/batch-00003125.f0007.0abc1234.deadbeef.zip",
        "shard-00001/batch-00003125-00003125.f0007.0abc1234.deadbeef.zip",
        "shard-00001/batch-3125.f0007.0abc1234.deadbeef.zip",
        "shard-00001/batch-00003125.f0007.deadbeef.zip",
    ],
)
def test_other_names_are_no_artifacts(name: str) -> None:
    assert ArtifactName.parse(name) is None
