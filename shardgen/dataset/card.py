"""`README.md` inside the final zip: what the data set is, for someone who has only the zip."""

from __future__ import annotations

from shardgen.dataset.statistics import Statistics
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Output, Plan
from shardgen.domain.sample import member_name
from shardgen.domain.selection import Selection
from shardgen.recipes.base import Card, Recipe


def dataset_card(
    recipe: Recipe,
    statistics: Statistics,
    *,
    selection: Selection,
    dead_letters: int,
    has_sheet: bool,
) -> bytes:
    """Write the card; it holds nothing historic, so the same plan and selection give the same bytes."""
    plan, card = recipe.plan, recipe.card()
    stored = plan.samples - selection.left_out.count - dead_letters
    parts = (
        f"# {card.title}: {stored:,} samples\n\n{card.introduction}",
        _counts(plan, card, stored, dead_letters, selection),
        f"## How a sample is made\n\n{card.how_made}",
        _layout(recipe, card, selection, has_sheet=has_sheet),
        _statistics_table(statistics),
        _reading(plan),
        _provenance(plan, card),
    )
    return "\n".join(parts).encode()


def _counts(plan: Plan, card: Card, stored: int, dead_letters: int, selection: Selection) -> str:
    whether = "stored or listed in `dead_letters.csv`"
    left_out, of_the_plan = "", ""
    if selection.kinds:
        whether = "stored, or listed in `dead_letters.csv` or `selection.json`"
        of_the_plan = " of the plan"
    if selection.excluded:
        left_out += f"- excluded: {selection.excluded.count:,} samples, left out on purpose\n"
    if selection.pending:
        left_out += f"- pending: {selection.pending.count:,} samples, not made yet\n"
    files = "files" if any(not output.channels for output in plan.outputs) else "images"
    return (
        "## Counts\n\n"
        f"- planned: {plan.samples:,} samples, each one {whether}\n"
        f"- stored: {stored:,} samples, {len(plan.outputs) * stored:,} {files}\n"
        f"- dead letters: {dead_letters:,} samples that could not be made, each with its reason\n"
        f"{left_out}"
        f"- sources{of_the_plan}: {card.made_of}\n"
    )


def _layout(recipe: Recipe, card: Card, selection: Selection, *, has_sheet: bool) -> str:
    plan, files = recipe.plan, [f"`{file.name}`" for file in recipe.files]
    lines = [f"- `{_example(plan, output)}`: {card.outputs[output.name]}" for output in plan.outputs]
    missing, ranges = "are not here", ""
    if selection.kinds:
        missing = "could not be made"
        ranges = "- `selection.json`: the other samples that are not here, in ranges `[start, stop)`\n"
    digests, beside = "every source file", ""
    if files:
        digests = "these lists" if files[1:] else "that list"
        beside = f"- {', '.join(files)}: {card.files}\n"
    return (
        "## Layout\n\n" + "\n".join(lines) + "\n"
        f"- `labels.csv`: {card.labels}\n"
        "- `stats.json`: the statistics below\n"
        f"- `dead_letters.csv`: planned samples that {missing}, and why\n"
        f"{ranges}"
        f"{beside}"
        f"- `plan.json`: the exact plan, with the sha256 of {digests}\n"
        + ("- `contact_sheet.png`: some samples to look at\n" if has_sheet else "")
    )


def _example(plan: Plan, output: Output) -> str:
    return member_name(output, SampleIndex(0), digits=plan.name_digits)


def _statistics_table(statistics: Statistics) -> str:
    lines = [
        "## Statistics",
        "",
        "Over every pixel of every image as stored, from 0 to 1; population std.",
        "",
    ]
    lines += ["| | mean | std | images |", "|---|---|---|---|"]
    for name, values in statistics.items():
        mean, std = (", ".join(f"{value:.4f}" for value in part) or "-" for part in (values.mean, values.std))
        lines.append(f"| {name} | {mean} | {std} | {values.images:,} |")
    return "\n".join(lines) + "\n"


def _reading(plan: Plan) -> str:
    folders = {output.name: output.suffix for output in plan.outputs}
    digits = plan.name_digits
    return f"""## Reading it in Python

```python
import csv, io, zipfile
from itertools import groupby
from operator import itemgetter
from PIL import Image

suffixes = {folders}
with zipfile.ZipFile("dataset.zip") as archive:
    with archive.open("labels.csv") as file:
        rows = csv.DictReader(io.TextIOWrapper(file, "utf-8", newline=""))
        for number, of_it in groupby(rows, key=itemgetter("sample")):
            sample, labels = int(number), list(of_it)  # one row or more
            name = f"{{sample // 10000:05d}}/{{sample:0{digits}d}}"
            images = {{
                kind: Image.open(archive.open(f"{{kind}}/{{name}}.{{suffix}}"))
                for kind, suffix in suffixes.items()
            }}
```
"""


def _provenance(plan: Plan, card: Card) -> str:
    lines = (f"plan: sha256 `{plan.fingerprint}` (of `plan.json`)", *card.provenance)
    return "## Provenance\n\n" + "".join(f"- {line}\n" for line in lines)
