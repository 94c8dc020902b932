"""`network_file_system`: whether a path lies on one, where SQLite's log and locks do not hold."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
# With or without "fuse." before it. 9p is what virtual machines and sandboxes use for local files too.
NETWORK = {
    "afpfs", "afs", "beegfs", "ceph", "ceph-fuse", "cifs", "coda", "cvmfs2", "davfs", "gcsfuse", "glusterfs",
    "gpfs", "juicefs", "lustre", "moosefs", "ncpfs", "nfs", "nfs3", "nfs4", "orangefs", "panfs", "pvfs2",
    "rclone", "s3fs", "smb2", "smb3", "smbfs", "sshfs", "vboxsf", "webdav", "wekafs",
}  # fmt: skip
REMOTE_9P = ("trans=tcp", "trans=rdma", "aname=drvfs")  # a server's, or a Windows drive seen from WSL
REMOTE_SOURCE = re.compile(r"[^/]+:|//[^/]")  # host:/folder, //host/share


@dataclass(frozen=True)
class Mount:
    """A mounted file system: where, its type ("ext4", "fuse.sshfs"), what is mounted, its options."""

    point: Path
    kind: str
    source: str
    options: tuple[str, ...]

    def remote(self) -> bool:
        """Whether other hosts, with other memory and locks, may have its files open."""
        kind = self.kind.removeprefix("fuse.")
        if kind in NETWORK:
            return True
        if kind == "9p":
            return any(option.startswith(REMOTE_9P) for option in self.options)
        return "fuse" in self.kind and REMOTE_SOURCE.match(self.source) is not None


def network_file_system(path: Path) -> str | None:
    """The type of the network file system that `path` lies on, None for a local one."""
    place = Path(os.path.realpath(path))
    holding = [mount for mount in mounts() if place.is_relative_to(mount.point)]
    if not holding:
        return None
    # Of mounts on one point the last one is seen.
    nearest = max(reversed(holding), key=lambda mount: len(mount.point.parts))
    return nearest.kind if nearest.remote() else None


def mounts() -> Iterator[Mount]:
    """The mounted file systems in the order of mounting; none where the system does not tell."""
    if MOUNTINFO.exists():
        yield from map(_of_mountinfo, MOUNTINFO.read_text(errors="surrogateescape").splitlines())
        return
    try:
        lines = subprocess.run(["mount"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return
    yield from filter(None, map(_of_mount, lines.splitlines()))


def _of_mountinfo(line: str) -> Mount:
    """A line of Linux: `36 35 98:0 / /mnt rw,noatime shared:1 - nfs4 host:/folder rw,vers=4.2`."""
    before, _, after = line.partition(" - ")
    kind, source, options = after.split(" ")
    return Mount(Path(_plain(before.split(" ")[4])), kind, _plain(source), tuple(options.split(",")))


def _of_mount(line: str) -> Mount | None:
    """A line of macOS and BSD: `//user@host/share on /Volumes/share (smbfs, nodev, mounted by user)`."""
    found = re.fullmatch(r"(.+?) on (/.*) \(([^,)]+)(.*)\)", line)
    if found is None:
        return None
    source, point, kind, options = found.groups()
    return Mount(Path(point), kind, source, tuple(option.strip() for option in options.split(",")))


def _plain(text: str) -> str:
    r"""Without the octal escapes of blanks: `/mnt/my\040disk`."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
