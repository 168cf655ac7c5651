from __future__ import annotations

import json

import pytest

from isohub.errors import RemoteProtocolError
from isohub.wire import codec
from isohub.wire.messages import FromParent, FromWorker, Payload, Returned
from isohub.wire.values import Items, TensorAt
from tests.helpers.messages import FROM_PARENT, FROM_WORKER


@pytest.mark.parametrize("message", FROM_WORKER.values(), ids=FROM_WORKER)
def test_workers_message_arrives(message: FromWorker):
    """What a worker says arrives as it was said, also from a memoryview."""
    assert message == codec.decode_from_worker(memoryview(codec.encode(message)))


@pytest.mark.parametrize("message", FROM_PARENT.values(), ids=FROM_PARENT)
def test_parents_message_arrives(message: FromParent):
    """What the parent says arrives as it was said, also from a memoryview."""
    assert message == codec.decode_from_parent(memoryview(codec.encode(message)))


def returned(value: object) -> bytes:
    """Return a worker's answer with that value, which need not be one."""
    return json.dumps({"type": "Returned", "payload": [value, [], [], []]}).encode()


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), (True, True), (-3, -3), (0.5, 0.5), ("text", "text"), (["T", 0, "tensor"], TensorAt(0, "tensor"))],
    ids=["None", "bool", "int", "float", "str", "tensor"],
)
def test_value_of_the_closed_set_is_read(value: object, expected: object):
    """The values that the next test refuses are close to values that are read."""
    assert Returned(payload=Payload(expected)) == codec.decode_from_worker(returned(value))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(["x", 0], id="unknown tag"),
        pytest.param([], id="no tag"),
        pytest.param({"type": "Returned"}, id="an object"),
        pytest.param(["i", "frozenlist", []], id="unknown kind of sequence"),
        pytest.param(["i", "list", {}], id="members that are no list"),
        pytest.param(["i", "list"], id="a field too few"),
        pytest.param(["c", "type", "os.system"], id="a scalar that names a type"),
        pytest.param(["c", "int", 3], id="a scalar whose text is a number"),
        pytest.param(["T", 0.0, "tensor"], id="an index that is a float"),
        pytest.param(["T", True, "tensor"], id="an index that is a bool"),
        pytest.param(["T", "0", "tensor"], id="an index that is a text"),
        pytest.param(["o", "function", 1], id="unknown kind of reference"),
        pytest.param(["r", "namedtuple", "T", [1], [1]], id="a field name that is a number"),
    ],
)
def test_value_outside_the_closed_set_is_refused(value: object):
    """A worker cannot say what the schema does not have."""
    with pytest.raises(RemoteProtocolError, match="a message that cannot be read"):
        codec.decode_from_worker(returned(value))


@pytest.mark.parametrize(
    "message",
    [
        pytest.param({"type": "Unknown"}, id="unknown type"),
        pytest.param({"payload": [None, [], [], []]}, id="no type"),
        pytest.param({"type": "NeedSegment", "nbytes": True, "use": "arena"}, id="bool as size"),
        pytest.param({"type": "NeedSegment", "nbytes": 1.5, "use": "arena"}, id="float as size"),
        pytest.param({"type": "NeedSegment", "nbytes": 1, "use": "stack"}, id="unknown use"),
        pytest.param({"type": "NeedSegment", "nbytes": 1}, id="a field too few"),
        pytest.param({"type": "Returned", "freed": [[1]]}, id="half a pair"),
        pytest.param({"type": "Returned", "freed": [[1, 2, 3]]}, id="a pair of three"),
        pytest.param({"type": "Returned", "rng": "not base64!"}, id="bytes that are none"),
        pytest.param({"type": "Returned", "payload": [None, [[1, 0]], [], []]}, id="a block without size"),
        pytest.param({"type": "Raised", "traceback": ""}, id="an exception without cause"),
        pytest.param([], id="a list"),
        pytest.param(None, id="null"),
    ],
)
def test_message_outside_the_schema_is_refused(message: object):
    """A field that lacks, is of another type or of another kind makes the whole message nonsense."""
    with pytest.raises(RemoteProtocolError, match="a message that cannot be read"):
        codec.decode_from_worker(json.dumps(message).encode())


def test_deep_nesting_is_refused():
    """A million brackets are an error of the sender's, and no end of ours."""
    deep = b'["i","list",[' * 1_000_000

    with pytest.raises(RemoteProtocolError, match="recursion"):
        codec.decode_from_worker(b'{"type":"Returned","payload":[' + deep)


def test_text_of_an_error_is_bounded():
    """A hostile field name does not fill the error message."""
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode_from_worker(json.dumps({"type": "x" * 10_000}).encode())

    assert len(str(caught.value)) < 300


def test_deep_but_honest_nesting_is_read():
    """A hundred levels, which is what a value may have, are read."""
    value = Items("list", [])
    for _ in range(99):
        value = Items("list", [value])
    message = Returned(payload=Payload(value))

    assert message == codec.decode_from_worker(codec.encode(message))
