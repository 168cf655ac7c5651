"""The loop of a worker: receive a request, do it, answer."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
import traceback

import torch

from isohub.shm.channel import Channel
from isohub.wire import codec, structs
from isohub.wire.framing import pack_header
from isohub.wire.messages import (
    PROTOCOL_VERSION,
    FromWorker,
    Granted,
    Hello,
    NeedSegment,
    Payload,
    Prepare,
    Raised,
    Request,
    Returned,
)
from isohub.worker import prepare, report
from isohub.worker.border import Border, Use
from isohub.worker.execute import Executor
from isohub.worker.modes import Modes

__all__ = ["serve"]

_libc = ctypes.CDLL(None)


def serve(channel: Channel) -> None:
    """Answer requests until one says `close`.

    Raises:
        PeerGoneError: The parent closed the channel or ended.
    """
    _send(channel, Hello(
        protocol=PROTOCOL_VERSION, pid=os.getpid(), python=platform.python_version(), torch=str(torch.__version__),
    ))  # fmt: skip
    border = Border(lambda nbytes, use: _need_segment(channel, nbytes, use))
    executor: Executor | None = None
    modes = Modes()
    while True:
        message, descriptors = channel.receive()
        request = codec.decode_from_parent(message)
        answer: Returned | Raised
        payload = Payload()
        try:
            if isinstance(request, Prepare):
                executor = Executor(prepare.prepare(request), border)
            else:
                assert isinstance(request, Request) and executor is not None, "a request before Prepare"
                border.accept(request, descriptors)
                payload = _do(executor, modes, request)
            answer = Returned(payload=payload, rng=modes.moved(), **border.news())
            data = codec.encode(answer)
            pack_header(len(data), 0)  # raises here if it is too long, so that the error can be told
        except BaseException as error:  # noqa: BLE001 - SystemExit too: nothing ends the worker
            border.unsend(payload)
            answer = _raised(error, modes)
            data = codec.encode(structs.replace(answer, **border.news()))
        _flush()
        channel.send(data)
        if isinstance(request, Request) and request.verb == "close":
            return


def _do(executor: Executor, modes: Modes, request: Request) -> Payload:
    with modes.of(request.state):
        return executor.execute(request)


def _raised(error: BaseException, modes: Modes) -> Raised:
    try:
        return Raised(
            error=report.cause(error),
            traceback=report.traceback_text(error),
            notes=report.notes(error),
            rng=modes.moved(),
        )
    finally:
        # Its frames hold whatever the failed call had; nobody must wait for the next collection.
        traceback.clear_frames(error.__traceback__)


def _send(channel: Channel, message: FromWorker) -> None:
    channel.send(codec.encode(message))


def _need_segment(channel: Channel, nbytes: int, use: Use) -> tuple[Granted, int]:
    _send(channel, NeedSegment(nbytes, use))
    message, descriptors = channel.receive()
    granted = codec.decode_from_parent(message)
    assert isinstance(granted, Granted), "something else than the segment that was asked for"
    if not granted.nbytes:
        raise MemoryError(f"no shared memory for {nbytes} bytes more: {granted.reason}")
    return granted, descriptors[0]


def _flush() -> None:
    """Have all output in the pipes before the answer, so that the parent can show it in order."""
    for stream in (sys.stdout, sys.stderr):
        # The repository may have replaced or closed it.
        with contextlib.suppress(Exception):
            stream.flush()
    _libc.fflush(None)
