"""In a worker of these tests: note each batch that is begun, and be slow as long as a test says so."""

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
        if os.path.exists(f"{_BEGUN}.slow"):  # noqa: PTH110 - pathlib is not loaded otherwise
            time.sleep(0.25)
        return _prepare(self, batch)

    BatchMaker.prepare = _noted  # type: ignore[method-assign]
