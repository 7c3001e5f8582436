"""The page as HTML, in parts that can be replaced one by one; also as one file, and for a notebook's cell.

Everything that comes from a run is hostile text: the templates escape it, and nothing of it becomes an
address, an attribute without quotes, a style or a script.
"""

from __future__ import annotations

import base64
import hashlib
import math
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
from markupsafe import Markup

from shardgen.coordination.report import ShownWorker
from shardgen.domain.overview import SLICE_WORDS, ShardState, ShownSlice
from shardgen.domain.receipt import DeadLetterReason
from shardgen.domain.slice_state import SliceState
from shardgen.domain.wording import counted, duration
from shardgen.domain.worker import WORKER_WORDS, ShownState
from shardgen.operations.forecast import forecast_line
from shardgen.operations.page.look import Look, Seen
from shardgen.operations.page.pictures import SmallPicture
from shardgen.operations.status import advice, by_node
from shardgen.recipes.registry import recipe_of

STATIC = Path(__file__).parent / "static"
_TEMPLATES = Path(__file__).parent / "templates"
_ORDER = (  # of slices in a bar
    SliceState.DONE,
    SliceState.LEASED,
    SliceState.OPEN,
    "expired",
    SliceState.BLOCKED,
    "never_leased",
)
_BARS, _LEAST_BARS = 120, 30  # of the plot
_TEXT = 3_000  # characters of a traceback or a reason that are shown, the last ones
_LINE = 200  # of a note
_NAME = 100  # of a worker, a node, a device
_PROBLEMS = {ShownState.STALLED: 0, ShownState.EXPIRED: 1, ShownState.DEAD: 2, ShownState.SUSPECT: 3}
_ENDED = {ShownState.DEAD, ShownState.STOPPED}
_MEANINGS = {
    DeadLetterReason.UNREADABLE: "a photograph does not decode",
    DeadLetterReason.COMPOSE: "the sample could not be put together",
    DeadLetterReason.NON_FINITE: "the network gave no numbers, or failed",
    DeadLetterReason.ENCODE: "an image could not be encoded",
    DeadLetterReason.KILLED_PROCESS: "it killed its process each time",
    DeadLetterReason.HUNG: "it hung its process each time",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much is shown, however large the run: workers, shards, slices as cells, samples and their bytes."""

    workers: int
    shards: int
    slices: int
    samples: int
    picture_bytes: int


LIVE = Bounds(workers=2_000, shards=200, slices=20_000, samples=6, picture_bytes=1 << 30)
FILE = Bounds(workers=250, shards=100, slices=2_000, samples=6, picture_bytes=220_000)
CELL = Bounds(workers=60, shards=20, slices=1_000, samples=6, picture_bytes=100_000)


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """The page of one look: the HTML of each part, and which parts each of its lists holds, in order."""

    name: str
    title: str
    facts: str
    parts: Mapping[str, str]
    lists: Mapping[str, tuple[str, ...]]


PictureUrl = Callable[[SmallPicture], str]


def picture_path(picture: SmallPicture) -> str:
    """Where the server has it."""
    return f"pictures/{picture.key}"


def picture_inline(picture: SmallPicture) -> str:
    """The picture itself, as an address."""
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.data).decode()}"


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
    )


@cache
def static(name: str) -> bytes:
    """One of the files that the page is made with."""
    return (STATIC / name).read_bytes()


def rendered(
    seen: Seen, *, bounds: Bounds = LIVE, url: PictureUrl = picture_path, live: bool = True, suffix: str = ""
) -> Rendered:
    """The parts of the page of what was seen; there must be a look."""
    if seen.look is None:
        raise ValueError("nothing was seen yet")
    page = _Page(look=seen.look, bounds=bounds, url=url, suffix=suffix)
    macros: Any = _environment().get_template("parts.html").module
    shards = page.shards()
    nodes = page.nodes()
    parts = {
        "progress": macros.progress(page.progress()),
        "next": macros.next(page.next(), live),
        "pace": macros.pace(page.pace()),
        "samples": macros.samples(page.samples()),
        "shards": macros.shards(page.shards_head(len(shards))),
        "workers": macros.workers(page.workers_head(nodes)),
        "blocked": macros.blocked(page.blocked()),
        "letters": macros.letters(page.letters()),
        "seen": macros.seen(page.seen(seen)),
    }
    of_shards = {f"shard-{one.shard}": macros.shard(one) for one in shards}
    of_nodes = {one.key: macros.node(one) for one in nodes}
    return Rendered(
        name=_sayable(page.name),
        title=_sayable(page.title),
        facts=page.facts,
        parts={key: _sayable(str(html).strip()) for key, html in (parts | of_shards | of_nodes).items()},
        lists={"shards": tuple(of_shards), "workers": tuple(of_nodes)},
    )


def _sayable(text: str) -> str:
    r"""With bytes of a name that are no UTF-8 as in `\udce9`: nobody could be sent them."""
    return text.encode(errors="backslashreplace").decode()


def document(found: Rendered, *, version: str = "") -> str:
    """A whole page: the live one if it has a version, else one that needs nothing beside itself."""
    values = _values(found) | {"live": bool(version), "version": version, "css": _css()}
    return _environment().get_template("page.html").render(**values)


def self_contained(look: Look) -> bytes:
    """The page as one file: pictures inside, no script, no link; at most a megabyte, whatever the run."""
    return document(rendered(Seen(look=look), bounds=FILE, url=picture_inline, live=False)).encode()


def style() -> str:
    """The style that fragments need beside them; it changes nothing around them."""
    return f"<style>{_css()}</style>"


def fragments(seen: Seen, *, number: int = 0) -> tuple[str, str, str]:
    """The page's content for a notebook's cell in three pieces: how far it is, the pictures, and the rest.

    No script, nothing to fetch; a piece with nothing to show is empty. `number` tells several cells on a page
    apart.
    """
    found = rendered(seen, bounds=CELL, url=picture_inline, live=False, suffix=f"-{number}")
    values = _values(found)
    head, rest = (_environment().get_template(name).render(**values) for name in ("head.html", "rest.html"))
    head += f"<footer>{found.parts['seen']}</footer>"
    return _piece(head), _piece(found.parts["samples"]), _piece(rest)


def _piece(html: str) -> str:
    return f'<div class="shardgen piece"><div class="parts">{html}</div></div>' if html else ""


def _css() -> Markup:
    return Markup(static("page.css").decode())  # noqa: S704 - a file of the package


def _values(found: Rendered) -> dict[str, Any]:
    return {
        "parts": {key: Markup(html) for key, html in found.parts.items()},  # noqa: S704 - escaped when rendered
        "lists": found.lists,
        "title": found.title,
        "name": found.name,
        "facts": found.facts,
    }


@dataclass(frozen=True, kw_only=True)
class _Page:
    """What the templates show of a look, in the words of a person."""

    look: Look
    bounds: Bounds
    url: PictureUrl
    suffix: str = ""

    @property
    def name(self) -> str:
        return "".join(shlex.split(self.look.named))

    @property
    def title(self) -> str:
        return f"{self._percent} % · {self.name} · shardgen"

    @property
    def facts(self) -> str:
        plan = self.look.report.plan
        layout = plan.layout
        parts = [
            counted(plan.samples, "sample"),
            counted(layout.shard_count, "shard"),
            counted(layout.batch_count, "batch"),
            f"recipe {plan.recipe.kind}",
            f"plan {plan.fingerprint[:12]}",
        ]
        return " · ".join(parts)

    @property
    def _percent(self) -> int:
        found = self.look.report
        return 100 * (found.stored + found.dead) // found.plan.samples

    def progress(self) -> SimpleNamespace:
        found = self.look.report
        kind, state, sentence = self._state()
        facts = [
            _fact("stored", f"{found.stored:,}", f"of {found.plan.samples:,}"),
            _fact("pending", f"{found.pending:,}"),
        ]
        if found.dead:
            facts.append(_fact("dead letters", f"{found.dead:,}"))
        if found.pending:
            facts.append(_fact("rate", _rate(found.rate), "samples/s") if found.rate else _fact("rate", "-"))
        if found.pending and found.eta_seconds is not None:
            facts.append(_fact("time left", duration(found.eta_seconds)))
            ends = found.overview.taken_at + timedelta(seconds=found.eta_seconds)
            facts.append(_fact("done at", at=_moment(ends, found.overview.taken_at)))
        elif not found.pending and (last := self.look.details.last_stored_at):
            moment = _moment(last, found.overview.taken_at)
            facts.append(_fact("last sample stored", at=moment))
        counts = {"stored": found.stored, "dead": found.dead, "pending": found.pending}
        words = {"stored": "stored", "dead": "dead letters", "pending": "pending"}
        texts = {kind: f"{count:,} {words[kind]}" for kind, count in counts.items() if count}
        return SimpleNamespace(
            percent=self._percent,
            kind=kind,
            state=state,
            sentence=sentence,
            segments=_segments(counts, texts),
            bar=f"Samples: {', '.join(texts.values())}",
            facts=facts,
            forecast="" if self.look.forecast is None else forecast_line(self.look.forecast, found),
            remark=recipe_of(found.plan).remark,
        )

    def _state(self) -> tuple[str, str, str]:
        found = self.look.report
        making = sum(one.rate > 0 for one in found.workers)
        there = sum(one.state not in _ENDED and one.state is not ShownState.EXPIRED for one in found.workers)
        if not found.pending:
            return "done", "finished", "All samples are made." if not found.dead else "Nothing is pending."
        if making:
            return (
                "working",
                "working",
                f"{counted(making, 'worker')} {'is' if making == 1 else 'are'} making samples.",
            )
        if there:
            return (
                "starting",
                "starting",
                f"{counted(there, 'worker')} there, but nothing is being made right now.",
            )
        return "stopped", "stopped", "No worker is running."

    def next(self) -> SimpleNamespace:
        found = advice(self.look.report, self.look.finished)
        shown = [
            SimpleNamespace(
                text=one.text[:1].upper() + one.text[1:] + ":",
                command=one.command.replace("RUN_DIR", self.look.named),
                is_trouble=one.is_trouble,
            )
            for one in found
        ]
        title = "What to do" if any(one.is_trouble for one in shown) else "What comes next"
        return SimpleNamespace(title=title, advice=shown, suffix=self.suffix)

    def pace(self) -> SimpleNamespace:
        pace = self.look.details.pace
        if not pace:
            return SimpleNamespace(bars=[], suffix=self.suffix)
        taken_at = self.look.report.overview.taken_at
        last = max(pace[-1][0], _minute(taken_at)) if self.look.report.pending else pace[-1][0]
        first = min(pace[0][0], last - timedelta(minutes=_LEAST_BARS - 1))
        minutes = max(1, round((last - first) / timedelta(minutes=1)) + 1)
        step = -(-minutes // _BARS)
        sums = [0] * max(_LEAST_BARS, -(-minutes // step))
        for at, count in pace:
            sums[round((at - first) / timedelta(minutes=1)) // step] += count
        rates = [count / step for count in sums]
        top = _round_up(max(rates))
        bars = []
        for number, rate in enumerate(rates):
            start = first + timedelta(minutes=number * step)
            is_open = start + timedelta(minutes=step) > taken_at
            text = f"{start.astimezone():%H:%M}: {rate:,.0f} a minute" + (", not over yet" if is_open else "")
            height = round(100 * rate / top, 1)
            bars.append(SimpleNamespace(height=height, text=text, is_open=is_open))
        best = rates.index(max(rates))
        label = f"In steps of {step} minutes; most" if step > 1 else "Most"
        at_best = (first + timedelta(minutes=best * step)).astimezone()
        label += f" at {at_best:%H:%M}: {max(rates):,.0f} a minute."
        return SimpleNamespace(
            bars=bars,
            top=f"{top:,}",
            label=label,
            name=f"Samples per minute from {first.astimezone():%H:%M} to {last.astimezone():%H:%M}",
            first=_moment(first, taken_at),
            last=_moment(last, taken_at),
            suffix=self.suffix,
        )

    def samples(self) -> SimpleNamespace:
        room, fitting = self.bounds.picture_bytes, []
        for one in self.look.samples[: self.bounds.samples]:
            room -= sum(len(picture.data) for picture in one.pictures)
            if room >= 0:
                fitting.append(one)
        shown = [
            SimpleNamespace(
                sample=one.sample,
                number=f"{one.sample:,}",
                made_of=one.made_of[:_LINE],
                pictures=[
                    SimpleNamespace(
                        url=self.url(picture),
                        alt=f"Sample {one.sample:,}: {_WHAT.get(picture.what, picture.what)}",
                    )
                    for picture in one.pictures
                ],
            )
            for one in fitting
        ]
        return SimpleNamespace(samples=shown, remark=self.look.no_pictures, suffix=self.suffix)

    def shards_head(self, shown: int) -> SimpleNamespace:
        shards = self.look.report.overview.shards
        totals = {kind: sum(getattr(one.slices, kind) for one in shards) for kind in _ORDER}
        sentence = f"{counted(sum(totals.values()), 'slice')} in {counted(len(shards), 'shard')}"
        if shown < len(shards):
            sentence += f"; the {shown:,} shards that need most attention are shown"
        legend = [SimpleNamespace(kind=kind, text=f"{SLICE_WORDS[kind]} {totals[kind]:,}") for kind in _ORDER]
        return SimpleNamespace(sentence=f"{sentence}.", legend=legend, suffix=self.suffix)

    def shards(self) -> list[SimpleNamespace]:
        """Those shown, by number: first those at which something happens, then the unfinished ones."""
        every = self.look.report.overview.shards
        chosen = sorted(every, key=_interest)[: self.bounds.shards]
        by_shard: dict[int, list[ShownSlice]] = {}
        for one in self.look.details.slices:
            by_shard.setdefault(one.shard, []).append(one)
        room, with_cells = self.bounds.slices, set()
        for shard in chosen:
            room -= len(by_shard.get(shard.shard, ()))
            if room >= 0:
                with_cells.add(shard.shard)
        return [
            self._shard(
                one, by_shard.get(one.shard, []) if one.shard in with_cells else [], is_only=len(every) == 1
            )
            for one in sorted(chosen, key=lambda one: one.shard)
        ]

    def _shard(self, shard: ShardState, slices: Sequence[ShownSlice], *, is_only: bool) -> SimpleNamespace:
        planned = len(self.look.report.plan.layout.shard_samples(shard.shard))
        counts = {kind: getattr(shard.slices, kind) for kind in _ORDER}
        texts = {kind: f"{count:,} {SLICE_WORDS[kind]}" for kind, count in counts.items() if count}
        words = ", ".join(texts.values())
        dead = f", {counted(shard.dead, 'dead letter')}" if shard.dead else ""
        return SimpleNamespace(
            shard=shard.shard,
            count=f"{shard.stored:,} of {planned:,} samples{dead}",
            segments=_segments(counts, texts),
            bar=f"Slices of shard {shard.shard}: {words}",
            words=words,
            is_open=is_only,
            cells=[SimpleNamespace(kind=one.state, text=_slice_text(one)) for one in slices],
            no_cells="There is no room for its slices here.",
        )

    def workers_head(self, nodes: Sequence[SimpleNamespace]) -> SimpleNamespace:
        workers = self.look.report.workers
        if not workers:
            return SimpleNamespace(
                sentence="No worker has run here within the last hour.", suffix=self.suffix
            )
        counts = Counter(one.state for one in workers)
        states = ", ".join(
            f"{counts[state]:,} {WORKER_WORDS[state]}" for state in ShownState if counts[state]
        )
        on = f" on {counted(len(nodes), 'node')}" if len(nodes) > 1 else ""
        sentence = f"{counted(len(workers), 'worker')}{on}: {states}."
        shown = sum(len(one.workers) for one in nodes)
        if shown < len(workers):
            sentence += f" The {shown:,} that need most attention are listed."
        return SimpleNamespace(sentence=sentence, suffix=self.suffix)

    def nodes(self) -> list[SimpleNamespace]:
        """Every node with its workers; folded where there are many."""
        found = by_node(self.look.report)
        every = sorted((one for _, workers in found for one in workers), key=_urgency)
        listed = {one.row.identity.id for one in every[: self.bounds.workers]}
        is_folded = len(found) > 1 and len(every) > 12
        return [
            _node(
                name, workers, [one for one in workers if one.row.identity.id in listed], is_folded=is_folded
            )
            for name, workers in found
        ]

    def blocked(self) -> SimpleNamespace:
        overview = self.look.report.overview
        slices = [
            SimpleNamespace(where=f"shard {one.shard}, slice {one.slice}", reason=_end_of(one.reason))
            for one in overview.blocked
        ]
        rest = overview.blocked_total - len(slices)
        sentence = "Nobody works on them until they are requeued."
        sentence += f" {rest:,} more are not listed." if rest > 0 else ""
        return SimpleNamespace(slices=slices, sentence=sentence, suffix=self.suffix)

    def letters(self) -> SimpleNamespace:
        groups = [
            SimpleNamespace(
                reason=group.reason.value,
                count=counted(group.count, "sample"),
                meaning=_MEANINGS[group.reason],
                first=[
                    SimpleNamespace(
                        sample=f"{one.sample:,}", detail=_end_of(one.detail) or "nothing more is known"
                    )
                    for one in group.first[:3]
                ],
            )
            for group in self.look.details.dead_letters
        ]
        sentence = "Samples that were given up, by reason; the first of each with its message."
        return SimpleNamespace(groups=groups, sentence=sentence, suffix=self.suffix)

    def seen(self, seen: Seen) -> SimpleNamespace:
        found = self.look.report
        failure = ""
        if seen.failure:
            failure = f"The run cannot be read just now; this is {duration(seen.age)} old. {seen.failure}"
        mixture = ""
        if found.mixture:
            mixture = (
                f"Batches were made in {len(found.mixture)} ways (devices, versions or micro-batches); their "
                "files may differ a little between them."
            )
        at = _moment(found.overview.taken_at, found.overview.taken_at, seconds=True)
        return SimpleNamespace(failure=failure, text="As recorded at", at=at, mixture=mixture)


_WHAT = {
    "composite": "composite with the outline of its mask",
    "picture": "picture",
    "mask": "mask",
    "people": "people, each in a colour of its own",
    "depth": "depth in colours, near is bright",
    "not depth": "noise of random weights, not depth",
}


def _fact(
    name: str, text: str = "", small: str = "", *, at: SimpleNamespace | None = None
) -> SimpleNamespace:
    return SimpleNamespace(name=name, text=text, small=small, at=at)


def _segments(counts: Mapping[str, int], texts: Mapping[str, str]) -> list[SimpleNamespace]:
    """Of a bar of 100 units; what is there at all is at least half a unit wide."""
    total = sum(counts.values()) or 1
    shares = {kind: max(0.5, 100 * count / total) for kind, count in counts.items() if count}
    scale = 100 / sum(shares.values()) if shares else 1
    found, x = [], 0.0
    for kind, share in shares.items():
        width = share * scale
        found.append(SimpleNamespace(kind=kind, x=round(x, 2), width=round(width, 2), text=texts[kind]))
        x += width
    return found


def _interest(shard: ShardState) -> tuple[int, int]:
    slices = shard.slices
    if slices.blocked or slices.expired or slices.leased or shard.dead:
        return 0, shard.shard
    return (1 if slices.never_leased or slices.open else 2), shard.shard


def _slice_text(one: ShownSlice) -> str:
    text = (
        f"slice {one.slice}: {SLICE_WORDS[one.state]}, {one.batches_done} of {counted(one.batches, 'batch')}"
    )
    return f"{text}, {one.worker[:_NAME]}" if one.worker else text


def _urgency(one: ShownWorker) -> tuple[int, str]:
    return _PROBLEMS.get(one.state, 9 if one.state is ShownState.STOPPED else 5), one.row.identity.id


def _node(
    name: str, workers: Sequence[ShownWorker], listed: Sequence[ShownWorker], *, is_folded: bool
) -> SimpleNamespace:
    counts = Counter(one.state for one in workers)
    host = workers[0].row.identity.host.encode(errors="backslashreplace")
    return SimpleNamespace(
        key=f"node-{hashlib.sha256(host).hexdigest()[:12]}",
        name=name[:_NAME] or "no name",
        rate=f"{_rate(sum(one.rate for one in workers))} samples/s",
        words=", ".join(f"{counts[state]:,} {WORKER_WORDS[state]}" for state in ShownState if counts[state]),
        is_folded=is_folded,
        workers=[_worker(one) for one in listed],
    )


def _worker(one: ShownWorker) -> SimpleNamespace:
    row = one.row
    return SimpleNamespace(
        id=row.identity.id[:_NAME],
        device=row.identity.device[:_NAME],
        kind=one.state.value,
        state=WORKER_WORDS[one.state],
        note=row.note.partition("\n")[0][:_LINE],
        slice="-" if row.shard is None else f"{row.shard}/{row.slice}",
        rate=_rate(one.rate),
        samples=f"{row.samples_done:,}",
        seen=_ago(one.last_beat_seconds),
    )


def _ago(seconds: float) -> str:
    """In steps, so that not every look changes the page."""
    if seconds < 15:
        return "now"
    if seconds < 60:
        return f"{seconds // 15 * 15:.0f} s ago"
    return f"{duration(seconds // 60 * 60)} ago".replace(" 00 s", "")


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:,.1f}" if rate >= 10 else f"{rate:.2f}"


def _round_up(value: float) -> int:
    """The next of 1, 2, 5, 10, 20 and so on."""
    power = int(10 ** max(0, math.floor(math.log10(value)) if value > 0 else 0))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value or step == 10)


def _minute(at: datetime) -> datetime:
    return at.replace(second=0, microsecond=0)


def _moment(at: datetime, now: datetime, *, seconds: bool = False) -> SimpleNamespace:
    local = at.astimezone()
    form = "%H:%M:%S %Z" if seconds else "%H:%M"
    if local.date() != now.astimezone().date():
        form = f"%a %-d %b, {form}"
    return SimpleNamespace(
        utc=f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}", text=f"{local:{form}}", has_seconds=seconds
    )


def _end_of(text: str) -> str:
    return text if len(text) <= _TEXT else f"…{text[-_TEXT:]}"
