from __future__ import annotations

from pathlib import Path

import pytest

from shardgen.domain.plan import Plan
from shardgen.errors import ManifestMismatch
from shardgen.machine import file_systems
from shardgen.machine.file_systems import has_trusted_locks, refuse_untrusted
from shardgen.manifest.database_url import DatabaseUrl
from shardgen.manifest.manifest import Manifest, create_manifest


def test_a_manifest_on_a_network_or_fuse_file_system_is_refused(tmp_path: Path) -> None:
    mounts = [("/", "ext4"), (str(tmp_path), "fuse.drive"), (f"{tmp_path}/local", "ext4")]
    with pytest.raises(ManifestMismatch, match=r"fuse\.drive"):
        refuse_untrusted(tmp_path / "run" / "manifest.sqlite", mounts)
    refuse_untrusted(tmp_path / "local" / "manifest.sqlite", mounts)
    refuse_untrusted(Path("/manifest.sqlite"), mounts)
    for kind in ("nfs4", "cifs", "9p", "fuse.sshfs", "lustre"):
        assert not has_trusted_locks(kind)


def test_a_manifest_there_can_be_read_all_the_same_but_neither_made_nor_written(
    database: DatabaseUrl, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_manifest(database, plan)
    monkeypatch.setattr(file_systems, "mount_table", lambda: [("/", "ext4"), (str(tmp_path), "fuse.drive")])
    with Manifest(database, plan, read_only=True) as manifest:
        assert manifest.overview().stored == 0
    for refused in (lambda: Manifest(database, plan), lambda: create_manifest(database, plan)):
        with pytest.raises(ManifestMismatch, match=r"fuse\.drive") as caught:
            refused()
        assert "postgresql+psycopg://" in caught.value.hint
        assert "sqlite:////" in caught.value.hint
