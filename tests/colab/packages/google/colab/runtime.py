"""Ending the runtime."""

from google.colab import journal


def unassign() -> None:
    """Note that it would end now."""
    journal.note("unassign")
