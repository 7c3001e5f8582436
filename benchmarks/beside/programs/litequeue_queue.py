"""litequeue: fill FOLDER COUNT | consume FOLDER NAME | recover FOLDER."""

from __future__ import annotations

from typing import Any

from litequeue import LiteQueue

from benchmarks.beside.programs.consuming import Diary, Folder, arguments, consume

_HELD_SECONDS = 1  # longer than this is what an operator would look for


class Messages:
    """`pop` and `done`."""

    def __init__(self, folder: Folder) -> None:
        self.queue: Any = LiteQueue(folder.database)

    def take(self) -> tuple[str, int] | None:
        """The next message."""
        message = self.queue.pop()
        return None if message is None else (message.message_id, int(message.data))

    def finish(self, handle: object) -> str:
        """Mark it done; accepted if that changed its time of completion."""
        before = self.queue.get(handle).done_time
        self.queue.done(handle)
        return "accepted" if self.queue.get(handle).done_time != before else "refused"

    def recover(self) -> int:
        """Free what somebody has held for long, as an operator would."""
        held = list(self.queue.list_locked(_HELD_SECONDS))
        for message in held:
            self.queue.retry(message.message_id)
        return len(held)


def main() -> None:
    """Do what is asked."""
    verb, folder, rest = arguments()
    messages = Messages(folder)
    match verb:
        case "fill":
            for piece in range(int(rest)):
                messages.queue.put(str(piece))
        case "consume":
            consume(messages, Diary(folder, rest))
        case _:
            print(messages.recover())


if __name__ == "__main__":
    main()
