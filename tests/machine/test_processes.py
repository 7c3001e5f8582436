from __future__ import annotations

import os
import socket

import pytest

from shardgen.machine.processes import new_identity


def test_a_host_name_that_is_no_utf_8_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: os.fsdecode(b"caf\xc3\xa9-\xff"))
    found = new_identity()
    assert found.node == r"café-\xff"
    assert found.id.startswith(rf"café-\xff-{os.getpid()}-")
    (found.id + found.host).encode()
