"""huey's SqliteHuey and its own consumer: fill FOLDER COUNT | consume FOLDER NAME | recover FOLDER."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from huey import SqliteHuey

from benchmarks.beside.programs.consuming import Diary, Folder, arguments


def opened(folder: Folder, work: Callable[[int], None]) -> tuple[Any, Any]:
    """Return the queue, and the function that puts a piece into it."""
    queue = SqliteHuey("pieces", filename=str(folder.database))
    return queue, queue.task(retries=3, name="work")(work)


def consumed(folder: Folder, name: str) -> None:
    """Run huey's consumer with one worker."""
    diary = Diary(folder, name)

    def work(piece: int) -> None:
        diary.work_on(piece)
        diary.write("finished", piece, "accepted")  # what a function returns is done

    queue, _put = opened(folder, work)
    diary.wait_for_start()
    queue.create_consumer(workers=1, periodic=False).run()


def main() -> None:
    """Do what is asked."""
    verb, folder, rest = arguments()
    match verb:
        case "fill":
            _queue, put = opened(folder, lambda _piece: None)
            for piece in range(int(rest)):
                put(piece)
        case "consume":
            consumed(folder, rest)
        case _:
            print(0)  # huey has no list of what was taken


if __name__ == "__main__":
    main()
