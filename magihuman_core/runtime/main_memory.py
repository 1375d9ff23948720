"""Main memory that this process may use: the machine's, or less of it in a container.

A container is a Linux control group, and so is a job of a scheduler or a service. Beyond its limit the kernel ends the
process without a word, however much the machine has left, which is all that psutil tells. Groups lie in each other, and
each of them may have a limit: the kernel's documentation, admin-guide/cgroup-v2 and admin-guide/cgroup-v1/memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

OWN = Path("/proc/self/cgroup")  # the groups of this process, a line for each hierarchy
MOUNT = Path("/sys/fs/cgroup")


class MainMemory(NamedTuple):
    """Bytes."""

    total: int
    available: int  # free, or can be freed


class Version(NamedTuple):
    """How the kernel names things in one of the two versions of control groups."""

    folder: str  # below MOUNT
    limits: tuple[str, ...]  # files of a group
    used: str
    cache: tuple[str, ...]  # lines of memory.stat: pages of files, which are part of what is used, but can be freed


VERSIONS = {  # by the controller that a line of OWN names
    "": Version("", ("memory.max", "memory.high"), "memory.current", ("active_file", "inactive_file")),
    "memory": Version("memory", ("memory.limit_in_bytes",), "memory.usage_in_bytes",
                      ("total_active_file", "total_inactive_file")),
}


def main_memory() -> MainMemory:
    """What the machine has, or the narrowest of the control groups that this process is in."""
    machine = psutil.virtual_memory()
    known = [MainMemory(machine.total, machine.available), *group_memory()]
    return MainMemory(min(total for total, _ in known), max(0, min(available for _, available in known)))


def group_memory() -> Iterator[MainMemory]:
    """Of each control group of this process that has a limit; nothing where there are none, as on other systems."""
    for line in _text(OWN).splitlines():
        _, _, names_and_path = line.partition(":")
        names, _, path = names_and_path.partition(":")
        for name in names.split(","):
            if name in VERSIONS and path.startswith("/"):
                yield from _limited(path, VERSIONS[name])


def _limited(path: str, version: Version) -> Iterator[MainMemory]:
    """The memory of a group and of those that it lies in.

    In a container the path may be that of the host, where its own group is what is mounted: levels that are not there
    have no limit, and the last one is the mount itself.
    """
    names = [name for name in path.split("/") if name]
    if ".." in names:  # it is outside of what is mounted here
        names = []
    for depth in range(len(names), -1, -1):
        group = MOUNT.joinpath(version.folder, *names[:depth])
        limits = [limit for file in version.limits if (limit := _number(_text(group / file))) is not None]
        if limits:
            cached = dict(line.partition(" ")[::2] for line in _text(group / "memory.stat").splitlines())
            used = _number(_text(group / version.used)) or 0
            used -= sum(_number(cached.get(name, "")) or 0 for name in version.cache)
            yield MainMemory(min(limits), min(limits) - max(0, used))


def _text(file: Path) -> str:
    """What a file of the kernel says; nothing where it is not there or cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape")  # names of groups are any bytes
    except OSError:
        return ""


def _number(text: str) -> int | None:
    """Bytes; None of "max", which is no limit, and of what is no number. Version 1 has an enormous one for no limit."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() else None
