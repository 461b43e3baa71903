"""The kernel's interface to btrfs (`linux/btrfs.h`, `linux/loop.h`). Blocking; raises OSError. Descriptors are folders' unless said.

Arguments over 1,024 bytes are `bytearray`: Python copies shorter ones to a fixed buffer and refuses longer `bytes`.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_SNAP_CREATE_V2 = 0x50009417
_SUBVOL_CREATE_V2 = 0x50009418
_SNAP_DESTROY_V2 = 0x5000943F
_SUBVOL_GETFLAGS = 0x80089419
_SUBVOL_SETFLAGS = 0x4008941A
_SET_RECEIVED_SUBVOL = 0xC0C89425
_SEND = 0x40489426
_GET_SUBVOL_INFO = 0x81F8943C
_GET_SUBVOL_ROOTREF = 0xD000943D
_INO_LOOKUP_USER = 0xD000943E
_RESIZE = 0x50009403
_FICLONERANGE = 0x4020940D
_LOOP_SET_CAPACITY = 0x4C07
_READ_ONLY = 1 << 1

TOP_INODE = 256
"""Inode number of every subvolume's top folder."""
NO_UUID = bytes(16)

_VOLUME_ARGS = struct.Struct("=qQQ32s4040s")
_SEND_ARGS = struct.Struct("=qQQQQI28x")
_RECEIVED_ARGS = struct.Struct("=16sQQQI4xQI4xQ128x")
_INFO = struct.Struct("=Q256sQQQQ16s16s16sQQQQ")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Subvolume:
    """What the kernel knows of one."""

    id: int
    uuid: bytes
    parent_uuid: bytes
    """Of what it was made a snapshot of; zeros if of nothing."""
    received_uuid: bytes
    """Of the sender's snapshot whose equal it is; zeros if none."""
    changed: int
    """Transaction of the last change of anything in it."""
    made: int
    """Transaction that made it."""

    @property
    def identity(self) -> bytes:
        """What streams call it."""
        return self.uuid if self.received_uuid == NO_UUID else self.received_uuid


def is_subvolume(path: str | os.PathLike[str]) -> bool:
    """Whether the path itself, not what a link leads to, is a subvolume's top."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_ino == TOP_INODE


def create(folder: int, name: str) -> None:
    """Make an empty subvolume."""
    fcntl.ioctl(folder, _SUBVOL_CREATE_V2, _named(0, 0, name))


def snapshot(folder: int, name: str, source: int, *, read_only: bool) -> None:
    """Make a snapshot of the subvolume `source`: atomic, with all that was written before, on disk when this returns."""
    fcntl.ioctl(folder, _SNAP_CREATE_V2, _named(source, _READ_ONLY if read_only else 0, name))


def destroy(folder: int, name: str) -> None:
    """Delete a subvolume that holds no other. Gone at once; the kernel frees its blocks in the background."""
    fcntl.ioctl(folder, _SNAP_DESTROY_V2, _named(0, 0, name))


def is_read_only(subvolume: int) -> bool:
    """Whether it is."""
    return bool(_flags(subvolume) & _READ_ONLY)


def set_read_only(subvolume: int, value: bool) -> None:
    """Only ever towards True for what is to be used again: the other way destroys the identity that later streams need."""
    flags = _flags(subvolume) & ~_READ_ONLY | (_READ_ONLY if value else 0)
    fcntl.ioctl(subvolume, _SUBVOL_SETFLAGS, struct.pack("=Q", flags))


def describe(subvolume: int) -> Subvolume:
    """Read it."""
    answer = bytearray(504)
    fcntl.ioctl(subvolume, _GET_SUBVOL_INFO, answer)
    number, _, _, _, _, _, uuid, parent, received, changed, made, _, _ = _INFO.unpack_from(answer)
    return Subvolume(number, uuid, parent, received, changed, made)


def set_received(subvolume: int, uuid: bytes, transaction: int) -> None:
    """Note whose equal a writable subvolume is now."""
    argument = bytearray(_RECEIVED_ARGS.pack(uuid, transaction, 0, 0, 0, 0, 0, 0))
    fcntl.ioctl(subvolume, _SET_RECEIVED_SUBVOL, argument)


def send(subvolume: int, pipe: int, parent: int | None) -> None:
    """Write the read-only subvolume to a pipe as protocol 1; with `parent` (an id) what differs. Returns at the end.

    Ends with EPIPE soon after the pipe's reading end was closed.
    """
    sources = array.array("Q", [] if parent is None else [parent])
    address, count = sources.buffer_info()
    argument = _SEND_ARGS.pack(pipe, count, address if count else 0, parent or 0, 0, 0)
    fcntl.ioctl(subvolume, _SEND, argument)


def nested(subvolume: int) -> Iterator[bytes]:
    """Paths of subvolumes directly within this one, relative to it. They are not part of its snapshots."""
    least = 0
    while True:
        answer = bytearray(4096)
        struct.pack_into("=Q", answer, 0, least)
        try:
            fcntl.ioctl(subvolume, _GET_SUBVOL_ROOTREF, answer)
            more = False
        except OSError as error:
            if error.errno != errno.EOVERFLOW:  # there are more than fit
                raise
            more = True
        for number in range(answer[4088]):
            child, folder = struct.unpack_from("=QQ", answer, 8 + 16 * number)
            yield _path_of(subvolume, child, folder)
            least = child + 1
        if not more:
            return


def _path_of(subvolume: int, child: int, folder: int) -> bytes:
    answer = bytearray(4096)
    struct.pack_into("=QQ", answer, 0, folder, child)
    fcntl.ioctl(subvolume, _INO_LOOKUP_USER, answer)
    name = bytes(answer[16:272]).partition(b"\0")[0]
    return bytes(answer[272:]).partition(b"\0")[0] + name


def share(source: int, start: int, length: int, target: int, offset: int) -> None:
    """Let file `target` share a range of file `source`."""
    fcntl.ioctl(target, _FICLONERANGE, struct.pack("=qQQQ", source, start, length, offset))


def grow(file_system: int, loop_device: int) -> None:
    """Take a loop device's file as large as it is now, and the file system as large as the device."""
    fcntl.ioctl(loop_device, _LOOP_SET_CAPACITY, 0)
    fcntl.ioctl(file_system, _RESIZE, bytearray(struct.pack("=q4088s", 0, b"max")))


def sync_file_system(descriptor: int) -> None:
    """Bring everything of the file system to disk."""
    if _libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _flags(subvolume: int) -> int:
    answer = bytearray(8)
    fcntl.ioctl(subvolume, _SUBVOL_GETFLAGS, answer)
    return int.from_bytes(answer, "little")


def _named(descriptor: int, flags: int, name: str) -> bytearray:
    return bytearray(_VOLUME_ARGS.pack(descriptor, 0, flags, b"", os.fsencode(name)))
