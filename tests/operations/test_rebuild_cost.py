from __future__ import annotations

from sqlalchemy import Engine, event

from shardgen.operations.rebuild import rebuild
from shardgen.settings.run_directory import RunDirectory
from tests.artifacts.attempts import single
from tests.operations.lost_runs import publish


def test_its_statements_grow_with_slices_and_not_with_batches(lost: RunDirectory) -> None:
    publish(lost, *(single(batch) for batch in range(12)))
    written: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        verb, *words = statement.split()
        table = words[1] if verb == "INSERT" else words[0] if verb == "UPDATE" else ""
        written.append(f"{verb} {table}")

    event.listen(Engine, "before_cursor_execute", note)
    try:
        assert rebuild(lost)[1].batches == 12
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    counts = {what: written.count(what) for what in ("INSERT receipt", "INSERT slice", "UPDATE shard")}
    assert counts == {"INSERT receipt": 7, "INSERT slice": 7, "UPDATE shard": 3}
    assert written.count("UPDATE provenance") <= 3
