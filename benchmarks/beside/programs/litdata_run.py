"""litdata's `optimize`: SAMPLES OUTPUT CHUNK_SIZE WORKERS plain|checkpoint; or `read OUTPUT`."""

from __future__ import annotations

import json
import sys
import time

from benchmarks.beside import notes

_SECONDS = 0.005  # a sample's work, so that every worker gets some


def sample(index: int) -> dict[str, int | bytes]:
    """Make one sample."""
    notes.begin(index)
    time.sleep(_SECONDS)
    return {"index": index, "bytes": bytes(1000)}


def make(samples: int, output: str, chunk_size: int, workers: int, *, checkpoint: bool) -> None:
    """Make the data set."""
    from litdata import optimize  # noqa: PLC0415 - the environment may not have it

    optimize(
        fn=sample,
        inputs=list(range(samples)),
        output_dir=output,
        chunk_size=chunk_size,
        num_workers=workers,
        use_checkpoint=checkpoint,
    )


def read(output: str) -> None:
    """Print the indexes of the samples that a reader of the data set gets, as JSON, on the last line."""
    from litdata import StreamingDataset  # noqa: PLC0415 - the environment may not have it

    print(json.dumps([int(one["index"]) for one in StreamingDataset(output)]), flush=True)


def main() -> None:
    """Make, or read."""
    if sys.argv[1] == "read":
        read(sys.argv[2])
    else:
        samples, output, chunk_size, workers, how = sys.argv[1:]
        make(int(samples), output, int(chunk_size), int(workers), checkpoint=how == "checkpoint")


if __name__ == "__main__":
    main()
