from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.bucket.servers import SERVERS, Store

Servers = Callable[[str], Store]


@pytest.fixture(params=[pytest.param(one, marks=pytest.mark.slow) for one in SERVERS])
def store(request: pytest.FixtureRequest, bucket_servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Each server in turn; this process, and whatever it starts, reaches it."""
    server = bucket_servers(request.param)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server
