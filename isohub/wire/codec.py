"""Messages to bytes and back. The one place where a worker's bytes become objects."""

from __future__ import annotations

from typing import cast

from isohub.errors import RemoteProtocolError
from isohub.wire import structs
from isohub.wire.messages import FromParent, FromWorker
from isohub.wire.texts import clean

__all__ = ["decode_from_parent", "decode_from_worker", "encode"]

_from_parent = structs.decode_as(FromParent)
_from_worker = structs.decode_as(FromWorker)


def encode(message: FromParent | FromWorker) -> bytes:
    """Return `message` as JSON in UTF-8."""
    return structs.encode(message)


def decode_from_worker(data: bytes | memoryview) -> FromWorker:
    """Read a message that a worker sent.

    Raises:
        RemoteProtocolError: It is none, or a value in it is of the wrong type.
    """
    try:
        return cast("FromWorker", _from_worker.decode(data))
    # msgspec raises DecodeError (a ValueError) and its subclass ValidationError, RecursionError on
    # deep nesting, and UnicodeDecodeError (a ValueError too) on strings that are no UTF-8.
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise RemoteProtocolError(f"a message that cannot be read: {clean(str(error), 200)}") from None


def decode_from_parent(data: bytes | memoryview) -> FromParent:
    """Read a message that the parent sent; the parent is trusted."""
    return cast("FromParent", _from_parent.decode(data))
