"""Bytes that were a message once, through the real decoder and the real border of a worker's parent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isohub.errors import RemoteProtocolError
from isohub.model.proxies import ProxyTable
from isohub.supervisor.border import Border
from isohub.wire import codec
from isohub.wire.messages import Callback, NeedSegment, Payload, Raised, Returned
from tests.helpers.messages import FROM_WORKER

GOLDEN = {name: (Path(__file__).parents[1] / f"golden/messages/{name}.json").read_bytes() for name in FROM_WORKER}
SEEDS = [*GOLDEN.values(), *(codec.encode(Returned(payload=Payload(value))) for value in (1, "text", None, 0.5))]


class Nobody:
    """Stands where the worker of the border is, and is never asked anything that would need one."""

    label, pid = "owner/name:v1", 0

    def request(self, *_: object, **__: object) -> None:
        """Answer nothing, as a worker does whose description makes no tree."""

    def release_soon(self) -> None:
        """Tell nobody."""


@pytest.fixture(scope="module")
def nobody() -> Nobody:
    return Nobody()


def border_of(nobody: Any, *, frozen: bool) -> Border:
    border = Border(frozen=frozen)
    border.proxies = ProxyTable(nobody, cast("Any", None))
    for use in ("arena", "weights", *(["frozen"] if frozen else [])):
        _, fd = border.grant(NeedSegment(4096, cast("Any", use)))
        os.close(fd)
    return border


@contextlib.contextmanager
def a_border(nobody: Nobody, *, frozen: bool) -> Iterator[Border]:
    border = border_of(nobody, frozen=frozen)
    try:
        yield border
    finally:
        border.close()


def take(border: Border, data: bytes) -> str:
    """Do with `data` what a parent does with an answer, up to the values; return how they are written."""
    message, text = codec.decode_from_worker(data), ""
    if isinstance(message, NeedSegment):
        _, fd = border.grant(message)
        if fd >= 0:
            os.close(fd)
    if isinstance(message, Returned | Callback):
        text = repr(border.unpack(message.payload))
    if isinstance(message, Returned | Raised | Callback):
        border.settle(message.freed, message.dropped)
    return text


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A message with bytes flipped, and with numbers put in the place of others."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(data) - 1))
        if draw(st.booleans()):
            data[place] ^= 1 << draw(st.integers(0, 7))
            continue
        end = place
        while place and chr(data[place - 1]).isdigit():
            place -= 1
        while end < len(data) and chr(data[end]).isdigit():
            end += 1
        number = draw(st.sampled_from([0, -1, 1, 2, 3, 63, 64, 4096, 2**31, 2**62, 2**63, 2**64, 10**30, True, 0.5]))
        data[place:end] = str(number).lower().encode()
    return bytes(data)


@pytest.mark.parametrize("frozen", [False, True], ids=["shared", "frozen"])
def test_mutated_messages_are_read_or_refused(nobody: Nobody, frozen: bool):
    """Whatever becomes of a message's bytes, the parent makes values of it or refuses it, and nothing else."""
    torch.set_grad_enabled(True)

    @settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated())
    def check(data: bytes) -> None:
        with a_border(nobody, frozen=frozen) as border, contextlib.suppress(RemoteProtocolError):
            take(border, data)

    check()


@pytest.mark.parametrize("name", GOLDEN)
def test_truncated_messages_are_refused(nobody: Nobody, name: str):
    """A message that ends too early reaches no value, wherever it ends."""
    data = GOLDEN[name]

    with a_border(nobody, frozen=True) as border:
        for end in range(len(data)):
            with pytest.raises(RemoteProtocolError):
                take(border, data[:end])


def test_seeds_reach_the_border(nobody: Nobody):
    """The check above is one: messages that nobody changed come through to their values."""
    with a_border(nobody, frozen=False) as border:
        assert [take(border, data) for data in SEEDS[-4:]] == ["1", "'text'", "None", "0.5"]
