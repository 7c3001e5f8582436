"""The page about a run, for `status --serve` and `run --serve`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from shardgen.cli.render import say
from shardgen.coordination.base import OpenedRun
from shardgen.domain.wording import typed
from shardgen.machine.notebooks import is_notebook


@contextmanager
def serving(opened: OpenedRun, address: str | None) -> Iterator[None]:
    """Serve the page while this is entered, from threads that nobody waits for; nothing without an address.

    Raises MachineUnfit when the port is taken.
    """
    if address is None:
        yield
        return
    from shardgen.operations.page.look import SharedLook
    from shardgen.operations.page.server import DEFAULT, PageServer, parse_address, token_for

    try:
        at = parse_address(address or DEFAULT)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--serve") from error
    token = token_for(at, is_behind_proxy=is_notebook())
    with SharedLook(opened, named=typed(opened.run.named)) as look, PageServer(look, at, token=token) as page:
        say(f"page: {page.url}")
        if token is not None and at.is_loopback:
            say(f"page: through a proxy add ?token={token}")
        yield
