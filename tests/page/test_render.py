from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from shardgen.domain.overview import SLICE_WORDS, FolderNews
from shardgen.domain.worker import WORKER_WORDS, ShownState
from shardgen.operations.forecast import Forecast
from shardgen.operations.page import render
from shardgen.operations.page.look import Look, Seen
from shardgen.operations.page.metrics import metrics
from shardgen.operations.page.render import FILE, LIVE, document, fragments, rendered, self_contained, style
from tests.page.looks import EVIL, NOW, PLAN, large, look_at, worker

EVERYTHING = {
    "stored": 20,
    "dead": 2,
    "states": list(SLICE_WORDS),
    "blocked": ["StorageFailed: no room"],
    "pace": [10, 0, 30],
    "samples": 2,
}


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def live(look: Look) -> str:
    return document(rendered(Seen(look=look, version=1)), version="x-1")


def cell(look: Look, *, number: int = 0) -> str:
    """What a notebook's cell shows."""
    return style() + "".join(fragments(Seen(look=look), number=number))


def everything(text: str = "gone") -> Look:
    return look_at(
        worker(text, note=text, node=text),
        worker("b", ShownState.STALLED),
        worker("c", ShownState.DEAD),
        text=text,
        **EVERYTHING,  # type: ignore[arg-type]
    )


def test_progress_is_said_in_numbers_with_separators() -> None:
    plan = large().report.plan
    shown = Tags(live(look_at(worker("a", rate=1000.0), plan=plan, stored=12_345, dead=2))).text
    for words in ("15 %", "12,345 of 80,000", "67,653", "1,000 samples/s", "1 min 08 s", "15:05"):
        assert words in shown, words


def test_it_is_not_at_100_percent_before_the_last_sample() -> None:
    almost = look_at(stored=PLAN.samples - 1)
    assert rendered(Seen(look=almost)).title.startswith("99 %")
    assert rendered(Seen(look=look_at(stored=PLAN.samples))).title.startswith("100 %")


@pytest.mark.parametrize(
    ("look", "commands"),
    [
        (look_at(worker("a")), []),
        (look_at(), ["shardgen run people"]),
        (look_at(worker("a"), blocked=["x"], states=["blocked"]), ["shardgen requeue people --blocked"]),
        (look_at(worker("a"), dead=2), ["shardgen dead-letters people"]),
        (look_at(worker("a"), worker("b", ShownState.STALLED)), ["shardgen doctor"]),
        (look_at(worker("a"), worker("b", ShownState.EXPIRED)), ["shardgen worker people"]),
        (look_at(worker("a"), worker("b", ShownState.DEAD)), ["shardgen worker people"]),
        (look_at(stored=PLAN.samples), ["shardgen merge people"]),
        (
            look_at(stored=PLAN.samples - 2, dead=2),
            [
                "shardgen dead-letters people",
                "shardgen requeue people --dead-letters",
                "shardgen merge people --allow-dead-letters",
            ],
        ),
        (
            look_at(
                worker("a"),
                folder=FolderNews(
                    lag_seconds=None, slowest_lag_seconds=None, waiting=0, arriving=0, duplicated=0,
                    troubles=("x: no such folder",), scan_seconds=10.0,
                ),
            ),
            ["shardgen doctor"],
        ),
    ],
)  # fmt: skip
def test_each_trouble_has_its_command_to_copy(look: Look, commands: list[str]) -> None:
    buttons = [tag["data-copy"] for name, tag in Tags(live(look)).tags if name == "button"]
    assert buttons == commands


def test_a_run_directory_is_named_as_it_must_be_typed() -> None:
    shown = Tags(live(look_at(named="'my run'"))).text
    assert "shardgen run 'my run'" in shown
    assert "my run 120 samples" in shown


def test_nothing_of_a_run_is_markup() -> None:
    look = everything(EVIL)
    for html in (live(look), self_contained(look).decode(), cell(look)):
        found = Tags(html)
        expected = {"script": 1} if html.startswith("<!doctype") and "page.js" in html else {}
        assert [name for name, _ in found.tags].count("script") == expected.get("script", 0)
        assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
        sources = {tag.get("src") or "" for name, tag in found.tags if name == "img"}
        assert all(
            re.fullmatch(r"pictures/[0-9a-f]{32}|data:image/png;base64,[\w+/=]+", one) for one in sources
        )
        assert (
            found.text.count("<script>window.pwned = 1</script>") >= 5
        )  # worker, node, note, letter, sample


def test_bytes_that_are_no_text_are_shown_and_stop_no_page() -> None:
    text = "caf\udce9"
    look = replace(everything(text), named="'caf\udce9 1'")
    for html in (live(look), self_contained(look).decode(), cell(look)):
        assert html.encode()
        assert html.count(r"caf\udce9") >= 5


@pytest.mark.parametrize("rate", [1e-12, 5e-324, float("nan")])
def test_a_rate_that_would_take_centuries_has_no_end(rate: float) -> None:
    look = look_at(worker("a", rate=rate), stored=1)
    assert "time left" not in live(look)
    assert "eta_seconds" not in metrics(Seen(look=look))
    assert look.report.as_json()["eta_seconds"] is None


def test_all_that_is_known_is_shown_in_words() -> None:
    shown = Tags(live(everything()))
    titles = [tag["title"] or "" for name, tag in shown.tags if name == "i"]
    assert [title.split(": ")[1].split(",")[0] for title in titles[: len(SLICE_WORDS)]] == [
        *SLICE_WORDS.values()
    ]
    for words in (
        *("unreadable", "2 samples", "Sample 7", "StorageFailed: no room", "shard 0, slice 0"),
        *("working", "stalled", "dead", "A100", "1,234", "Most at"),
    ):
        assert words in shown.text, words


@pytest.mark.parametrize("state", ShownState)
def test_a_worker_is_shown_in_its_state_by_a_word(state: ShownState) -> None:
    shown = Tags(live(look_at(worker("someone", state))))
    assert ("span", {"class": f"pill s-{state.value}"}) in shown.tags
    assert f"1 worker: 1 {WORKER_WORDS[state]}." in shown.text


def test_that_depth_is_noise_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = "NOT DEPTH: the weights are random"
    monkeypatch.setattr("shardgen.recipes.composites.recipe.CompositesRecipe.remark", noise)
    assert noise in Tags(live(look_at())).text


def test_the_end_is_said_and_what_comes_next() -> None:
    shown = Tags(live(look_at(worker("a", ShownState.STOPPED), stored=PLAN.samples))).text
    for words in ("finished", "All samples are made", "What comes next", "15:04"):
        assert words in shown


def test_the_forecast_is_compared_with_what_is_made() -> None:
    forecast = Forecast(
        fingerprint=PLAN.fingerprint, made_at=NOW, device_model="", threads=0, micro_batch=0, rate=0.5,
        rate_spread=0.0, batches=2, seconds=1.0, bytes={}, bytes_spread=0.0, artifact_bytes=0.0, samples=1,
    )  # fmt: skip
    shown = Tags(live(replace(look_at(worker("a")), forecast=forecast))).text
    assert "forecast 0.50 samples/s a worker, 4 min 00 s for one; measured 2.0 by 1 worker" in shown


def test_a_look_that_is_old_says_so() -> None:
    seen = Seen(look=look_at(), version=3, failure="people: the manifest is locked")
    shown = Tags(document(rendered(seen), version="x")).text
    assert "The run cannot be read just now" in shown
    assert "people: the manifest is locked" in shown


def test_of_a_recipe_without_pictures_there_are_none() -> None:
    assert rendered(Seen(look=look_at())).parts["samples"] == ""


def test_the_plot_has_a_bar_for_each_minute_and_at_most_120() -> None:
    def bars(pace: list[int]) -> list[str]:
        html = rendered(Seen(look=look_at(worker("a"), pace=pace))).parts["pace"]
        return re.findall(r'<rect class="bar(?: part)?"[^>]*height="([\d.]+)"', html)

    assert bars([10, 0, 20]) == ["50.0", "100.0"]
    assert len(bars([5] * 2000)) == 118  # of 17 minutes each


def test_a_large_run_makes_no_large_page() -> None:
    look = large()
    file = self_contained(look)
    assert len(file) < 1_000_000
    shown = Tags(file.decode())
    assert sum(tag.get("class", "") == "pill s-stalled" for _, tag in shown.tags) == 125
    assert sum(name == "tr" for name, _ in shown.tags) < FILE.workers + 200
    assert "The 250 that need most attention are listed" in shown.text
    assert sum(name == "i" for name, _ in shown.tags) <= FILE.slices
    assert "1,000 workers on 125 nodes" in shown.text
    assert 3 < sum(name == "img" for name, _ in shown.tags) < 6
    assert len(cell(look)) < 600_000
    everyone = Tags(document(rendered(Seen(look=look, version=1), bounds=LIVE), version="x"))
    assert sum(name == "tr" for name, _ in everyone.tags) == 1000 + 125


def test_the_file_needs_nothing_but_itself() -> None:
    html = self_contained(everything()).decode()
    tags = Tags(html).tags
    assert not {"script", "link", "iframe", "object"} & {name for name, _ in tags}
    assert not re.search(r"https?://|url\(|@import", html)
    assert not any("href" in tag for _, tag in tags)
    assert "data-copy" not in html


def test_a_cell_has_no_document_around_it_and_names_of_its_own() -> None:
    one, other = (Tags(cell(everything(), number=number)) for number in (1, 2))
    assert not {"html", "head", "body", "script", "link"} & {name for name, _ in one.tags}
    ids = [{tag["id"] for _, tag in shown.tags if "id" in tag} for shown in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    head, pictures, rest = fragments(Seen(look=everything()))
    assert "data:" in pictures
    assert "data:" not in head + rest


def test_only_what_changed_is_another_part() -> None:
    before = rendered(Seen(look=look_at(worker("a"), worker("b", node="gpu-2")))).parts
    after = rendered(Seen(look=look_at(worker("a"), worker("b", node="gpu-2", rate=3.0)))).parts
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {
        "progress",
        next(key for key in after if key.startswith("node") and "gpu-2" in after[key]),
    }


def test_the_styles_touch_nothing_beside_the_page() -> None:
    css = re.sub(r"/\*.*?\*/", "", render.static("page.css").decode(), flags=re.DOTALL)
    selectors = [one for block in re.findall(r"([^{}]+)\{", css) for one in block.split(",")]
    stray = [one.strip() for one in selectors if not re.match(r"\s*(@|\.shardgen\b)", one)]
    assert [one for one in stray if "prefers" not in one and "max-width" not in one] == []
