"""`README.md` inside the final zip: what the data set is, for someone who has only the zip."""

from __future__ import annotations

from shardgen.dataset.statistics import Statistics
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Output, Plan
from shardgen.domain.sample import member_name
from shardgen.recipes.base import Card, Recipe


def dataset_card(
    recipe: Recipe, statistics: Statistics, *, stored: int, dead_letters: int, has_sheet: bool
) -> bytes:
    """Write the card; it holds nothing historic, so the same plan always gives the same bytes."""
    plan, card = recipe.plan, recipe.card()
    parts = (
        f"# {card.title}: {stored:,} samples\n\n{card.introduction}",
        _counts(plan, card, stored, dead_letters),
        f"## How a sample is made\n\n{card.how_made}",
        _layout(plan, card, has_sheet=has_sheet),
        _statistics_table(statistics),
        _reading(plan),
        _provenance(plan, card),
    )
    return "\n".join(parts).encode()


def _counts(plan: Plan, card: Card, stored: int, dead_letters: int) -> str:
    files = "files" if any(output.size is None for output in plan.outputs) else "images"
    return (
        "## Counts\n\n"
        f"- planned: {plan.samples:,} samples, each one stored or listed in `dead_letters.csv`\n"
        f"- stored: {stored:,} samples, {len(plan.outputs) * stored:,} {files}\n"
        f"- dead letters: {dead_letters:,} samples that could not be made, each with its reason\n"
        f"- sources: {card.made_of}\n"
    )


def _layout(plan: Plan, card: Card, *, has_sheet: bool) -> str:
    lines = [f"- `{_example(plan, output)}`: {card.outputs[output.name]}" for output in plan.outputs]
    return (
        "## Layout\n\n" + "\n".join(lines) + "\n"
        f"- `labels.csv`: {card.labels}\n"
        "- `stats.json`: the statistics below\n"
        "- `dead_letters.csv`: planned samples that are not here, and why\n"
        "- `plan.json`: the exact plan, with the sha256 of every source photograph\n"
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
from PIL import Image

suffixes = {folders}
with zipfile.ZipFile("dataset.zip") as archive:
    with archive.open("labels.csv") as file:
        for row in csv.DictReader(io.TextIOWrapper(file, "utf-8", newline="")):
            sample = int(row["sample"])
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
