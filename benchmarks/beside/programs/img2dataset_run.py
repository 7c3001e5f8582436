"""img2dataset on a list of addresses: LIST OUTPUT SHARD_SIZE WORKERS."""

from __future__ import annotations

import sys


def main() -> None:
    """Download; the program is killed by the benchmark, which sees what it asks the server for."""
    from img2dataset import download  # noqa: PLC0415 - spawned workers import this module again

    addresses, output, shard_size, workers = sys.argv[1:]
    download(
        url_list=addresses,
        output_folder=output,
        output_format="webdataset",
        image_size=32,
        number_sample_per_shard=int(shard_size),
        processes_count=int(workers),
        thread_count=1,
        # The same command again must find the same settings, also after a kill.
        incremental_mode="incremental",
    )


if __name__ == "__main__":
    main()
