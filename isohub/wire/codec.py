"""Messages to bytes and back. The one place where a worker's bytes become objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from isohub.errors import RemoteProtocolError
from isohub.wire import structs
from isohub.wire.messages import Form, FromParent, FromWorker, Payload
from isohub.wire.texts import clean

__all__ = ["decode_from_parent", "decode_from_worker", "encode", "encode_form", "whole"]

_from_parent = structs.decode_as(FromParent)
_from_worker = structs.decode_as(FromWorker)
_form = structs.decode_as(Form)


# Returns a message as JSON in UTF-8.
encode: Callable[[FromParent | FromWorker], bytes] = structs.encode


def decode_from_worker(data: bytes | memoryview) -> FromWorker:
    """Read a message that a worker sent.

    Raises:
        RemoteProtocolError: It is none, or a value in it is of the wrong type.
    """
    try:
        return _from_worker.decode(data)  # type: ignore[return-value]
    except _UNREADABLE as error:
        raise _unreadable(error) from None


def encode_form(form: Form) -> str:
    """Return `form` as the text that stands in a payload."""
    return structs.encode(form).decode()


def whole(payload: Payload) -> Payload:
    """Return a payload with the value and the tensors that its form tells of.

    Raises:
        RemoteProtocolError: It is no form, or there are a value or tensors beside it.
    """
    if not payload.form:
        return payload
    if payload.value is not None or payload.tensors:
        raise RemoteProtocolError("a payload that has a form, and a value beside it")
    try:
        form = cast("Form", _form.decode(payload.form))
    except _UNREADABLE as error:
        raise _unreadable(error) from None
    return structs.replace(payload, value=form.value, tensors=form.tensors, form="")


def decode_from_parent(data: bytes | memoryview) -> FromParent:
    """Read a message that the parent sent; the parent is trusted."""
    return _from_parent.decode(data)  # type: ignore[return-value]


# msgspec raises DecodeError (a ValueError) and its subclass ValidationError, RecursionError on
# deep nesting, and UnicodeDecodeError (a ValueError too) on strings that are no UTF-8.
_UNREADABLE = (ValueError, RecursionError, MemoryError, OverflowError)


def _unreadable(error: Exception) -> RemoteProtocolError:
    return RemoteProtocolError(f"a message that cannot be read: {clean(str(error), 200)}")
