"""Frames: a fixed header with the length of the message that follows it.

Header, 8 bytes, network order: magic `b"ih"`, number of descriptors that come with the frame (uint16),
length of the message in bytes (uint32). Headers and messages travel over the socket only: in shared
memory the other side could change them between the check and the use.
"""

from __future__ import annotations

import struct

from isohub.errors import LocalProtocolError, RemoteProtocolError

__all__ = ["HEADER_BYTES", "MAX_DESCRIPTORS", "MAX_MESSAGE_BYTES", "pack_header", "unpack_header"]

_HEADER = struct.Struct("!2sHI")
_MAGIC = b"ih"
HEADER_BYTES = _HEADER.size
MAX_DESCRIPTORS = 8

# A module of 50,000 tensors describes itself in about 7 MB. A typed decoder makes of hostile nested
# lists about 20 times their bytes, so this cap also bounds what a decode can take: some 700 MB.
MAX_MESSAGE_BYTES = 32 << 20


def pack_header(nbytes: int, descriptors: int) -> bytes:
    """Return the header of a frame.

    Raises:
        LocalProtocolError: The message is too long, or has too many descriptors.
    """
    if nbytes > MAX_MESSAGE_BYTES:
        raise LocalProtocolError(
            f"a message of {nbytes} bytes is over the limit of {MAX_MESSAGE_BYTES}: pass large data as tensors, "
            "arrays or bytes, which go through shared memory"
        )
    if descriptors > MAX_DESCRIPTORS:
        raise LocalProtocolError(f"{descriptors} descriptors in one frame, at most {MAX_DESCRIPTORS} fit")
    return _HEADER.pack(_MAGIC, descriptors, nbytes)


def unpack_header(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Return the length of the message and the number of descriptors.

    Raises:
        RemoteProtocolError: The bytes are no header, or name more than a frame may hold.
    """
    magic, descriptors, nbytes = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise RemoteProtocolError(f"a frame that begins with {bytes(data[:2])!r}")
    if nbytes > MAX_MESSAGE_BYTES or descriptors > MAX_DESCRIPTORS:
        raise RemoteProtocolError(f"a frame of {nbytes} bytes with {descriptors} descriptors")
    return nbytes, descriptors
