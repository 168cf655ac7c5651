"""The loop of a worker: receive a request, do it, answer."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
import threading
import traceback
from pathlib import Path
from urllib.error import URLError

import torch

from isohub.shm.channel import Channel
from isohub.wire import codec, structs
from isohub.wire.framing import pack_header
from isohub.wire.messages import (
    PROTOCOL_VERSION,
    FilesAt,
    FromParent,
    FromWorker,
    Granted,
    Hello,
    NeedFiles,
    NeedSegment,
    Payload,
    Prepare,
    Raised,
    Refused,
    Request,
    Returned,
)
from isohub.worker import downloads, prepare, report
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
    line = _Line(channel)
    border = Border(line.need_segment)
    executor: Executor | None = None
    modes = Modes()
    while True:
        message, descriptors = channel.receive()
        request = codec.decode_from_parent(message)
        answer: Returned | Raised
        payload = Payload()
        line.open = True
        try:
            if isinstance(request, Prepare):
                downloads.take_over(line.need_files)
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
        line.close()
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
            refusal=report.refusal(error),
            rng=modes.moved(),
        )
    finally:
        # Its frames hold whatever the failed call had; nobody must wait for the next collection.
        traceback.clear_frames(error.__traceback__)


def _send(channel: Channel, message: FromWorker) -> None:
    channel.send(codec.encode(message))


class _Line:
    """Questions to the parent while a request is under way."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()  # the repository's code may download in several threads
        self.open = False

    def need_segment(self, nbytes: int, use: Use) -> tuple[Granted, int]:
        """Ask for shared memory.

        Raises:
            MemoryError: The parent has none.
        """
        granted, descriptors = self._ask(NeedSegment(nbytes, use))
        assert isinstance(granted, Granted), "something else than the segment that was asked for"
        if not granted.nbytes:
            raise MemoryError(f"no shared memory for {nbytes} bytes more: {granted.reason}")
        return granted, descriptors[0]

    def need_files(self, need: NeedFiles) -> Path:
        """Ask for something from the network.

        Raises:
            URLError, RuntimeError, ValueError: As torch.hub would.
        """
        answer, _ = self._ask(need)
        if isinstance(answer, Refused):
            raise report.refused(answer)
        assert isinstance(answer, FilesAt), "something else than the files that were asked for"
        return Path(answer.path)

    def close(self) -> None:
        """Let no more questions be asked, once those that are being asked have their answers."""
        with self._lock:
            self.open = False

    def _ask(self, question: NeedSegment | NeedFiles) -> tuple[FromParent, list[int]]:
        with self._lock:
            if not self.open:
                raise URLError("a worker can only ask for files while the program waits for its answer")
            _flush()
            _send(self._channel, question)
            message, descriptors = self._channel.receive()
            return codec.decode_from_parent(message), descriptors


def _flush() -> None:
    """Have all output in the pipes before the answer, so that the parent can show it in order."""
    for stream in (sys.stdout, sys.stderr):
        # The repository may have replaced or closed it.
        with contextlib.suppress(Exception):
            stream.flush()
    _libc.fflush(None)
