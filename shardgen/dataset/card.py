"""`README.md` inside the final zip: what the data set is, for someone who has only the zip.

Hugging Face's Hub reads its YAML head.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from shardgen.dataset.statistics import Statistics
from shardgen.domain.identifiers import SampleIndex
from shardgen.domain.plan import Output, Plan
from shardgen.domain.sample import member_name
from shardgen.domain.selection import Selection
from shardgen.recipes.base import Card, Recipe
from shardgen.settings.settings import CardTable

_LICENCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


def dataset_card(  # noqa: PLR0913 - what it tells
    recipe: Recipe,
    statistics: Statistics,
    *,
    selection: Selection,
    dead_letters: int,
    has_sheet: bool,
    own: CardTable | None = None,
) -> bytes:
    """Write the card, with the user's `own` words in it.

    It holds nothing historic: the same plan, selection and words give the same bytes.
    """
    plan, card, own = recipe.plan, recipe.card(), own or CardTable()
    stored = plan.samples - selection.left_out.count - dead_letters
    title = own.title or card.title
    text = f"\n{own.text.strip()}\n" if own.text.strip() else ""
    parts = (
        yaml_head(_for_the_hub(card, own, title=title, stored=stored)),
        f"# {title}: {stored:,} samples\n\n{card.introduction}{text}",
        _counts(plan, card, stored, dead_letters, selection),
        f"## How a sample is made\n\n{card.how_made}",
        _layout(recipe, card, selection, has_sheet=has_sheet),
        _statistics_table(statistics),
        _reading(plan),
        _provenance(plan, card, own),
    )
    return "\n".join(filter(None, parts)).encode()


def yaml_head(values: Mapping[str, object]) -> str:
    """The head of a card: JSON, which is YAML, on the line of each key."""
    lines = (f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
    return f"---\n{''.join(lines)}---\n"


def _for_the_hub(card: Card, own: CardTable, *, title: str, stored: int) -> dict[str, object]:
    """The keys that the Hub knows; without a licence it has none, and says so."""
    found: dict[str, object] = {"pretty_name": title}
    if _LICENCE_ID.fullmatch(own.licence.strip()):
        found["license"] = own.licence.strip().lower()
    elif own.licence.strip():
        found |= {"license": "other", "license_name": own.licence.strip()}
    if card.tasks:
        found["task_categories"] = list(card.tasks)
    return found | {"size_categories": [_size_category(stored)]}


def _size_category(samples: int) -> str:
    """As in `100K<n<1M`."""
    limits = [(1000 * 10**power, f"{10 ** (power % 3)}{'KMBT'[power // 3]}") for power in range(10)]
    names = [name for limit, name in limits if limit <= samples]
    if not names:
        return "n<1K"
    return f"n>{names[-1]}" if len(names) == len(limits) else f"{names[-1]}<n<{limits[len(names)][1]}"


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
        f"- `metadata.csv`: {_metadata(recipe)}\n"
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


def _metadata(recipe: Recipe) -> str:
    text = "one row per stored sample: the names of its files, and its labels"
    if recipe.has_several_rows:
        text += "; where these may be several, a JSON list"
    return text


def _reading(plan: Plan) -> str:
    images = [f"{output.name}_file_name" for output in plan.outputs if output.channels]
    if not images:
        return ""
    return f"""## Reading it in Python

With shardgen, also in threads and worker processes: `shardgen.DataSet("dataset.zip")[0]` is a dict of
arrays and labels. With Hugging Face: `datasets.load_dataset("imagefolder", data_files="dataset.zip")`. With
neither:

```python
import csv, io, zipfile
from PIL import Image

with zipfile.ZipFile("dataset.zip") as archive:
    with archive.open("metadata.csv") as file:
        for row in csv.DictReader(io.TextIOWrapper(file, "utf-8", newline="")):
            images = {{name: Image.open(archive.open(row[name])) for name in {images}}}
```
"""


def _provenance(plan: Plan, card: Card, own: CardTable) -> str:
    licence = [f"licence: {own.licence.strip()}"] if own.licence.strip() else []
    lines = (f"plan: sha256 `{plan.fingerprint}` (of `plan.json`)", *card.provenance, *licence)
    return "## Provenance\n\n" + "".join(f"- {line}\n" for line in lines)
