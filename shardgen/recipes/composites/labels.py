"""The rows of `labels.csv` for composites: one per person (docs/formats.md: "Final zip")."""

from __future__ import annotations

from collections.abc import Container
from functools import lru_cache

from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.receipt import Facts
from shardgen.imaging.options import Rectangle
from shardgen.recipes.base import WrongFacts, csv_field
from shardgen.recipes.composites.placement import Placement
from shardgen.recipes.composites.plan import CompositesPlan, Flips

FACTS = (
    *("x", "y", "width", "height", "area", "visible"),
    *("output_x", "output_y", "output_width", "output_height", "output_area"),
)
"""Of a person: what is visible of its mask, on the canvas and in the stored images."""
COLUMNS = (
    *("sample", "person", "background", "foreground", "flip", "column", "row"),
    *("frame_x", "frame_y", "frame_width", "frame_height"),
    *FACTS,
)
TEXTS = frozenset({"background", "foreground"})
OF_SAMPLE = ("sample", "background")
"""The columns that say the same of all people of a sample."""
_CACHED_ROWS = 100_000  # neighbours share foregrounds, so a plan with more only fills the cache anew
_UNKNOWN = "," * (len(FACTS) - 1)
_WHOLE = 1000  # per mille
_NUMBERS = ",".join(["%d"] * len(FACTS))


class LabelRows:
    """Rows of a plan; on a grid what only depends on foreground, flip and place is made once and reused."""

    def __init__(self, plan: CompositesPlan) -> None:
        self._plan = plan
        self._variants = plan.variants
        self._backgrounds = [csv_field(background.name) for background in plan.sources.backgrounds]
        self._foregrounds = [csv_field(foreground.name) for foreground in plan.sources.foregrounds]
        self._of_foreground = lru_cache(max(1, _CACHED_ROWS // self._variants))(self._variants_of)

    def rows(self, samples: range, *, tail: str, without: Container[int], facts: Facts | None) -> str:
        """Write the rows of consecutive samples, each ended by `tail`, without the dead ones."""
        if self._plan.compose.placement is Placement.GRID:
            return self._grid_rows(samples, tail=tail, without=without, facts=facts)
        lines: list[str] = []
        for sample in samples:
            if sample not in without:
                background, people = self._people(SampleIndex(sample))
                found = self._facts(facts, sample, len(people))
                lines += [
                    f"{sample},{person},{background},{in_picture},{found[person - 1]}{tail}"
                    for person, in_picture in enumerate(people, 1)
                ]
        return "".join(lines)

    def _grid_rows(self, samples: range, *, tail: str, without: Container[int], facts: Facts | None) -> str:
        lines: list[str] = []
        start = samples.start
        while start < samples.stop:
            pair = start // self._variants
            stop = min((pair + 1) * self._variants, samples.stop)
            background_index, foreground = self._plan.pair(pair)
            background, variants = self._backgrounds[background_index], self._of_foreground(foreground)
            rest = variants[start % self._variants :]
            lines += [
                f"{sample},1,{background},{variant},{self._facts(facts, sample, 1)[0]}{tail}"
                for sample, variant in zip(range(start, stop), rest, strict=False)
                if sample not in without
            ]
            start = stop
        return "".join(lines)

    def _variants_of(self, foreground: int) -> tuple[str, ...]:
        plan, name = self._plan, self._foregrounds[foreground]
        columns, rows = plan.compose.steps
        return tuple(
            f"{name},{flip},{column},{row},{_frame(plan.place(foreground, column=column, row=row))}"
            for flip in range(plan.flip_count)
            for row in range(rows)
            for column in range(columns)
        )

    def _people(self, sample: SampleIndex) -> tuple[str, list[str]]:
        """The background, and each person's fields up to its frame, in the order of painting."""
        made_of = self._plan.combination(sample)
        of_background = made_of.flip if self._plan.compose.flips is Flips.BACKGROUNDS else 0
        return self._backgrounds[made_of.background], [
            (
                f"{self._foregrounds[person.foreground]},{of_background or int(person.is_mirrored)},,,"
                f"{_frame(person.frame)}"
            )
            for person in self._plan.people(sample)
        ]

    def _facts(self, facts: Facts | None, sample: int, people: int) -> list[str]:
        """The facts of each person; without any, only the commas between them."""
        if facts is None:
            return [_UNKNOWN] * people
        found, wanted = facts[SampleIndex(sample)], len(FACTS) * people
        if len(found) != wanted:
            raise WrongFacts(f"sample {sample} has {len(found)} numbers, not {wanted}")
        (canvas_width, canvas_height), (width, height) = self._plan.compose.canvas, self._plan.output.size
        shown = []
        for start in range(0, len(found), len(FACTS)):
            numbers = found[start : start + len(FACTS)]
            x, y, across, down, area, visible, out_x, out_y, out_across, out_down, out_area = numbers
            # Compared one by one: there may be millions of rows.
            if not (
                0 <= x <= x + across <= canvas_width
                and 0 <= y <= y + down <= canvas_height
                and 0 <= area <= across * down
                and 0 <= visible <= _WHOLE
                and 0 <= out_x <= out_x + out_across <= width
                and 0 <= out_y <= out_y + out_down <= height
                and 0 <= out_area <= out_across * out_down
            ):
                raise WrongFacts(f"sample {sample} has a box that cannot be: {numbers}")
            shown.append(_NUMBERS % numbers)
        return shown


def _frame(frame: Rectangle) -> str:
    return f"{frame.x},{frame.y},{frame.width},{frame.height}"
