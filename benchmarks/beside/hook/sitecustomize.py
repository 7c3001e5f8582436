"""Python imports this at its start when this folder is on its path: our own workers note their samples."""

from __future__ import annotations

import os

if os.environ.get("SHARDGEN_BENCHMARK_NOTES"):
    from benchmarks.beside import noting_worker

    noting_worker.install()
