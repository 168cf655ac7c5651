"""A real worker that says what no honest one says, in the place of an answer: what it sends, and what comes of it."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import isohub
from isohub.errors import IsohubError, RemoteProtocolError, WorkerTimeoutError
from tests.helpers.liar import REPO

# Name of the lie in `helpers.liar.REPO` -> what the error says of it.
REFUSED = {
    # tensors
    "block behind the end": "ends at byte 1048640 of a segment of 1048576",
    "block at a negative offset": "a block with offset -64",
    "block of negative size": "leaves its -64 bytes",
    "unaligned block": "a block with offset 8",
    "block beyond 64 bits": "a block that ends at byte 9223372036854775872",
    "block of a segment that is none": "segment 4711, which does not exist",
    "block of segment 0": "segment 0, which does not exist",
    "block of a negative segment": "segment -1, which does not exist",
    "block of the parent's own arena": "which does not exist",
    "negative size": "a negative size, stride or offset",
    "negative stride": "a negative size, stride or offset",
    "negative offset": "a negative size, stride or offset",
    "unaligned offset": "unaligned or leaves its 256 bytes",
    "sizes beyond 64 bits": "beyond 64-bit sizes",
    "strides beyond 64 bits": "beyond 64-bit sizes",
    "end behind the block": "leaves its 256 bytes",
    "end by its stride behind the block": "leaves its 256 bytes",
    "stride 0 to 2**40 elements": "expanded beyond all bounds",
    "65 dimensions": "65 sizes and 65 strides",
    "fewer strides than sizes": "2 sizes and 1 strides",
    "unknown dtype": "unknown dtype 'float128'",
    "dtype that is a path": "unknown dtype 'os.system'",
    "dtype with an escape": r"unknown dtype '\x1b[2Jfloat32'",
    "block of the payload that is none": "in block 7 of 1",
    "negative block of the payload": "in block -3 of 1",
    "nowhere with elements": "in block -2 of 1",
    "more than there is of a sparse segment": "leaves its 536870912 bytes",
    "tensor that is none": "tensor 5 of 0",
    "tensor -1": "tensor -1 of 0",
    "true for a size": "Expected `int`, got `bool`",
    "2.5 for a size": "Expected `int`, got `float`",
    "text for a size": "Expected `int`, got `str`",
    "null for a size": "Expected `int`, got `null`",
    "1e400 for an offset": "Number out of range",
    "spec with a field too many": "cannot be read",
    "gradients of whole numbers": "says nothing",
    "the same bytes a thousand times": "many times as large as the memory",
    "the same bytearray a thousand times": "many times as large as the memory",
    # forms
    "form that is none": "Input data was truncated",
    "form of another kind": "cannot be read",
    "form with a field of the wrong type": "Expected `int`, got `bool`",
    "form with a value beside it": "a payload that has a form, and a value beside it",
    "form of a tensor behind the end": "ends at byte 1048640 of a segment of 1048576",
    "form without the blocks that it tells of": "in block 0 of 0",
    "form of a tensor larger than its block": "leaves its 32 bytes",
    "form with a pickle": "a pickle, which this process never reads",
    # values
    "101 deep": "nested deeper than 100 levels",
    "100,000 deep": "cannot be read",
    "unknown kind of value": "Invalid value 'q'",
    "unknown kind of items": "Invalid enum value 'frozenlist'",
    "items with their class": "cannot be read",
    "a pickle": "a pickle, which this process never reads",
    "set of lists": "unhashable type",
    "set of 100,000 numbers of one hash": "with one hash",
    "dict of 100,000 numbers of one hash": "with one hash",
    "more keys than items": "shorter than argument 1",
    "range with steps of 0": "must not be zero",
    "slice of four": "at most 3 arguments",
    "size that is no number": "a size that is not of ints",
    "whole number in no digits": "invalid literal for int()",
    "time that never was": "a Scalar that says nothing",
    "time span beyond bounds": "a Scalar that says nothing",
    "device that is none": "a device \"__import__('os')\"",
    "layout that is none": "a layout 'torch.nn'",
    "NumPy type of objects": "an array of type '|O8'",
    "NumPy type that takes quadratic time": "an array of type '<M8[1111",
    "array of objects in raw memory": "an array of type '|O8'",
    "array larger than its bytes": "sizes and bytes differ",
    "array of negative size": "sizes and bytes differ",
    "array of a million sizes": "more sizes than an array has",
    "array of objects without its shape": "does not have its shape",
    "record with a special field": "a field '__class__'",
    "record with fields and no values": "shorter than argument 1",
    # modules and references
    "module tree that is a ring": "a module that contains itself",
    "module with a tensor that is none": "tensor 3 of 0",
    "modules of one number": "two modules of one number",
    "module tree without modules": "node 0 of 0",
    "parameter that is none": "a parameter 'nothing'",
    # frames
    "no frame": "a frame that begins with b'GE'",
    "frame of 4 GiB": "a frame of 4294967295 bytes",
    "frame with 65,535 descriptors": "with 65535 descriptors",
    "frame with a descriptor that does not come": "a frame with 1 descriptors, of which none",
    "frame of nothing": "Input data was truncated",
    "half a message": "Input data was truncated",
    "message that is no UTF-8": "cannot be read",
    "a list": "Expected `object`, got `array`",
    "a pickle for a message": "cannot be read",
    "message of no kind": "Invalid value 'Exec'",
    "kind with an escape": "Invalid value '?[2J'",
    "message of the parent's": "Invalid value 'Request'",
    # order
    "another greeting": "a Hello in answer to a request",
    "a second answer": "more than one answer",
    "an answer and half of another": "more than one answer",
    "two questions at once": "a message that nobody asked for",
    "a question and the answer at once": "a message that nobody asked for",
    # questions
    "segment of nothing": "a segment of 0 bytes",
    "segment of negative size": "a segment of -1 bytes",
    "segment beyond 64 bits": "a segment of 9223372036854775808 bytes",
    "segment for no use": "Invalid enum value 'code'",
    "frozen segment that nobody wants": "which nobody asked for",
    "files of no kind": "Invalid enum value 'passwords'",
    # what comes along
    "block freed that was not given": "4711:0 given back that was not given",
    "block freed twice": "1:0 given back that was not given",
    "segment dropped that is none": "segment 4711 dropped, which does not exist",
    "segment dropped twice": "dropped, which does not exist",
    "arena dropped": "dropped, which does not exist",
    "generator of three bytes": "a generator state of 3 bytes",
    "generator of zeros": "0 numbers left",
    "generator that reads behind its end": "624 numbers left from number 624 on",
    "generator at a negative place": "-1 numbers left",
}
# In the answer to the second call; the first one was honest, so that its form is known.
REFUSED_LATER = {
    "known form of a tensor behind the end": "ends at byte 1048640 of a segment of 1048576",
    "known form of a segment that is none": "segment 4711, which does not exist",
    "known form of a smaller block": "leaves its 32 bytes",
    "known form of an unaligned block": "a block with offset 8",
    "known form without blocks": "in block 0 of 0",
}
# Those that only a deadline ends; it is one for the whole exchange.
OVERDUE = ["a byte every 0.2 s", "a question every 0.2 s", "segments for ever", "files that cannot be, for ever"]
TIMEOUT_S = 1.0
# A machine that is busy with other things has this much more time, and no more.
SLACK_S = 20.0


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("liar")
    (folder / "hubconf.py").write_text(textwrap.dedent(REPO))
    return str(folder)  # not as a git repository, of which each load would ask where its refs are


@pytest.fixture(autouse=True)
def as_it_was(forkserver: int) -> Iterator[None]:
    """The program's own random numbers are untouched by what a liar says of them."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


def lie_to_us(repo: str, name: str, error: type[IsohubError], **settings: float) -> str:
    """Have a worker lie and see that it alone ends by it; return the error's text."""
    with torch.random.fork_rng():
        honest = isohub.load(repo, "net", source="local")
        liar = isohub.load(repo, "net", source="local", isolate=isohub.Isolation(dedicated=True, **settings))
        before = honest(torch.ones(1, 2))

        with pytest.raises(error) as caught:
            liar.lie(name, torch.ones(2))

        assert liar.isohub.state == "broken"
        assert not Path(f"/proc/{liar.isohub.pid}/exe").exists()
        assert torch.equal(before, honest(torch.ones(1, 2)))
        assert set(liar.state_dict()) == {"weight", "bias"}
    return str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_lie_ends_its_worker_alone(repo: str, name: str):
    """What no honest worker sends is refused by name, ends the worker that sent it, and costs nobody else anything."""
    began = time.monotonic()

    text = lie_to_us(repo, name, RemoteProtocolError)

    assert REFUSED[name] in text
    assert text.isprintable()
    assert time.monotonic() - began < SLACK_S


@pytest.mark.parametrize("name", REFUSED_LATER)
def test_known_form_is_believed_no_more_than_a_new_one(repo: str, name: str):
    """The numbers in an answer of a form that is known from an honest one are checked all the same."""
    with torch.random.fork_rng():
        liar = isohub.load(repo, "net", source="local", isolate=isohub.Isolation(dedicated=True))

    assert (torch.uint8, (64,)) == ((honest := liar.lie(name, None)).dtype, honest.shape)

    with pytest.raises(RemoteProtocolError, match=re.escape(REFUSED_LATER[name])):
        liar.lie(name, None)
    assert liar.isohub.state == "broken"


@pytest.mark.parametrize("name", OVERDUE)
def test_one_deadline_holds_for_a_whole_exchange(repo: str, name: str):
    """A worker that sends something all the time is killed at the deadline of its call, as one that sends nothing."""
    began = time.monotonic()

    text = lie_to_us(repo, name, WorkerTimeoutError, timeout_s=TIMEOUT_S)

    assert "did not answer within 1 s" in text
    assert TIMEOUT_S <= time.monotonic() - began < TIMEOUT_S + SLACK_S
