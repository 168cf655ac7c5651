"""Frames as text: everything is told, no value of a tensor is, and nothing of it drives a terminal."""

from __future__ import annotations

import pytest

from isohub.supervisor.frames import Frames, shown
from isohub.wire import codec
from isohub.wire.messages import Cause, Payload, Prepare, Raised, Request, Returned, TorchState
from isohub.wire.specs import Block, TensorSpec
from isohub.wire.values import Items, Pairs, Record, Ref, Scalar, TensorAt, Value

TENSORS = [TensorSpec(0, "float32", [1, 3, 224, 224], [150528, 50176, 224, 1], 0), TensorSpec(1, "uint8", [9], [1], 0)]


def returned(value: Value) -> str:
    return shown(Returned(payload=Payload(value, [Block(1, 0, 64), Block(1, 64, 64)], TENSORS)))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, "None", id="None"),
        pytest.param(Items("tuple", [TensorAt(0, "tensor")]), "(float32[1, 3, 224, 224],)", id="tensor"),
        pytest.param(TensorAt(1, "bytes"), "<bytes uint8[9]>", id="bytes"),
        pytest.param(TensorAt(7, "tensor"), "<no tensor 7>", id="no tensor"),
        pytest.param(Pairs("dict", ["a"], [1.5]), "{'a': 1.5}", id="dict"),
        pytest.param(Items("list", list(range(100))), "[0, 1, 2, 3, 4, 5, 6, 7, ... 92 more]", id="long list"),
        pytest.param("x" * 99, f"'{'x' * 60}'...", id="long text"),
        pytest.param("\x1b[31m", "'\\x1b[31m'", id="escape"),
        pytest.param(Record("dataclass", "\x1bBox", ["\x07"], [1]), "'\\x1bBox'('\\x07': 1)", id="record"),
        pytest.param(Scalar("path", "/\x1b"), "path('/\\x1b')", id="scalar"),
        pytest.param(Ref("object", 3, type_name="\x1b"), "<Ref(kind='object', handle=3, type_name='\\x1b')>", id="ref"),
    ],
)
def test_value(value: Value, expected: str) -> None:
    """Each kind of value is told in short, and a tensor by its dtype and shape."""
    assert returned(value) == ("Returned(payload=" + expected + ")")


def test_hostile_tensor() -> None:
    """What no tensor can be is told all the same."""
    tensor = TensorSpec(0, "\x1b[31m", [10**5000, -1], [], 0)

    told = shown(Returned(payload=Payload(TensorAt(0, "tensor"), [], [tensor])))

    assert told == "Returned(payload='\\x1b[31m'[<a long int>, -1])"


def test_depth_is_bounded() -> None:
    """A value nested without end is told to a depth."""
    value: Value = 1
    for _ in range(100):
        value = Items("list", [value])

    assert returned(value) == "Returned(payload=[[[[[[[[...]]]]]]]])"


def test_secrets_are_not_told() -> None:
    """Of the environment the number of variables is told, of a pickled function and a generator's state the size."""
    prepare = Prepare(
        root="/r", label="a/b", sys_path=[], cwd="/c", argv=[], environ={"TOKEN": "geheim"}, hub_dir="/h",
        pycache=None, threads=1, setup=b"geheim",
    )  # fmt: skip
    request = Request(verb="list", state=TorchState(rng=b"geheim"))

    assert "environ=<1 variables>" in shown(prepare)
    assert "setup=<6 bytes>" in shown(prepare)
    assert "rng=<6 bytes>" in shown(request)
    assert "geheim" not in shown(prepare) + shown(request)


def test_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A frame is one line with its direction and size, and a line has an end."""
    monkeypatch.setenv("ISOHUB_DEBUG", "1")
    frames = Frames(4711)
    sent = codec.encode(Request(verb="call", handle=1))
    raised = Raised(error=Cause("m.E", "ValueError", False, "no\nline"), traceback="t" * 9000)

    frames.sent(sent, 1)
    frames.received(raised, 40)
    frames.received(Returned(payload=Payload(Items("list", ["y" * 60] * 8 + [None]))), 7)

    first, second, third = capsys.readouterr().err.splitlines()
    request = "Request(verb='call', handle=1, returns='module', payload=None)"
    assert first == f"isohub 4711 > {request} {len(sent)} bytes and 1 descriptors"
    assert second.startswith(
        "isohub 4711 < Raised(error=Cause(type_name='m.E', builtin='ValueError', message='no\\nline')"
    )
    assert second.endswith(" 40 bytes")
    assert third.endswith("... 1 more]) 7 bytes")


@pytest.mark.parametrize(("value", "wanted"), [("1", True), ("yes", True), ("0", False), ("Off", False), ("", False)])
def test_switch(monkeypatch: pytest.MonkeyPatch, value: str, wanted: bool) -> None:
    """Frames are told only when ISOHUB_DEBUG says so."""
    monkeypatch.setenv("ISOHUB_DEBUG", value)

    assert Frames(1).wanted is wanted
