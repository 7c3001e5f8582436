"""persist-queue's SQLiteAckQueue: fill FOLDER COUNT | consume FOLDER NAME | recover FOLDER."""

from __future__ import annotations

import os
from typing import Any

import persistqueue

from benchmarks.beside.programs.consuming import Diary, Folder, arguments, consume

AUTO_RESUME = "SHARDGEN_BENCHMARK_AUTO_RESUME"  # its parameter; set by default


class Items:
    """`get` and `ack`."""

    def __init__(self, folder: Folder) -> None:
        auto_resume = os.environ.get(AUTO_RESUME, "1") == "1"
        self.queue: Any = persistqueue.SQLiteAckQueue(str(folder.database), auto_resume=auto_resume)

    def take(self) -> tuple[dict[str, Any], int] | None:
        """The next item."""
        try:
            item = self.queue.get(block=False, raw=True)
        except persistqueue.Empty:
            return None
        return item, int(item["data"])

    def finish(self, handle: object) -> str:
        """Acknowledge it."""
        return "refused" if self.queue.ack(handle) is None else "accepted"

    def recover(self) -> int:
        """Free what is not acknowledged, as an operator would."""
        count = int(self.queue.unack_count())
        if count:
            self.queue.resume_unack_tasks()
        return count


def main() -> None:
    """Do what is asked."""
    verb, folder, rest = arguments()
    match verb:
        case "fill":
            items = Items(folder)
            for piece in range(int(rest)):
                items.queue.put(piece)
        case "consume":
            consume(Items(folder), Diary(folder, rest))
        case _:
            print(Items(folder).recover())


if __name__ == "__main__":
    main()
