"""What a worker's diary tells: its leases, what it made of them, its faults and how it said that it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.worker import DIARY


@dataclass(slots=True)
class LeaseHistory:
    """What happened under one lease; only batches of its own slice count."""

    batches: range
    composed: set[int] = field(default_factory=set)
    recorded: set[int] = field(default_factory=set)
    receipts: set[tuple[int, int]] = field(default_factory=set)
    """Batch and fence."""
    estimated: int = 0

    @property
    def unrecorded(self) -> int:
        """Batches begun under this lease that got no receipt."""
        return len(self.composed - self.recorded)

    @property
    def unrecorded_estimates(self) -> int:
        """Of these, those that have been through the network."""
        return max(0, self.estimated - len(self.recorded))


@dataclass(slots=True)
class WorkerHistory:
    """A whole process."""

    leases: list[LeaseHistory] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    outcome: str = ""
    pending: int = 0
    last_lease_at: float = 0.0

    @property
    def is_up(self) -> bool:
        """Whether it takes signals: it says something only after that."""
        return bool(self.said)

    @property
    def recorded(self) -> list[int]:
        """Every batch that it recorded, as often as it did."""
        return [batch for lease in self.leases for batch in lease.recorded]

    @property
    def receipts(self) -> set[tuple[int, int]]:
        """Batch and fence of every receipt that was acknowledged."""
        return {one for lease in self.leases for one in lease.receipts}


def read_history(folder: Path) -> WorkerHistory:
    """Read a diary; its last line may be missing, never half."""
    history = WorkerHistory()
    path = folder / DIARY
    if not path.exists():
        return history
    for line in path.read_text(encoding="utf-8").splitlines():
        time, event, *values = line.split(" ")
        _note(history, float(time), event, values)
    return history


def _note(history: WorkerHistory, time: float, event: str, values: list[str]) -> None:
    lease = history.leases[-1] if history.leases else LeaseHistory(batches=range(0))
    match event:
        case "lease":
            history.leases.append(LeaseHistory(batches=range(int(values[0]), int(values[1]))))
            history.last_lease_at = time
        case "prepared" if int(values[0]) in lease.batches:
            lease.composed.add(int(values[0]))
        case "step" if values[0] == "computed":
            lease.estimated += 1
        case "recorded":
            lease.recorded.add(int(values[0]))
            lease.receipts.add((int(values[0]), int(values[1])))
        case "fault":
            history.faults.append((values[0], values[1]))
        case "said":
            history.said.append(" ".join(values))
        case "outcome":
            history.outcome, history.pending = values[0], int(values[1])
