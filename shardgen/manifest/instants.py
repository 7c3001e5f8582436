"""The one place that turns instants into the manifest's UTC seconds and back."""

from __future__ import annotations

from datetime import UTC, datetime


def to_seconds(instant: datetime) -> float:
    """UTC seconds since 1970 of an aware datetime."""
    return instant.timestamp()


def from_seconds(seconds: float) -> datetime:
    """The aware UTC datetime of seconds since 1970."""
    return datetime.fromtimestamp(seconds, tz=UTC)


def utc_now() -> datetime:
    """This host's clock."""
    return datetime.now(tz=UTC)
