"""Python imports this at its start when this folder is on its path; see the package's `environment`."""

from __future__ import annotations

import os

if os.environ.get("SHARDGEN_TEST_POISON"):
    from tests import poison

    poison.install(os.environ["SHARDGEN_TEST_POISON"])
