"""The figures of a chaos run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Figures:
    """Counted while it goes; `violations` decide the exit code."""

    seed: int
    seconds: float
    micro_batch: int
    planned: int = 0
    stored: int = 0
    dead: int = 0
    lost: int = 0
    looks: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    exit_codes: Counter[int] = field(default_factory=Counter)
    redone: Counter[str] = field(default_factory=Counter)
    worst_kill: int = 0
    sha256_equal: bool = False
    violations: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Two columns, then what was violated."""
        kills = self.counts["kills"]
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items()))
        codes = ", ".join(f"{code} x {count}" for code, count in sorted(self.exit_codes.items()))
        redone = ", ".join(f"{count} by {cause}" for cause, count in sorted(self.redone.items()))
        per_kill = (
            f"{self.redone['kill'] / kills:.2f} on average, {self.worst_kill} at most" if kills else "-"
        )
        rows = [
            ("seed, seconds, micro-batch", f"{self.seed}, {self.seconds:.0f}, {self.micro_batch}"),
            ("kills", f"{kills}, with a noted sample: {self.counts['deaths of a noted sample']}"),
            ("spared for the sake of one", f"{self.counts['kills spared']}"),
            ("killed or stalled inside a commit", f"{self.counts['stopped inside a commit']}"),
            ("stalls past the lease", f"{self.counts['stalls']}, woken: {self.counts['woken']}"),
            ("disk faults", f"{self.faults.total()}: {faults}"),
            ("artifacts damaged", f"{self.counts['corruptions']}, found: {self.counts['corruptions found']}"),
            (
                "manifests lost and rebuilt",
                f"{self.counts['rebuilds']}, beside half a commit: {self.counts['journals moved away']}",
            ),
            ("rebuilds cut and begun again", f"{self.counts['rebuilds cut']}"),
            (
                "sessions ended by the server",
                f"{self.counts['sessions ended']}, inside a transaction: {self.counts['transactions ended']}",
            ),
            (
                "server restarts",
                f"{self.counts['restarts fast']} fast, {self.counts['restarts immediate']} as a crash",
            ),
            ("PUTs cut", f"{self.counts['PUTs cut']}"),
            ("the store refuses or is away", self._refusals() or "0"),
            ("batches put back", f"{self.counts['batches requeued']} in {self.counts['requeues']} requeues"),
            ("blocked slices opened", f"{self.counts['slices unblocked']}"),
            ("workers left, joined, started", self._crew()),
            ("exit codes", codes),
            ("looks at the counters", f"{self.looks}"),
            (
                "samples planned, stored, dead, lost",
                f"{self.planned}, {self.stored}, {self.dead}, {self.lost}",
            ),
            ("batches redone", f"{self.redone.total()}: {redone}"),
            ("redone per kill", per_kill),
            ("sha256 equal", "yes" if self.sha256_equal else "NO"),
            ("violations", f"{len(self.violations)}"),
        ]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        return "\n".join([*lines, *(f"VIOLATION {one}" for one in self.violations)])

    def _crew(self) -> str:
        return f"{self.counts['leaves']}, {self.counts['joins']}, {self.counts['starts']}"

    def _refusals(self) -> str:
        return ", ".join(
            f"{count} x {name}" for name, count in sorted(self.counts.items()) if "store" in name
        )
