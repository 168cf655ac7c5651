from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isohub.errors import LocalProtocolError, RemoteProtocolError
from isohub.wire import framing


@given(st.integers(0, framing.MAX_MESSAGE_BYTES), st.integers(0, framing.MAX_DESCRIPTORS))
def test_header_says_what_it_was_told(nbytes: int, descriptors: int):
    """A header is read back as it was written, up to both limits."""
    header = framing.pack_header(nbytes, descriptors)

    assert len(header) == framing.HEADER_BYTES == 8
    assert (nbytes, descriptors) == framing.unpack_header(header)


def test_too_long_a_message_is_the_senders_fault():
    """One byte over the limit is refused before anything is sent, with advice."""
    with pytest.raises(LocalProtocolError, match=r"33554433 bytes is over the limit of 33554432: pass large data as"):
        framing.pack_header(framing.MAX_MESSAGE_BYTES + 1, 0)


def test_too_many_descriptors_are_the_senders_fault():
    """One descriptor over the limit is refused before anything is sent."""
    with pytest.raises(LocalProtocolError, match="9 descriptors in one frame, at most 8 fit"):
        framing.pack_header(0, framing.MAX_DESCRIPTORS + 1)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        pytest.param(struct.pack("!2sHI", b"hi", 0, 1), "begins with b'hi'", id="magic"),
        pytest.param(struct.pack("!2sHI", b"ih", 0, (32 << 20) + 1), "a frame of 33554433 bytes", id="one byte over"),
        pytest.param(struct.pack("!2sHI", b"ih", 0, 2**32 - 1), "a frame of 4294967295 bytes", id="4 GiB"),
        pytest.param(struct.pack("!2sHI", b"ih", 9, 0), "with 9 descriptors", id="descriptors"),
    ],
)
def test_hostile_header_is_refused(header: bytes, message: str):
    """A header that names more than a frame may hold, or is none, is nonsense."""
    with pytest.raises(RemoteProtocolError, match=message):
        framing.unpack_header(header)


@given(st.binary(min_size=8, max_size=8))
def test_any_eight_bytes_are_read_or_refused(data: bytes):
    """No eight bytes lead past the limits, or to another error."""
    try:
        nbytes, descriptors = framing.unpack_header(data)
    except RemoteProtocolError:
        return
    assert nbytes <= framing.MAX_MESSAGE_BYTES
    assert descriptors <= framing.MAX_DESCRIPTORS
