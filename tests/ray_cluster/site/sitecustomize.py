"""In a worker of these tests: note each batch that is begun, and take a moment for it, as real ones would."""

import os
import sys

if (_BEGUN := os.environ.get("SHARDGEN_TEST_BEGUN", "")) and sys.orig_argv[2:5] == [
    "-m",
    "shardgen",
    "worker",
]:
    import time
    from functools import wraps

    from shardgen.domain.identifiers import BatchIndex
    from shardgen.worker.batch import BatchMaker, Prepared

    _prepare = BatchMaker.prepare

    @wraps(_prepare)
    def _noted(self: BatchMaker, batch: BatchIndex) -> Prepared:
        with open(_BEGUN, "a", encoding="utf-8") as file:  # noqa: PTH123 - appended at once, by many
            file.write(f"{batch}\n")
        time.sleep(0.02)
        return _prepare(self, batch)

    BatchMaker.prepare = _noted  # type: ignore[method-assign]
