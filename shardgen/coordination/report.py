"""Report: the state of a run as people and programs read it; needs no network and reads no artifact."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from shardgen.domain.overview import FolderNews, Overview
from shardgen.domain.plan import Plan
from shardgen.domain.progress import Progress
from shardgen.domain.worker import ShownState, WorkerRow, log_path
from shardgen.machine.processes import gone
from shardgen.recipes.registry import recipe_of
from shardgen.settings.run_directory import RunDirectory

_CENTURIES = 1e10  # seconds
_MAKING = {ShownState.WORKING, ShownState.SUSPECT}
_NOT_HOLDING = {ShownState.DEAD, ShownState.STOPPED, ShownState.EXPIRED}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownWorker:
    """A worker's row with what is concluded from it."""

    row: WorkerRow
    state: ShownState
    last_beat_seconds: float

    @property
    def rate(self) -> float:
        """Samples per second, over its last ten minutes; 0 unless it works now."""
        return self.row.samples_per_second if self.state in _MAKING else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `status` shows, taken at one instant."""

    plan: Plan
    overview: Overview
    workers: tuple[ShownWorker, ...]
    folder: FolderNews | None = None
    log_folders: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        """One line, as a notebook shows it: the plan has a line for each photograph."""
        done = f"{self.stored} of {self.plan.samples} samples stored"
        return f"<Report: {done}, {self.dead} dead letters, {self.pending} pending>"

    def log_of(self, one: ShownWorker) -> Path | None:
        """Where a worker's log is on this machine; None where it is not, as of a worker elsewhere."""
        paths = (log_path(folder, one.row.identity.id) for folder in self.log_folders)
        return next((path for path in paths if path.exists()), None)

    @property
    def stored(self) -> int:
        """Samples with images."""
        return self.overview.stored

    @property
    def dead(self) -> int:
        """Samples given up."""
        return self.overview.dead

    @property
    def pending(self) -> int:
        """Samples that are neither."""
        return self.plan.samples - self.stored - self.dead

    @property
    def is_anybody_at_work(self) -> bool:
        """Whether a worker is there that may hold a slice, or will."""
        return any(one.state not in _NOT_HOLDING for one in self.workers)

    def is_under_way(self, *, since: Report) -> bool:
        """Whether a worker has loaded what it needs, or one that has ended already made something."""
        is_ready = any(one.state not in {*_NOT_HOLDING, ShownState.STARTING} for one in self.workers)
        return is_ready or self.pending < since.pending

    @property
    def rate(self) -> float:
        """Samples per second of the workers that work now, each over its last ten minutes."""
        return sum(one.rate for one in self.workers)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to go at that rate; None while nothing moves, or so slowly that it would be centuries."""
        if not self.pending:
            return 0.0
        seconds = self.pending / self.rate if self.rate > 0 else math.inf
        return seconds if seconds < _CENTURIES else None

    @property
    def progress(self) -> Progress:
        """How far the run is, and who is at work."""
        at_work = sum(one.state not in _NOT_HOLDING for one in self.workers)
        return Progress(
            done=self.stored + self.dead,
            total=self.plan.samples,
            rate=self.rate or None,
            dead=self.dead,
            workers=at_work,
        )

    def as_json(self) -> dict[str, object]:
        """The stable schema of `status --json` (docs/formats.md section 6)."""
        layout = self.plan.layout
        holders = Counter(one.row.shard for one in self.workers if one.state not in _NOT_HOLDING)
        eta = self.eta_seconds
        return {
            "plan": plan_json(self.plan),
            "samples": self.samples_json(),
            "shards": [
                {
                    "index": shard.shard,
                    "start": layout.shard_samples(shard.shard).start,
                    "stop": layout.shard_samples(shard.shard).stop,
                    "stored": shard.stored,
                    "dead_letters": shard.dead,
                    "pending": len(layout.shard_samples(shard.shard)) - shard.stored - shard.dead,
                    "workers": holders[shard.shard],
                    "slices": asdict(shard.slices),
                }
                for shard in self.overview.shards
            ],
            "blocked": {
                "total": self.overview.blocked_total,
                "first": [asdict(one) for one in self.overview.blocked],
            },
            "workers": [
                {
                    "id": one.row.identity.id,
                    "node": one.row.identity.node,
                    "host": one.row.identity.host,
                    "shard": one.row.shard,
                    "slice": one.row.slice,
                    "state": one.state.value,
                    "last_beat_seconds": round(one.last_beat_seconds, 1),
                    "samples_per_second": round(one.row.samples_per_second, 3),
                    "log": None if (log := self.log_of(one)) is None else str(log.absolute()),
                }
                for one in self.workers
            ],
            "mixture": self.mixture,
            "rate_samples_per_second": round(self.rate, 3),
            "eta_seconds": None if eta is None else round(eta, 1),
            "taken_at": self.overview.taken_at.isoformat(),
        } | ({} if self.folder is None else {"shared_folder": _folder_json(self.folder)})

    def samples_json(self) -> dict[str, int]:
        """Its part that counts samples."""
        return {
            "planned": self.plan.samples,
            "stored": self.stored,
            "dead_letters": self.dead,
            "pending": self.pending,
        }

    @property
    def mixture(self) -> list[dict[str, object]]:
        """What the batches were made by, if by more than one kind of device, version or micro-batch."""
        if len(self.overview.mixture) < 2:
            return []
        return [{**provenance.facts, "batches": batches} for provenance, batches in self.overview.mixture]


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan as the documents of commands show it."""
    return {
        "fingerprint": plan.fingerprint,
        "samples": plan.samples,
        "shards": plan.layout.shard_count,
        "batches": plan.layout.batch_count,
        "not_depth": bool(recipe_of(plan).remark),
    }


def make_report(run: RunDirectory, plan: Plan, overview: Overview) -> Report:
    """Add to an overview which of this host's workers have ended, and what state each is in."""
    policy = run.settings.lease_policy
    if run.is_shared_folder:  # a worker shows itself there as often as it must, and is seen late
        silent = run.settings.folder_policy.silent
        policy = replace(policy, duration=silent, stall=silent)
    now: datetime = overview.taken_at
    ended = set(gone(row.identity for row in overview.workers))
    return Report(
        plan=plan,
        overview=overview,
        workers=tuple(
            ShownWorker(
                row=row,
                state=row.shown_state(now, policy, gone=row.identity.id in ended),
                last_beat_seconds=max(0.0, (now - row.last_beat_at).total_seconds()),
            )
            for row in overview.workers
        ),
        log_folders=run.log_folders,
    )


def _folder_json(news: FolderNews) -> dict[str, object]:
    return {
        "lag_seconds": news.lag_seconds,
        "slowest_lag_seconds": news.slowest_lag_seconds,
        "waiting_batches": news.waiting,
        "arriving_files": news.arriving,
        "duplicated_batches": news.duplicated,
        "troubles": list(news.troubles),
    }
