from __future__ import annotations

import datetime
import math
import struct
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from isohub.errors import LocalProtocolError, RemoteProtocolError
from isohub.wire import codec, tree
from isohub.wire.messages import Payload, Returned
from isohub.wire.values import Items, Pairs, Record, Ref, Scalar, TensorAt, Value


def refuse(value: object, where: tree.Where) -> Value:
    raise LookupError(f"{tree.shown(where)}: {type(value).__name__}")


def through_the_wire(value: object) -> Any:
    """Say `value`, write it, read it, and make it again."""
    message = codec.decode_from_worker(codec.encode(Returned(payload=Payload(tree.pack(value, refuse)))))
    assert isinstance(message, Returned)
    return tree.unpack(message.payload.value, refuse_leaf)


def refuse_leaf(value: object) -> Any:
    raise LookupError(value)


def same(one: object, other: object) -> bool:
    """Return whether two values are equal and of one type, all the way down, floats to the last bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one), list(other)) and same(list(one.values()), list(other.values()))
    return one == other


plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.complex_numbers()
    | st.text(st.characters(codec=None, exclude_categories=[]))
    | st.binary(max_size=40)
    | st.binary(max_size=40).map(bytearray)
    | st.datetimes(timezones=st.none() | st.just(datetime.timezone.utc))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.just(...)
)
hashable = st.none() | st.booleans() | st.integers() | st.text() | st.tuples(st.integers(), st.text())
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4).map(OrderedDict)
    ),
    max_leaves=12,
)


@given(values)
@example(2**63)
@example(-(2**63) - 1)
@example(2**20_000)
@example(-0.0)
@example(complex(-0.0, math.inf))
@example("\ud800 no UTF-8")
def test_value_comes_back_as_it_was(value: object):
    """What the closed set can say comes back equal, of its own type, to the last bit."""
    assert same(value, through_the_wire(value))


@given(st.sets(hashable, max_size=5))
def test_sets_come_back(value: set[object]):
    """A set stays a set, and a frozenset one."""
    assert (value, frozenset(value)) == through_the_wire((value, frozenset(value)))


@pytest.mark.parametrize(
    "value", [slice(None), slice(1, None, -1), slice("a", ("b",)), range(0), range(3, -5, -2), range(2**70)], ids=repr
)
def test_slices_and_ranges_come_back(value: object):
    """A slice and a range come back with all three of their numbers."""
    assert value == through_the_wire(value)
    assert type(value) is type(through_the_wire(value))


def test_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A relative path means this process's folder, and is sent as what it means."""
    monkeypatch.chdir(tmp_path)

    assert (tmp_path / "weights.pt", Path("/etc/x")) == through_the_wire((PurePosixPath("weights.pt"), Path("/etc/x")))


def test_one_of_a_kind_is_not_taken_for_its_base():
    """A subclass is not what it derives from, so it is left to the leaf, with its place."""

    class Names(list[str]):
        pass

    class Count(int):
        pass

    with pytest.raises(LookupError, match=r"value\[1\]\['names'\]: Names"):
        tree.pack([0, {"names": Names()}], refuse)
    with pytest.raises(LookupError, match=r"value\[0\]: Count"):
        tree.pack((Count(3),), refuse)


def test_long_bytes_are_left_to_the_leaf():
    """Up to a kilobyte of bytes is said here; more goes the way of tensors."""
    assert bytes(1024) == through_the_wire(bytes(1024))
    with pytest.raises(LookupError, match="value: bytes"):
        tree.pack(bytes(1025), refuse)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_depth_is_bounded():
    """A hundred levels cross, one more is refused with its place."""
    assert nested(100) == through_the_wire(nested(100))
    with pytest.raises(LocalProtocolError, match=r"nested deeper than 100 levels, or a container that holds itself"):
        tree.pack(nested(101), refuse)


@pytest.mark.parametrize("kind", [list, dict])
def test_container_that_holds_itself_is_refused(kind: type):
    """A list in itself is an error of the caller's and no endless loop."""
    value = kind()
    if kind is list:
        value.append(value)
    else:
        value["self"] = value

    with pytest.raises(LocalProtocolError, match="holds itself") as caught:
        tree.pack({"args": value}, refuse, "arguments")

    assert caught.value.where.startswith("arguments['args']")


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(Scalar("int", "zz"), id="int without digits"),
        pytest.param(Scalar("float", "one"), id="float in words"),
        pytest.param(Scalar("complex", "1+"), id="half a complex"),
        pytest.param(Scalar("bytes", "A*=="), id="bytes that are no base64"),
        pytest.param(Scalar("str", "/w=="), id="text that is no UTF-8"),
        pytest.param(Scalar("datetime", "yesterday"), id="date in words"),
        pytest.param(Scalar("timedelta", "1 2 3 4 5 6 7 8"), id="timedelta of eight"),
        pytest.param(Scalar("timedelta", "999999999999 0 0"), id="timedelta without end"),
        pytest.param(Items("range", [0, "x", 1]), id="range of texts"),
        pytest.param(Items("range", [0, 1, 0]), id="range without steps"),
        pytest.param(Items("range", [1, 2, 3, 4]), id="range of four"),
        pytest.param(Items("slice", []), id="slice of none"),
        pytest.param(Items("set", [Items("list", [])]), id="set of lists"),
        pytest.param(Pairs("dict", [1], []), id="key without value"),
        pytest.param(Pairs("odict", [], [1]), id="value without key"),
        pytest.param(Pairs("dict", [Pairs("dict", [], [])], [1]), id="dict as key"),
    ],
)
def test_impossible_value_is_refused(hostile: Value):
    """What Python cannot make of a value is the worker's nonsense, and no other error."""
    with pytest.raises(RemoteProtocolError):
        tree.unpack(Items("list", [hostile]), refuse_leaf)


def test_hostile_depth_is_refused():
    """A worker that nests deeper than it may is told off long before Python's own limit."""
    value: Value = None
    for _ in range(101):
        value = Items("list", [value])

    with pytest.raises(RemoteProtocolError, match="nested deeper than 100 levels"):
        tree.unpack(value, refuse_leaf)


def test_the_rest_is_left_to_the_leaf():
    """Tensors, handles, sizes and what torch alone can read are handed on as they are, a record with its members."""
    seen: list[Any] = []
    rest: list[Value] = [TensorAt(0, "tensor"), Ref("object", 3), Scalar("dtype", "float32"), Items("size", [2])]
    record = Record("namedtuple", "repo.Box", ["low", "high"], [1, Items("tuple", [2])])

    tree.unpack(Items("list", [*rest, record]), seen.append)

    assert [*rest[:3], Items("size", [2]), (record, [1, (2,)])] == seen
