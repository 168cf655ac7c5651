"""The loop of a worker: receive a request, do it, answer."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import torch

from isohub.shm.channel import Channel
from isohub.wire import codec, structs
from isohub.wire.framing import pack_header
from isohub.wire.messages import (
    PROTOCOL_VERSION,
    Callback,
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
    Share,
    Unshare,
)
from isohub.worker import downloads, prepare, report
from isohub.worker.border import Border, Use
from isohub.worker.callbacks import Callbacks
from isohub.worker.execute import Executor
from isohub.worker.modes import Modes
from isohub.worker.sharing import Sharing
from isohub.worker.title import Title

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
    _Server(channel).run()


class _Server:
    """The state of a worker between requests."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._line = _Line(channel, self._answer)
        self._border = Border(self._line.need_segment)
        self._sharing = Sharing(self._border.residents)
        self._modes = Modes()
        self._callbacks = Callbacks(self._border, self._modes, self._line.call)
        self._executor: Executor | None = None
        self._title = Title()

    def run(self) -> None:
        """Answer requests until one says `close`."""
        while True:
            message, descriptors = self._channel.receive()
            request = codec.decode_from_parent(message)
            self._title.busy()
            self._line.open = True
            data = self._answer(request, descriptors, nested=False)
            self._line.close()
            self._border.graphs.settled()
            _flush()
            called = isinstance(request, Request) and request.verb != "release"
            self._title.idle(len(self._border.objects), called=called)
            self._channel.send(data)
            if self._executor is not None:
                self._executor.result = None
            if isinstance(request, Request) and request.verb == "close":
                return

    def _answer(self, request: FromParent, descriptors: list[int], *, nested: bool) -> bytes:
        """Do one request and return the answer.

        Args:
            request: What to do.
            descriptors: Those that came with it.
            nested: Whether another request waits for the parent, which asks this one first.
        """
        answer: Returned | Raised
        payload, took = Payload(), []
        try:
            if isinstance(request, Request):
                assert self._executor is not None, "a request before Prepare"
                self._callbacks.accept(request, descriptors)
                with self._modes.of(request.state, nested=nested):
                    payload = self._executor.execute(request)
                if request.verb == "build":
                    took = self._executor.took
                if nested:
                    self._executor.result = None
            elif isinstance(request, Prepare):
                downloads.take_over(self._line.need_files)
                self._border.frozen = request.frozen
                self._title.name(request.label)
                self._executor = Executor(prepare.prepare(request), self._border, self._callbacks)
            else:
                assert isinstance(request, Share | Unshare), "an answer to nothing"
                return codec.encode(Returned(payload=self._sharing.do(request, descriptors), **self._border.news()))
            answer = Returned(payload=payload, rng=self._modes.moved(), took=took, **self._border.news())
            data = codec.encode(answer)
            pack_header(len(data), 0)  # raises here if it is too long, so that the error can be told
        except BaseException as error:  # noqa: BLE001 - SystemExit too: nothing ends the worker
            self._border.unsend(payload)
            answer = _raised(error, self._modes)
            data = codec.encode(structs.replace(answer, **self._border.news()))
        return data


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

    def __init__(self, channel: Channel, answer: Callable[..., bytes]) -> None:
        self._channel = channel
        self._answer = answer
        self._turn = threading.Condition()  # the repository's code may ask in several threads
        self._calls: list[Callback] = []  # under way in the parent; each is made within the one before
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

    def call(self, callback: Callback) -> tuple[Request, list[int]]:
        """Have the parent make a call, and return how it ended; it may ask for anything meanwhile.

        What it asks for may take other threads, which may have calls made, too. They end before this one does.
        """
        with self._turn:
            reply, descriptors = self._ask(callback)
            self._calls.append(callback)
        try:
            while not (isinstance(reply, Request) and reply.verb in ("resume", "throw")):
                data = self._answer(reply, descriptors, nested=True)
                with self._turn:
                    self._turn.wait_for(lambda: self._calls[-1] is callback)
                    reply, descriptors = self._exchange(data)
            return reply, descriptors
        finally:
            with self._turn:
                self._calls.remove(callback)
                self._turn.notify_all()

    def close(self) -> None:
        """Let no more questions be asked, once those that are being asked have their answers."""
        with self._turn:
            if self._calls:
                self._turn.wait_for(lambda: not self._calls)
            self.open = False

    def _ask(self, question: NeedSegment | NeedFiles | Callback) -> tuple[FromParent, list[int]]:
        with self._turn:
            if not self.open:
                raise URLError("a worker can only ask for files, or call hooks, while the program waits for its answer")
            return self._exchange(codec.encode(question))

    def _exchange(self, data: bytes) -> tuple[FromParent, list[int]]:
        _flush()
        self._channel.send(data)
        message, descriptors = self._channel.receive()
        return codec.decode_from_parent(message), descriptors


def _flush() -> None:
    """Have all output in the pipes before the answer, so that the parent can show it in order."""
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105 - `suppress` would be a good part of this, for each call
            stream.flush()
        except Exception:  # noqa: BLE001, S110 - the repository may have replaced or closed it
            pass
    _libc.fflush(None)
