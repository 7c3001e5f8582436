from __future__ import annotations

from shardgen.domain.remarks import Remark, grouped


def of(name: str, reason: str, hint: str = "mend it", folder: str = "scenes") -> Remark:
    return Remark(folder=folder, names=(name,), reason=reason, hint=hint)


def test_what_differs_in_numbers_alone_is_one_remark_with_the_numbers_beside_the_names() -> None:
    (group,) = grouped(
        [
            of("a.jpg", "its mask file has 30x31 pixels, the photograph 30x30"),
            of("b.jpg", "its mask file has 1200x5 pixels, the photograph 30x30"),
        ]
    )
    assert group == Remark(
        folder="scenes",
        names=("a.jpg", "b.jpg"),
        details=("30x31", "1200x5"),
        reason="its mask file has … pixels, the photograph 30x30",
        hint="mend it",
    )


def test_punctuation_stays_in_the_reason() -> None:
    (group,) = grouped([of("a", "short (1,234 bytes)"), of("b", "short (7 bytes)")])
    assert (group.reason, group.details) == ("short (… bytes)", ("1,234", "7"))


def test_another_reason_hint_or_folder_is_a_remark_of_its_own_and_the_largest_comes_first() -> None:
    groups = grouped(
        [
            of("a", "empty"),
            of("b", "empty", hint="copy it"),
            of("c", "empty", folder="people"),
            Remark(folder="scenes", reason="3 files left out"),
            of("d", "broken"),
            of("e", "broken"),
        ]
    )
    assert [group.names for group in groups] == [("d", "e"), ("a",), ("b",), ("c",), ()]
    assert all(not group.details for group in groups)


def test_details_that_were_there_stay_beside_their_names() -> None:
    copies = [
        Remark(folder="scenes", names=(name,), details=(of_what,), reason="the same content as …")
        for name, of_what in (("b", "a1"), ("c", "a2"))
    ]
    (group,) = grouped(copies)
    assert (group.names, group.details) == (("b", "c"), ("a1", "a2"))
