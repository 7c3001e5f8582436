from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL, Connection, Engine, TextClause, event

from shardgen.domain.steps import RebuildStep
from shardgen.errors import ManifestBusy
from shardgen.manifest.backend import Access
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.postgres import PostgresServer
from tests.postgres import new_schema


@pytest.fixture
def url(postgres_servers: Callable[[], URL]) -> Iterator[str]:
    with new_schema(postgres_servers()) as made:
        yield made


@pytest.fixture
def server(url: str, tmp_path: Path) -> PostgresServer:
    backend = DatabaseUrl(url=url, run_dir=tmp_path).backend
    assert isinstance(backend, PostgresServer)
    return backend


def end_sessions(url: str) -> None:
    """Let the server end the sessions of this schema."""
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity"
            " WHERE application_name LIKE 'shardgen %'"
        )


def test_a_connection_that_is_cut_while_it_is_set_up_is_tried_again(
    server: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[int] = []
    real = server._engine

    def engine() -> Engine:
        made = real()

        @event.listens_for(made, "connect")
        def _set_up(connection: Any, _record: object) -> None:
            if not cut:
                cut.append(connection.info.backend_pid)
                end_sessions(url)
                with pytest.raises(psycopg.errors.AdminShutdown):
                    connection.execute("SELECT 1")
                connection.execute("SELECT 1")  # only the driver knows of the end, and it has no code for it

        return made

    monkeypatch.setattr(server, "_engine", engine)
    database = server.open(Access.WRITE)
    try:
        assert database.transact(lambda connection: connection.exec_driver_sql("SELECT 7").scalar()) == 7
    finally:
        database.close()
    assert cut


def test_the_work_that_nobody_else_may_do_ends_well_although_its_session_was_cut(
    server: PostgresServer, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), server.alone():
        end_sessions(url)
    assert caplog.messages == []
    with server.alone():
        pass


def test_who_was_alone_notices_that_the_session_was_cut(server: PostgresServer, url: str) -> None:
    with server.alone() as still_alone:
        still_alone()
        still_alone()
        end_sessions(url)
        with pytest.raises(ManifestBusy, match="cut in the middle"):
            still_alone()


def test_who_was_alone_notices_that_the_lock_went_without_the_session(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[Connection] = []
    refuse_company = server._refuse_company

    def remembering(connection: Connection, attempt: TextClause) -> None:
        sessions.append(connection)
        refuse_company(connection, attempt)

    monkeypatch.setattr(server, "_refuse_company", remembering)
    with server.alone() as still_alone:
        still_alone()
        # As a pooler does that gives the session to somebody else.
        sessions[0].exec_driver_sql("SELECT pg_advisory_unlock_all()")
        sessions[0].commit()
        with pytest.raises(ManifestBusy, match="lost midway"):
            still_alone()


def test_a_rebuild_is_alone_until_its_commit_and_no_longer(server: PostgresServer) -> None:
    def create(connection: Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE whole (done integer)")

    def refused() -> bool:
        try:
            with server.alone():
                return False
        except ManifestBusy:
            return True

    seen: list[bool] = []
    server.build(
        create,
        lambda _connection: seen.append(refused()),
        on_step=lambda step: seen.append(refused()) if step is RebuildStep.LINKED else None,
    )
    assert seen == [True, False]


def test_a_rebuild_does_not_begin_beside_somebody_who_is_alone(server: PostgresServer) -> None:
    with server.alone(), pytest.raises(ManifestBusy, match="another rebuild or sweep"):
        server.build(lambda _connection: None, lambda _connection: None, on_step=lambda _step: None)


def test_only_one_at_a_time_does_what_nobody_else_may_do(server: PostgresServer) -> None:
    with server.alone(), pytest.raises(ManifestBusy, match="another rebuild or sweep"), server.alone():
        pass
    with server.alone():
        pass


def test_a_rebuild_whose_connection_is_cut_is_to_be_run_again_and_leaves_nothing(
    server: PostgresServer, url: str
) -> None:
    def create(connection: Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE half (done integer)")

    def fill(connection: Connection) -> None:
        end_sessions(url)
        connection.exec_driver_sql("INSERT INTO half VALUES (1)")

    with pytest.raises(ManifestBusy, match="cut in the middle") as error:
        server.build(create, fill, on_step=lambda _step: None)
    assert error.value.exit_code == 30
    server.refuse_existing()
