"""Names are values in the database, never SQL; and no statement is put together from text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shardgen.domain.identifiers import WorkerId
from shardgen.domain.lease import Lease
from shardgen.domain.plan import Plan
from shardgen.domain.receipt import Provenance, Receipt
from shardgen.domain.worker import WorkerReport, WorkerState
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest
from shardgen.recipes.composites.plan import CompositesPlan
from tests.artifacts.attempts import single
from tests.conformance.conftest import POLICY, identity
from tests.plans import changed, make_plan

PACKAGE = Path(__file__).parent.parent.parent / "shardgen"
EVIL = [
    "x'); DROP TABLE receipt; --",
    'x"; DROP TABLE run; --',
    "x' OR '1'='1",
    "x\\'; DELETE FROM worker; --",
    "%s %(name)s :name ? $1 {name}",
    "x' UNION SELECT plan FROM run --",
    "[x] `x` /* x */ ;",
    "名' OR 1=1 --",
]


def plan_with(name: str) -> Plan:
    plan = make_plan(batch=4, slice_batches=2)
    sources = CompositesPlan(plan).sources
    first, *rest = sources.backgrounds
    return changed(plan, sources=replace(sources, backgrounds=(replace(first, name=name), *rest)))


@pytest.mark.parametrize("name", EVIL)
def test_a_name_that_looks_like_sql_is_kept_as_it_is_and_does_nothing(tmp_path: Path, name: str) -> None:
    plan = plan_with(name)
    database = DatabaseUrl(url="sqlite:///manifest.sqlite", run_dir=tmp_path)
    create_manifest(database, plan)
    worker = WorkerId(f"{name}-aaaaaaaa")
    with Manifest(database, plan) as manifest:
        manifest.workers.register(replace(identity("other"), id=worker, host=name, device=name))
        manifest.workers.register(identity("honest"))
        manifest.workers.set_device(worker, name)
        manifest.workers.beat(worker, WorkerReport(state=WorkerState.WORKING, note=name))
        assert manifest.micro_batches.agreed(name, 3) == 3
        manifest.micro_batches.shrink(name, 2)
        assert manifest.micro_batches.shrunk(name) == 2
        assert manifest.micro_batches.shrunk("another") is None
        lease = manifest.leases.lease(worker, POLICY)
        assert isinstance(lease, Lease)
        receipt = made(plan, lease, name, tmp_path)
        manifest.receipts.record(lease, receipt)
        manifest.leases.fail(lease, name, POLICY)
        assert manifest.workers.known() == {worker, identity("honest").id}
        assert [one.id for one in manifest.workers.alive_on_host(name)] == [worker]
        assert manifest.workers.alive_on_host("x") == []
        assert [row.record for row in manifest.receipts.receipts()] == [receipt.record]
        assert [letter.detail for letter in manifest.receipts.dead_letters()] == [name]
        again = manifest.leases.lease(worker, POLICY)
        assert isinstance(again, Lease)
        manifest.leases.block(again, name)
        assert [one.reason for one in manifest.overview().blocked] == [name]
    with Manifest(database, plan, read_only=True) as manifest:
        assert manifest.overview().dead == 1


def made(plan: Plan, lease: Lease, name: str, folder: Path) -> Receipt:
    """A receipt of the lease's first batch, whose every text is the name."""
    batch = int(plan.layout.slice_batch_range(lease.shard, lease.slice)[0])
    (receipt,) = single(batch, fence=lease.fence, dead=(1,)).publish(plan, folder / "artifacts")
    record = receipt.record
    letters = tuple(replace(letter, detail=name) for letter in record.dead_letters)
    provenance = Provenance.of({"device_model": name, "micro_batch": 4, name: name})
    return replace(
        receipt,
        worker=lease.worker,
        record=replace(record, dead_letters=letters, provenance=provenance),
    )


ALWAYS_SQL = {"DDL", "SQL", "TextClause", "exec_driver_sql", "executescript", "literal_column", "text"}
SQL_OR_A_STATEMENT = {"execute", "executemany"}


def variable_sql(source: str) -> Iterator[str]:
    """Calls that take SQL as text and are given anything but one of a few constants."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        function, given = node.func, node.args[0]
        called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        is_built = isinstance(given, ast.JoinedStr | ast.BinOp | ast.Call) and not _is_statement(given)
        if (called in ALWAYS_SQL and not _is_constant(given)) or (called in SQL_OR_A_STATEMENT and is_built):
            yield ast.unparse(node)


def _is_constant(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_constant(node.body) and _is_constant(node.orelse)
    return isinstance(node, ast.Constant)


def _is_statement(node: ast.expr) -> bool:
    """A call that builds a statement of SQLAlchemy's: everything but the formatting of a text."""
    return isinstance(node, ast.Call) and getattr(node.func, "attr", "") not in {"format", "join", "replace"}


@pytest.mark.parametrize(
    "path",
    sorted([*(PACKAGE / "manifest").rglob("*.py"), *(PACKAGE.parent / "migrations").rglob("*.py")]),
    ids=lambda path: str(path.relative_to(PACKAGE.parent)),
)
def test_no_statement_is_put_together_from_text(path: Path) -> None:
    assert list(variable_sql(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "connection.execute(text(f'SELECT {name}'))",
        "connection.exec_driver_sql('DELETE FROM ' + table)",
        "connection.exec_driver_sql(statement)",
        "cursor.execute('SELECT %s' % name)",
        "literal_column(f'{name}')",
        "connection.execute('DELETE FROM {}'.format(name))",
        "connection.execute(text(statement))",
    ],
)
def test_a_statement_put_together_from_text_is_found(source: str) -> None:
    assert list(variable_sql(source))
