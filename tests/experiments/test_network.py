"""Tests of `lotterykit.experiments.network`, and of what a store does with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_runner import row

from lotterykit.errors import StoreError
from lotterykit.experiments.grid import Grid
from lotterykit.experiments.network import Mount, _of_mount, _of_mountinfo, network_file_system
from lotterykit.experiments.store import Store, check_writable

CELLS = Grid(spec={"task": "circle", "method": "snip", "density": 0.1}, seeds=3).cells()

# kind, source, options of lines that Linux and macOS print, and whether other hosts may have the files open
MOUNTS = [
    ("ext4", "/dev/sda1", "rw,relatime", False),
    ("tmpfs", "tmpfs", "rw,size=1024k", False),
    ("overlay", "overlay", "rw,lowerdir=/a:/b", False),
    ("apfs", "/dev/disk1s1", "local,journaled", False),
    ("fuse.fuse-overlayfs", "fuse-overlayfs", "rw", False),
    ("fuseblk", "/dev/sdb1", "rw", False),
    ("9p", "none", "rw,trans=fd,rfdno=4,wfdno=4", False),
    ("9p", "share", "rw,trans=virtio", False),
    ("9p", "10.0.0.1", "rw,trans=tcp,port=564", True),
    ("9p", "C:\\134", "rw,aname=drvfs;path=C:\\;uid=1000,trans=fd", True),
    ("nfs4", "host:/home", "rw,vers=4.2", True),
    ("cifs", "//host/share", "rw,vers=3.1.1", True),
    ("lustre", "10.0.0.1@tcp:/scratch", "rw,flock", True),
    ("fuse.sshfs", "user@host:", "rw,user_id=0", True),
    ("fuse.rclone", "remote:bucket", "rw", True),
    ("macfuse", "user@host:/home", "nodev,nosuid", True),
    ("smbfs", "//user@host/share", "nodev,nosuid", True),
]


def line(point, kind, source="/dev/sda1", options="rw"):
    return f"36 35 98:0 / {point} rw,noatime shared:1 - {kind} {source} {options}"


@pytest.fixture
def mounted(monkeypatch, tmp_path):
    """Makes the system say that these lines of mountinfo are what is mounted."""

    def mount(*lines):
        (tmp_path / "mountinfo").write_text("".join(f"{text}\n" for text in lines))
        monkeypatch.setattr("lotterykit.experiments.network.MOUNTINFO", tmp_path / "mountinfo")

    return mount


@pytest.mark.parametrize(("kind", "source", "options", "remote"), MOUNTS)
def test_what_other_hosts_share(kind, source, options, remote):
    assert _of_mountinfo(line("/mnt", kind, source, options)).remote() is remote


def test_lines_of_macos():
    found = _of_mount("//user@host/my share on /Volumes/my share (smbfs, nodev, mounted by user)")
    assert found == Mount(
        Path("/Volumes/my share"), "smbfs", "//user@host/my share", ("", "nodev", "mounted by user")
    )
    assert found.remote()
    assert not _of_mount("/dev/disk1s1 on / (apfs, local, read-only, journaled)").remote()
    assert _of_mount("") is None


def test_the_nearest_mount_counts(mounted, tmp_path):
    (tmp_path / "my disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "my disk")
    here = str(tmp_path / "my disk").replace(" ", "\\040")
    mounted(line("/", "ext4"), line(here, "nfs4"), line(f"{tmp_path}/my", "cifs"))
    assert network_file_system(tmp_path / "my disk" / "s") == "nfs4"
    assert network_file_system(tmp_path / "link" / "s") == "nfs4"
    assert network_file_system(tmp_path / "s") is None
    mounted(line("/", "nfs4"), line("/", "ext4"))  # the later one hides the earlier
    assert network_file_system(tmp_path) is None
    mounted()
    assert network_file_system(tmp_path) is None


def test_this_machine_is_understood():
    assert network_file_system(Path("/proc")) is None


def test_a_store_on_a_network_file_system(mounted, tmp_path):
    folder = tmp_path / "far"
    folder.mkdir()
    with Store(folder / "s", write=True) as store:
        store.commit([row(cell) for cell in CELLS])
    mounted(line("/", "ext4"), line(folder, "nfs4", "host:/far"))
    for path in (folder / "s", folder / "new"):
        for write in (lambda path=path: Store(path, write=True), lambda path=path: check_writable(path)):
            with pytest.raises(StoreError, match=r"network file system \(nfs4\).* put it on a local disk"):
                write()
    with Store(folder / "s") as store:  # what nobody writes can be read
        assert len(list(store.rows())) == len(CELLS)
        assert os.listdir(folder) == ["s"]
    (folder / "s-wal").write_bytes(b"x")
    with pytest.raises(StoreError, match="was not closed, elsewhere"):
        Store(folder / "s")
    assert sorted(os.listdir(folder)) == ["s", "s-wal"]
