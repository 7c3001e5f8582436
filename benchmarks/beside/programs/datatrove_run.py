"""datatrove's LocalPipelineExecutor on JSON lines, a rank for each file: INPUT OUTPUT LOGS RANKS."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.beside import notes


def noted(documents: Iterator[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:  # noqa: ARG001 - datatrove's signature
    """Note each document on its way from the reader to the writer."""
    for document in documents:
        notes.begin(int(document.id))
        yield document


def main() -> None:
    """Run the pipeline."""
    from datatrove.executor import LocalPipelineExecutor  # noqa: PLC0415 - the environment may not have it
    from datatrove.pipeline.readers import JsonlReader  # noqa: PLC0415 - the same
    from datatrove.pipeline.writers import JsonlWriter  # noqa: PLC0415 - the same

    given, output, logs, ranks = sys.argv[1:]
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(given),
            noted,
            JsonlWriter(output, output_filename="${rank}.jsonl", compression=None),
        ],
        logging_dir=logs,
        tasks=int(ranks),
        workers=int(ranks),
    ).run()


if __name__ == "__main__":
    main()
