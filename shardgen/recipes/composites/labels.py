"""The rows of `labels.csv` for composites: one a sample (docs/formats.md: "Final zip")."""

from __future__ import annotations

from collections.abc import Container
from functools import lru_cache

from shardgen.recipes.base import csv_field
from shardgen.recipes.composites.plan import CompositesPlan

COLUMNS = (
    "sample",
    "background",
    "foreground",
    "flip",
    "column",
    "row",
    "x",
    "y",
    "width",
    "height",
    "output_x",
    "output_y",
    "output_width",
    "output_height",
)
_CACHED_ROWS = 100_000  # neighbours share foregrounds, so a plan with more only fills the cache anew


class LabelRows:
    """Rows of a plan; what only depends on foreground, flip and place is made once and reused."""

    def __init__(self, plan: CompositesPlan) -> None:
        self._plan = plan
        self._variants = plan.variants
        self._backgrounds = [csv_field(background.name) for background in plan.sources.backgrounds]
        self._of_foreground = lru_cache(max(1, _CACHED_ROWS // self._variants))(self._variants_of)

    def rows(self, samples: range, *, tail: str, without: Container[int]) -> str:
        """Write the rows of consecutive samples, each ended by `tail`, without the dead ones."""
        lines: list[str] = []
        start = samples.start
        while start < samples.stop:
            pair = start // self._variants
            stop = min((pair + 1) * self._variants, samples.stop)
            background_index, foreground = self._plan.pair(pair)
            background, variants = self._backgrounds[background_index], self._of_foreground(foreground)
            rest = variants[start % self._variants :]
            lines += [
                f"{sample},{background},{variant}{tail}"
                for sample, variant in zip(range(start, stop), rest, strict=False)
                if sample not in without
            ]
            start = stop
        return "".join(lines)

    def _variants_of(self, foreground_index: int) -> tuple[str, ...]:
        plan = self._plan
        foreground = plan.sources.foregrounds[foreground_index]
        name = csv_field(foreground.name)
        columns, rows = plan.compose.grid
        variants = []
        for flip in range(plan.flip_count):
            for row in range(rows):
                for column in range(columns):
                    rectangle = plan.place(foreground, column=column, row=row)
                    on_canvas = (rectangle.x, rectangle.y, rectangle.width, rectangle.height)
                    scales = zip(plan.output.size * 2, plan.compose.canvas * 2, strict=True)
                    output = (
                        thousandths(value * size, canvas)
                        for value, (size, canvas) in zip(on_canvas, scales, strict=True)
                    )
                    values = (name, flip, column, row, *on_canvas, *output)
                    variants.append(",".join(map(str, values)))
        return tuple(variants)


def thousandths(numerator: int, denominator: int) -> str:
    """Write a fraction with 3 decimals, half to even, exactly."""
    quotient, rest = divmod(numerator * 1000, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and quotient % 2 == 1):
        quotient += 1
    return f"{quotient // 1000}.{quotient % 1000:03d}"
