"""Where in a tar the bytes of a member lie: a hard link has those of a file before it."""

from __future__ import annotations

import tarfile

from cluster.file_walk import printable

__all__ = ["Members"]

MAX_KEPT = 1 << 16
SPARSE = "A sparse file, which lies in pieces. Write the tar without --sparse."
SYMBOLIC = "A symbolic link, which has no bytes. Write the tar with --dereference."
NO_FILE = "Not a file but a pipe or device."


class Members:
    """Finds the bytes of one member after the other, from the tar's beginning on.

    Memory: names and places of the last 65,536 files, some 20 MB.
    """

    def __init__(self) -> None:
        self._places: dict[str, tuple[int, int]] = {}

    def locate(self, member: tarfile.TarInfo) -> str | None:
        """Have a hard link be the file that it leads to; says of a member why it has no bytes.

        Args:
            member: not a folder, its name as it stands in the tar.
        """
        if member.islnk() and member.linkname in self._places:
            member.type = tarfile.REGTYPE
            member.offset_data, member.size = self._places[member.linkname]
        if member.isreg() and not member.issparse():
            self._places.pop(member.name, None)
            self._places[member.name] = (member.offset_data, member.size)
            if len(self._places) > MAX_KEPT:
                del self._places[next(iter(self._places))]
            return None
        self._places.pop(member.name, None)
        if member.islnk():
            return (
                f"A hard link to {printable(member.linkname)}, which is none of the {MAX_KEPT:,} "
                "files before it. Write the tar with --hard-dereference."
            )
        if member.issym():
            return SYMBOLIC
        return SPARSE if member.isreg() else NO_FILE
