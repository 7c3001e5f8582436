"""What a person does while it goes wrong: real commands, one after the other, in a thread of their own."""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, Queue

from shardgen.domain.plan import Plan
from shardgen.errors import ShardgenError
from shardgen.settings.run_directory import RunDirectory
from tests import warm
from tests.chaos.backdoors import Backdoor
from tests.chaos.crew import Crew
from tests.chaos.figures import Figures

BUSY = 30
JOURNAL_LEFT = MANIFEST_THERE = 13
_REBUILDS = 20
_PATIENCE_SECONDS = 90.0  # for leases that live on the slices to be put back

Order = Callable[[], None]


@dataclass(slots=True, kw_only=True)
class Operator:
    """Damages, verifies, puts back, rebuilds; `damaged` are the artifacts that it has spoilt."""

    run: RunDirectory
    plan: Plan
    backdoor: Backdoor
    figures: Figures
    crew: Crew
    say: Callable[[str], None]
    damaged: set[str] = field(default_factory=set)
    has_manifest: threading.Event = field(default_factory=threading.Event)
    wants_nobody: threading.Event = field(default_factory=threading.Event)
    _orders: Queue[Order] = field(default_factory=Queue)
    _dismissed: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.has_manifest.set()
        self._thread = threading.Thread(target=self._obey, daemon=True)
        self._thread.start()

    def order(self, order: Order) -> None:
        """Do this when everything before it is done."""
        self._orders.put(order)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        return self._orders.unfinished_tasks == 0

    def dismiss(self) -> None:
        """Finish what is begun; forget the rest."""
        self._dismissed.set()

    @property
    def is_at_work(self) -> bool:
        """Whether it has not yet finished what it had begun when it was dismissed."""
        return self._thread.is_alive()

    def _obey(self) -> None:
        while not self._dismissed.is_set():
            try:
                order = self._orders.get(timeout=0.2)
            except Empty:
                continue
            try:
                order()
            except Exception as error:  # noqa: BLE001 - an error of this thread must turn the run red
                self.figures.violations.append(f"operator: {error!r}")
            finally:
                self._orders.task_done()

    def shardgen(self, *arguments: object, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Run the real command."""
        done = warm.run("shardgen", [str(argument) for argument in arguments], timeout=timeout)
        lines = [*done.stdout.splitlines()[-1:], *done.stderr.splitlines()[-2:]]
        self.say(f"shardgen {arguments[0]}: {done.returncode} {' | '.join(lines)[:300]}")
        return done

    def damage(self, source: random.Random) -> None:
        """Flip a bit of a recorded artifact, cut it short or remove it; then let `verify` find that."""
        with self.run.manifest(self.plan, read_only=True) as manifest:
            names = [receipt.artifact.name for receipt in manifest.receipts.receipts()]
        for name in source.sample(names, min(len(names), source.randint(1, 3))):
            data = bytearray(self.backdoor.artifact(self.run, name))
            how = source.choice(["flip", "truncate", "remove"])
            self.damaged.add(name)
            self.figures.counts["corruptions"] += 1
            if how == "remove":
                self.backdoor.spoil(self.run, name, None)
                continue
            if how == "flip":
                data[source.randrange(len(data))] ^= 1 << source.randrange(8)
            else:
                del data[source.randrange(len(data)) :]
            self.backdoor.spoil(self.run, name, bytes(data))
        self.verify()

    def verify(self) -> int:
        """`verify --requeue` until no live lease forbids it; what it finds must be what was damaged."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            began = time.monotonic()
            done = self.shardgen("verify", self.run.path, "--requeue", "--json")
            self.crew.put_back.append((began, time.monotonic()))
            if done.returncode != BUSY:
                break
            if time.monotonic() > deadline or self._dismissed.is_set():
                return BUSY
            time.sleep(0.3)
        if done.returncode == 0:
            return 0
        if not 20 <= done.returncode < 30:
            self._wrong(done)
            return done.returncode
        findings = json.loads(done.stdout)["findings"]
        for finding in findings:
            if finding["subject"] not in self.damaged:
                self.figures.violations.append(f"verify: {finding}: nobody damaged that")
        self.figures.counts["corruptions found"] += len(findings)
        self.figures.counts["requeues"] += 1
        self.figures.counts["batches requeued"] += len(findings)
        return done.returncode

    def requeue(self, batches: list[int]) -> None:
        """`requeue --batch`, once: a live lease forbids it."""
        began = time.monotonic()
        flags = [word for batch in batches for word in ("--batch", batch)]
        done = self.shardgen("requeue", self.run.path, *flags)
        self.crew.put_back.append((began, time.monotonic()))
        if done.returncode == 0:
            self.figures.counts["requeues"] += 1
            words = done.stdout.split()
            self.figures.counts["batches requeued"] += int(words[1]) if words[1].isdigit() else 0
        elif done.returncode != BUSY:
            self._wrong(done)

    def unblock(self) -> None:
        """`requeue --blocked`."""
        began = time.monotonic()
        done = self.shardgen("requeue", self.run.path, "--blocked")
        self.crew.put_back.append((began, time.monotonic()))
        if done.returncode:
            self._wrong(done)
        elif done.stdout.startswith("opened"):
            self.figures.counts["slices unblocked"] += int(done.stdout.split()[1])

    def rebuild(self, source: random.Random) -> None:
        """Lose the manifest (workers dead or alive), then `rebuild` it."""
        began = time.monotonic()
        self.has_manifest.clear()
        if source.random() < 0.5:
            self._let_nobody_work()
        self.crew.lost.append((began, began + 3600))
        self.backdoor.lose(source)
        done = self._rebuild()
        if done.returncode == JOURNAL_LEFT:
            self._let_nobody_work()
            if self.backdoor.move_half_a_commit_away(done.stderr):
                self.figures.counts["journals moved away"] += 1
                done = self._rebuild()
        self.crew.lost[-1] = (began, time.monotonic() + 40)  # who waits for a lock does so for 30 s
        if done.returncode:
            self._wrong(done)
        self.figures.counts["rebuilds"] += 1
        self.has_manifest.set()

    def _rebuild(self) -> subprocess.CompletedProcess[str]:
        """`rebuild`, again when its session was ended; it may have come through all the same."""
        done = self.shardgen("rebuild", self.run.path)
        for _ in range(_REBUILDS):
            if done.returncode != BUSY or not self.backdoor.has_sessions:
                break
            self.figures.counts["rebuilds cut"] += 1
            done = self.shardgen("rebuild", self.run.path)
            if done.returncode == MANIFEST_THERE:
                done = self.shardgen("status", self.run.path)
        return done

    def _let_nobody_work(self) -> None:
        self.wants_nobody.set()
        while self.crew.members:
            time.sleep(0.1)
        self.wants_nobody.clear()

    def _wrong(self, done: subprocess.CompletedProcess[str]) -> None:
        words = " ".join(map(str, done.args[3:]))[:200]
        self.figures.violations.append(
            f"shardgen {words}: exit code {done.returncode}: {done.stderr[-1500:]}"
        )


def batches_to_requeue(run: RunDirectory, plan: Plan, source: random.Random, share: float) -> list[int]:
    """Recorded batches of finished slices: of a share of these, or a few batches when it is 0."""
    try:
        with run.manifest(plan, read_only=True) as manifest:
            slices: dict[tuple[int, int], list[int]] = {}
            for receipt in manifest.receipts.receipts():
                slices.setdefault((receipt.shard, receipt.slice), []).append(receipt.record.batch)
    except ShardgenError:
        return []
    size = plan.layout.slice_batches
    whole = sorted(place for place, found in slices.items() if len(found) == size)
    if share:
        chosen = source.sample(whole, round(len(whole) * share))
        return sorted(batch for place in chosen for batch in slices[place])
    several = [batch for place in whole for batch in slices[place]]
    return sorted(source.sample(several, min(len(several), source.randint(1, 6))))
