"""Signing in: `$USE_AUTH_EPHEM` says, as on Colab, whether the runtime gives tokens or a file holds one."""

import json
import os
from pathlib import Path

from google.colab import journal


def authenticate_user() -> None:
    """Note it; without `USE_AUTH_EPHEM=1` leave the file that Colab leaves."""
    journal.note("authenticate")
    if os.environ.get("USE_AUTH_EPHEM") != "1":
        adc = Path(os.environ["FAKE_JOURNAL"]).with_name("adc.json")
        user = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}
        adc.write_text(json.dumps(user), encoding="utf-8")
        os.environ["GOOGLE_APPLICATION_CREDENTIALS"] = str(adc)
