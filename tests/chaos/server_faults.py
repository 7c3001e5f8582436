"""What a database server does to everybody at once: sessions ended, the server away for a moment."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass

from tests.chaos.crew import Crew
from tests.chaos.figures import Figures
from tests.chaos.postgres_backdoor import PostgresBackdoor

_INSIDE = 0.5  # of the cuts wait for a session that is inside a transaction
_SHARES = [0.0, 0.5, 1.0]  # of the sessions; at least one


@dataclass(slots=True)
class ServerFaults:
    """Each returns False when it cannot happen now; then it is to be tried again."""

    backdoor: PostgresBackdoor
    crew: Crew
    figures: Figures
    _restart: threading.Thread | None = None

    def cut(self, source: random.Random) -> bool:
        """Let the server end sessions: everybody's, half of them, one, or one inside a transaction."""
        if not self._has_victims:
            return False
        if source.random() < _INSIDE:
            sessions = transactions = int(self.backdoor.end_a_transaction(source))
        else:
            sessions, transactions = self.backdoor.end_sessions(source, share=source.choice(_SHARES))
        self.figures.counts["sessions ended"] += sessions
        self.figures.counts["transactions ended"] += transactions
        return True

    def restart(self, source: random.Random) -> bool:
        """Restart the server while everything else goes on."""
        if not self._has_victims or not self.crew.may_all_be_late():
            return False

        def restart() -> None:
            try:
                mode = self.backdoor.restart(source)
            except Exception as error:  # noqa: BLE001 - an error of this thread must turn the run red
                self.figures.violations.append(f"the server's restart: {error!r}")
            else:
                self.figures.counts[f"restarts {mode}"] += 1

        self._restart = threading.Thread(target=restart)
        self._restart.start()
        return True

    def join(self) -> None:
        """Wait until the server is back."""
        if self._restart is not None:
            self._restart.join()

    @property
    def _has_victims(self) -> bool:
        is_away = self._restart is not None and self._restart.is_alive()
        return not is_away and bool(self.crew.victims(after=0))
