"""The bytes of protocol version 2. Who changes one of these files gives the protocol a new version."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from isohub.errors import RemoteProtocolError
from isohub.wire import codec, framing
from isohub.wire.messages import PROTOCOL_VERSION, FromWorker
from tests.helpers.messages import FROM_PARENT, FROM_WORKER

FOLDER = Path(__file__).parent / "messages"
GOLDEN = {path.stem: path.read_bytes() for path in sorted(FOLDER.glob("*.json"))}
WORKERS = {name: GOLDEN[name] for name in FROM_WORKER}


def test_files_are_of_this_version():
    """There is one file for each sample, and all of them are of protocol version 2."""
    assert sorted([*FROM_PARENT, *FROM_WORKER]) == sorted(GOLDEN)
    assert PROTOCOL_VERSION == 2
    assert b'"protocol":2,' in GOLDEN["hello"]


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes_are_golden(name: str):
    """A message is written as it always was."""
    assert GOLDEN[name] == codec.encode((FROM_PARENT | FROM_WORKER)[name])


@pytest.mark.parametrize("name", sorted({type(message).__name__ for message in (FROM_PARENT | FROM_WORKER).values()}))
def test_every_field_is_golden(name: str):
    """The files hold every field of every message, so that none comes or goes unseen."""
    samples = [message for message in (FROM_PARENT | FROM_WORKER).values() if type(message).__name__ == name]
    written = {field for sample in samples for field in json.loads(codec.encode(sample))}

    assert {"type", *samples[0].__struct_fields__} == written


@pytest.mark.parametrize("name", FROM_WORKER)
def test_workers_message_is_read(name: str):
    """What a worker of this protocol version wrote is read as it was meant."""
    assert FROM_WORKER[name] == codec.decode_from_worker(GOLDEN[name])


@pytest.mark.parametrize("name", FROM_PARENT)
def test_parents_message_is_read(name: str):
    """What a parent of this protocol version wrote is read as it was meant."""
    assert FROM_PARENT[name] == codec.decode_from_parent(GOLDEN[name])


def test_header_is_golden():
    """The header of a frame: magic, number of descriptors, length."""
    assert bytes.fromhex("6968 0003 00012345") == framing.pack_header(0x12345, 3)


@pytest.mark.parametrize("name", WORKERS)
def test_every_truncation_is_refused(name: str):
    """A message that ends too early is nonsense, wherever it ends."""
    data = WORKERS[name]

    for end in range(len(data)):
        with pytest.raises(RemoteProtocolError):
            codec.decode_from_worker(data[:end])


@pytest.mark.parametrize("name", FROM_PARENT)
def test_parents_message_from_a_worker_is_refused(name: str):
    """A worker cannot speak as a parent."""
    with pytest.raises(RemoteProtocolError):
        codec.decode_from_worker(GOLDEN[name])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A golden message of a worker's with some of its bytes changed, doubled, cut out or put in."""
    data = bytearray(draw(st.sampled_from(sorted(WORKERS.values()))))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(start + draw(st.integers(0, 12)), len(data))
        data[start:end] = draw(
            st.binary(max_size=8)
            | st.just(bytes(data[start:end]) * 2)
            | st.sampled_from([b"[", b"]", b"{", b"}", b'"', b",", b"null", b"-1", b"1e999", b"9" * 40, b'"type":'])
        )
    return bytes(data)


@given(mutated())
@example(b"")
@example(b"[" * 100_000)
@example(b'{"type":"Returned","payload":[' + b'["i","list",[' * 50_000)
@example(b'{"type":"Returned","rng":"\xff\xfe"}')
@example(b'{"type":"Returned","rng":"AAA"}')
@example(b'{"type":"Hello","protocol":true,"pid":1,"python":"","torch":""}')
@example(b'{"type":"NeedSegment","nbytes":18446744073709551616,"use":"arena"}')
@example(b'{"type":"NeedSegment","nbytes":1e400,"use":"arena"}')
def test_mutated_message_is_read_or_refused(data: bytes):
    """Bytes from a worker become a message of the closed set or a RemoteProtocolError, and nothing else."""
    with contextlib.suppress(RemoteProtocolError):
        assert isinstance(codec.decode_from_worker(data), FromWorker)
