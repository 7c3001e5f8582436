"""Python imports this at its start when this folder is on its path: each process leaves its environment."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

if os.environ.get("SHARDGEN_TEST_ENVIRONS"):
    found = {"arguments": sys.orig_argv, "environment": dict(os.environ)}
    path = Path(os.environ["SHARDGEN_TEST_ENVIRONS"]) / f"{os.getpid()}.json"
    path.write_text(json.dumps(found), encoding="utf-8")
