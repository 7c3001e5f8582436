from __future__ import annotations

from pathlib import Path

import pytest

from shardgen.errors import ManifestMismatch
from shardgen.manifest.filesystem import has_trusted_locks, refuse_untrusted


def test_a_manifest_on_a_network_or_fuse_file_system_is_refused(tmp_path: Path) -> None:
    mounts = [("/", "ext4"), (str(tmp_path), "fuse.drive"), (f"{tmp_path}/local", "ext4")]
    with pytest.raises(ManifestMismatch, match=r"fuse\.drive"):
        refuse_untrusted(tmp_path / "run" / "manifest.sqlite", mounts)
    refuse_untrusted(tmp_path / "local" / "manifest.sqlite", mounts)
    refuse_untrusted(Path("/manifest.sqlite"), mounts)
    for kind in ("nfs4", "cifs", "9p", "fuse.sshfs", "lustre"):
        assert not has_trusted_locks(kind)
