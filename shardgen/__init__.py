"""Make large image data sets on machines that come and go, without losing one sample.

The functions here do what the commands of the same names do. They print nothing: how far they are they tell
`on_progress`, and what happens they write to the logger `shardgen`. docs/python.md shows a whole run.

Where a function takes `run_dir`, that is a run directory, or the url of its bucket (`s3://bucket/people`).
`foregrounds`, `backgrounds` and `pictures` are this machine's folders of photographs, where they are not
those of the settings. What went wrong is one of `shardgen.errors`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

# Imported when they are asked for: most commands need little, and start sooner without numpy.
if TYPE_CHECKING:
    from shardgen import errors
    from shardgen.coordination.report import Report
    from shardgen.dataset.export.driver import ExportResult
    from shardgen.dataset.merge import MergeResult
    from shardgen.dataset.reader import DataSet
    from shardgen.dataset.verify import Verification
    from shardgen.domain.progress import Progress
    from shardgen.errors import ShardgenError
    from shardgen.operations.interface import (
        CutOutResult,
        cut_out,
        export,
        init,
        merge,
        plan,
        preview,
        run,
        status,
        verify,
    )
    from shardgen.operations.plan import Planned
    from shardgen.operations.run import RunResult

logging.getLogger(__name__).addHandler(logging.NullHandler())  # else Python itself would print warnings
__version__ = "0.1.0"
__all__ = [
    "CutOutResult",
    "DataSet",
    "ExportResult",
    "MergeResult",
    "Planned",
    "Progress",
    "Report",
    "RunResult",
    "ShardgenError",
    "Verification",
    "__version__",
    "cut_out",
    "errors",
    "export",
    "init",
    "merge",
    "plan",
    "preview",
    "run",
    "status",
    "verify",
]
_PLACES = {  # where each of them is
    "DataSet": "shardgen.dataset.reader",
    "ExportResult": "shardgen.dataset.export.driver",
    "MergeResult": "shardgen.dataset.merge",
    "Planned": "shardgen.operations.plan",
    "Progress": "shardgen.domain.progress",
    "Report": "shardgen.coordination.report",
    "RunResult": "shardgen.operations.run",
    "ShardgenError": "shardgen.errors",
    "Verification": "shardgen.dataset.verify",
    **dict.fromkeys(
        ("CutOutResult", "cut_out", "export", "init", "merge", "plan", "preview", "run", "status", "verify"),
        "shardgen.operations.interface",
    ),
}

if not TYPE_CHECKING:  # a type checker sees the imports above, and what is not there

    def __getattr__(name: str) -> object:
        from importlib import import_module  # noqa: PLC0415

        if name == "errors":
            return import_module("shardgen.errors")
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_PLACES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
