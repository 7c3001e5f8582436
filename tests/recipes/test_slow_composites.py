"""The slow implementation itself: published words, and cases small enough to be worked out on paper."""

from __future__ import annotations

import numpy as np
import pytest

from tests.imaging.slow_reference import SlowCutOut
from tests.recipes.slow_composites import (
    HALVED,
    Height,
    Person,
    Size,
    Slow,
    composite,
    draw,
    frame_size,
    integer,
    on_grid,
    philox,
    words,
)

LARGEST_SEED = 2**63 - 1
SIZES = [(37, 55), (61, 29), (25, 25)]


def test_philox_gives_the_words_that_its_authors_publish() -> None:
    ones = 2**64 - 1
    assert philox([0] * 4, [0] * 2) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]
    assert philox([ones] * 4, [ones] * 2) == [
        0x87B092C3013FE90B,
        0x438C3C67BE8D0224,
        0x9CC7D7C69CD777B6,
        0xA09CAEBF594F0BA0,
    ]


@pytest.mark.parametrize("seed", [0, 1, 12_345, LARGEST_SEED - 1, LARGEST_SEED])
@pytest.mark.parametrize("sample", [0, 1, 10**9, 2**32, 2**40 + 5, 2**62])
def test_words_are_those_of_numpy(seed: int, sample: int) -> None:
    raw = np.random.Philox(counter=[0, 0, sample, 0], key=[seed, 0]).random_raw(16)
    assert words(sample=sample, seed=seed, count=16) == raw.tolist()


def test_words_stay_as_they_are() -> None:
    assert words(sample=0, seed=0, count=6) == [
        213000021201967259,
        4455796210202625458,
        2055444239878205049,
        10411612076246414556,
        9267267987884836803,
        5120919030223861725,
    ]
    assert words(sample=2**40 + 5, seed=LARGEST_SEED, count=6) == [
        5598203098197255573,
        16398903530874508753,
        6580527631671562487,
        16030606970696822389,
        2376415028043332634,
        876902372063707025,
    ]


def test_an_integer_of_a_word_reaches_both_ends() -> None:
    assert [integer(word, -2, 1) for word in (0, 2**62 - 1, 2**62, 2**63, 2**64 - 1)] == [-2, -2, -1, 0, 1]


@pytest.mark.parametrize(
    ("full", "height", "word", "expected"),
    [
        ((100, 50), HALVED, 0, (50, 25)),
        ((100, 50), 25, 0, (50, 25)),
        ((30, 20), 1, 0, (2, 1)),  # 1.5
        ((1, 50), 10, 0, (1, 10)),  # 0.2
        ((20, 20), 60, 0, (48, 48)),
        ((100, 50), 40, 0, (60, 30)),
        ((101, 50), 40, 0, (59, 29)),  # 30 would be 60.6 wide
        ((20, 20), (300, 600), 0, (15, 15)),  # 14.4 to 28.8
        ((20, 20), (300, 600), 2**64 - 1, (28, 28)),
    ],
)
def test_sizes_of_frames(full: Size, height: Height, word: int, expected: Size) -> None:
    assert frame_size(full, (60, 48), height, word) == expected


def drawn(
    *,
    sample: int,
    seed: int,
    count_range: tuple[int, int],
    pool: list[int],
    first: int,
    flip: int,
    mirrors: bool,
    height: Height,
    overhang: int,
) -> list[tuple[int, ...]]:
    people = draw(
        sample=sample,
        seed=seed,
        count_range=count_range,
        pool=pool,
        first=first,
        flip=flip,
        mirrors=mirrors,
        canvas=(63, 49),
        sizes=SIZES,
        height=height,
        overhang=overhang,
    )
    return [(one.foreground, int(one.mirrored), *one.frame) for one in people]


def test_whole_draws_stay_as_they_are() -> None:
    alone = drawn(
        sample=0,
        seed=0,
        count_range=(1, 1),
        pool=[0, 1, 2],
        first=1,
        flip=0,
        mirrors=False,
        height=HALVED,
        overhang=0,
    )
    assert alone == [(1, 0, 1, 5, 61, 29)]
    three = drawn(
        sample=2**40 + 5,
        seed=LARGEST_SEED,
        count_range=(3, 3),
        pool=[0, 1, 2],
        first=2,
        flip=0,
        mirrors=True,
        height=20,
        overhang=1000,
    )
    assert three == [(2, 0, -10, -17, 20, 20), (1, 1, -16, -11, 42, 20), (0, 0, 2, 6, 13, 20)]
    run_out = drawn(
        sample=10**9,
        seed=0,
        count_range=(3, 3),
        pool=[0, 1],
        first=0,
        flip=1,
        mirrors=False,
        height=(1, 1000),
        overhang=0,
    )
    assert run_out == [(0, 0, 39, 6, 24, 36), (1, 0, 0, 7, 63, 30)]


def square(side: int, level: int, *, matte: int = 255) -> SlowCutOut:
    return SlowCutOut(
        pixels=np.full((side, side, 3), level, np.uint8),
        matte=np.full((side, side), matte, np.uint8),
        mask=np.ones((side, side), np.bool_),
    )


def painted(
    *people: tuple[int, int, int, int],
    canvas: Size = (10, 8),
    output: Size | None = None,
    matte: int = 255,
    by_alpha: bool = False,
) -> Slow:
    """Squares of x, y, side and level on black."""
    return composite(
        np.zeros((canvas[1], canvas[0], 3), np.uint8),
        [
            (
                Person(foreground=number, mirrored=False, x=x, y=y, width=side, height=side),
                square(side, level, matte=matte),
            )
            for number, (x, y, side, level) in enumerate(people)
        ],
        output=output or canvas,
        by_alpha=by_alpha,
        by_halving=False,
    )


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_squares_the_lower_one_is_in_front(order: int) -> None:
    made = painted(*[(1, 1, 4, 70), (3, 3, 4, 90)][::order])
    assert [one.frame[:2] for one in made.people] == [(1, 1), (3, 3)]
    assert made.boxes == ((1, 1, 4, 4, 12, 750, 1, 1, 4, 4, 12), (3, 3, 4, 4, 16, 1000, 3, 3, 4, 4, 16))
    assert "".join(str(value) for value in made.instances[3]) == "0112222000"
    assert made.fgbg[3, :, 0].tolist() == [0, 70, 70, 90, 90, 90, 90, 0, 0, 0]
    assert made.mask[3].tolist() == [0, *[255] * 6, 0, 0, 0]
    assert np.array_equal(made.mask_output, made.mask)


def test_of_equal_lower_edges_the_one_drawn_later_is_in_front() -> None:
    made = painted((3, 2, 4, 90), (2, 4, 2, 70))
    assert [one.foreground for one in made.people] == [0, 1]
    assert made.boxes[0] == (3, 2, 4, 4, 14, 875, 3, 2, 4, 4, 14)


def test_who_is_hidden_has_zeros_and_keeps_a_number() -> None:
    made = painted((4, 2, 3, 50), (3, 1, 5, 90), (12, 6, 2, 70), canvas=(12, 9))
    assert made.boxes[0] == (0,) * 11
    assert made.boxes[1][:6] == (3, 1, 5, 5, 25, 1000)
    assert made.boxes[2] == (0,) * 11
    assert sorted(set(made.instances.ravel().tolist())) == [0, 2]


def test_of_a_figure_half_outside_what_is_inside_counts() -> None:
    made = painted((-2, 6, 4, 90))
    assert made.boxes == ((0, 6, 2, 2, 4, 250, 0, 6, 2, 2, 4),)


def test_an_instance_has_the_larger_share_and_in_front_wins_a_tie() -> None:
    tie = painted((0, -1, 2, 50), (0, 1, 2, 60), canvas=(2, 2), output=(1, 1))
    assert tie.instances.tolist() == [[2]]
    assert tie.boxes == ((0, 0, 2, 1, 2, 500, 0, 0, 1, 1, 1), (0, 1, 2, 1, 2, 500, 0, 0, 1, 1, 1))
    most = painted((0, 0, 2, 50), (1, 1, 1, 60), canvas=(2, 2), output=(1, 1))
    assert most.instances.tolist() == [[1]]
    assert [one[6:] for one in most.boxes] == [(0, 0, 1, 1, 1), (0, 0, 0, 0, 0)]


def test_a_pixel_covered_by_less_than_half_is_nobodys() -> None:
    made = painted((0, 0, 1, 50), canvas=(2, 2), output=(1, 1))
    assert made.mask_output.tolist() == [[64]]
    assert made.instances.tolist() == [[0]]


def test_alpha_is_laid_over_alpha() -> None:
    made = painted((0, 0, 1, 255), (0, 0, 1, 255), canvas=(1, 1), matte=51, by_alpha=True)
    assert made.fgbg[0, 0].tolist() == [92] * 3  # 51, then 0.2 * 255 + 0.8 * 51
    assert made.boxes[0] == (0,) * 11


def test_the_last_place_of_a_grid_touches_the_edge_and_a_single_one_is_centred() -> None:
    person = on_grid(
        foreground=0, flip=1, mirrors=True, size=(5, 4), canvas=(20, 11), grid=(4, 1), place=(3, 0)
    )
    assert person.frame == (15, 3, 5, 4)
    assert person.mirrored
