"""The parent's end of one worker process: its channel, its output, its exit status."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence

from isohub.errors import RemoteProtocolError
from isohub.hub.services import Services
from isohub.shm.channel import Channel, DeadlineError, PeerGoneError
from isohub.supervisor.background import Background
from isohub.supervisor.border import Border
from isohub.supervisor.frames import Frames
from isohub.supervisor.launch import Process
from isohub.supervisor.logs import Output
from isohub.supervisor.shares import Shares
from isohub.wire import codec
from isohub.wire.messages import (
    PROTOCOL_VERSION,
    Callback,
    FromParent,
    FromWorker,
    Hello,
    NeedFiles,
    NeedSegment,
    Prepare,
    Raised,
    Request,
    Returned,
)

__all__ = ["Connection"]

# Tuples, since `isinstance` of a union takes several times as long.
_ANSWERS = (Returned, Raised)
_SETTLED = (Returned, Raised, Callback)

# The traceback of a crash in native code has some 20 frames below the repository's own.
_TAIL_LINES = 30
_STACK_LINES = 25  # of which so many


class Connection:
    """It owns the descriptors of the process; `close` gives all of them back.

    Args:
        process: A process just launched.
        background: The thread that reads its output while nobody waits for an answer.
        services: Fetches what its code wants from the network.
    """

    def __init__(self, process: Process, background: Background, services: Services) -> None:
        self.process = process
        self.shares: Shares | None = None  # once it has weights in common with other workers
        self._services = services
        self._background = background
        self._channel = Channel(process.channel)
        self._frames = Frames(process.pid)
        self._outputs = (Output(process.out, "stdout"), Output(process.err, "stderr"))
        self._muted = False
        self._output_poll = select.poll()
        for output in self._outputs:
            self._output_poll.register(output.fd, select.POLLIN)
        background.watch(*self._outputs)

    def prepare(self, prepare: Prepare, border: Border, deadline: float) -> Returned | Raised:
        """Wait for the worker's greeting, prepare it, and return how that went.

        Raises:
            RemoteProtocolError: The greeting is none, or of another protocol; or see `answer`.
            PeerGoneError, DeadlineError: See `Channel`.
        """
        hello = self._receive(deadline)
        if not isinstance(hello, Hello) or hello.protocol != PROTOCOL_VERSION:
            raise RemoteProtocolError(f"a worker that greets with {hello!r:.200}")
        self.tell(prepare, deadline)
        return self.answer(border, deadline)

    def tell(self, message: FromParent, deadline: float | None, descriptors: Sequence[int] = ()) -> None:
        """Send a message; see `Channel.send`."""
        self._send(codec.encode(message), descriptors, deadline)

    def send(self, message: bytes, descriptors: Sequence[int], deadline: float | None) -> None:
        """Send a request that is encoded already; see `Channel.send`. What was written here before is seen there.

        Raises:
            RemoteProtocolError: The worker spoke before it was asked: it would be taken for the answer.
        """
        if self.shares is not None and self.shares.moved():
            self.shares.settle(self, deadline)
        self._send(message, descriptors, deadline)

    def _send(self, message: bytes, descriptors: Sequence[int], deadline: float | None) -> None:
        if self._channel.unread():
            raise RemoteProtocolError("a message that nobody asked for")
        if self._frames.wanted:
            self._frames.sent(message, len(descriptors))
        self._channel.send(message, descriptors, deadline)

    def answer(
        self,
        border: Border,
        deadline: float | None,
        call_back: Callable[[Callback], tuple[bytes, list[int]]] | None = None,
    ) -> Returned | Raised:
        """Wait for the answer to a request, and give the worker what it needs for it meanwhile.

        Args:
            border: Where segments are made.
            deadline: By the monotonic clock, in seconds; None for none.
            call_back: Makes a call that the worker asks for; returns what to send, with its descriptors.
                None where there is nothing that it could call.

        Raises:
            RemoteProtocolError: What comes is no answer, or more than one.
            PeerGoneError, DeadlineError: See `Channel`.
        """
        while True:
            message = self._receive(deadline)
            if self.shares is not None and isinstance(message, _SETTLED) and self.shares.moved():
                self.shares.settle(self, deadline)  # what was written there is seen here from now on
            if isinstance(message, _ANSWERS):
                if self._channel.unread():
                    raise RemoteProtocolError("more than one answer to one request")
                return message
            if isinstance(message, NeedFiles):
                self.drain()  # what it printed before stands before what a download prints
                self.tell(self._services.files(message), deadline)
                continue
            if isinstance(message, Callback) and call_back is not None:
                self.drain()
                self.send(*call_back(message), deadline)
                border.sent()
                continue
            if not isinstance(message, NeedSegment):
                raise RemoteProtocolError(f"a {type(message).__name__} in answer to a request")
            granted, fd = border.grant(message)
            try:
                self.tell(granted, deadline, (fd,) if fd >= 0 else ())
            finally:
                if fd >= 0:
                    os.close(fd)

    def ask_to_end(self, deadline: float) -> None:
        """Send the last request, whose answer nobody reads; a worker that spoke unasked is killed."""
        try:
            self.tell(Request(verb="close"), deadline)
        except RemoteProtocolError:
            self.process.kill()
        except (PeerGoneError, DeadlineError):
            pass  # it is ending, or will be killed when it has not ended in time

    def drain(self) -> None:
        """Pass on what the worker printed so far."""
        # One system call finds that there is nothing, as there is after most calls.
        if self._output_poll.poll(0):
            for output in self._outputs:
                output.drain()

    def mute(self, muted: bool) -> None:
        """Keep what it prints to ourselves, or pass it on."""
        if muted is not self._muted:
            self._muted = muted
            for output in self._outputs:
                output.muted = muted

    def tail(self) -> tuple[str, ...]:
        """Return the last lines of its stderr, oldest first; of a stack that it wrote last, the innermost frames."""
        self.drain()
        lines = self._outputs[1].tail()
        last = len(lines)
        for place in range(len(lines)):
            if lines[place].endswith("(most recent call first):"):
                last = place + _STACK_LINES
        return lines[max(min(last, len(lines)) - _TAIL_LINES, 0) : last]

    def close(self) -> None:
        """Close everything. May be called again."""
        self._background.forget(*self._outputs)
        for output in self._outputs:
            output.end()
        self._channel.close()
        self.process.close()

    def forget(self) -> None:
        """Close our descriptors without ending anything: in a fork of the process that has the worker."""
        self._channel.close()
        self.process.close()

    def _receive(self, deadline: float | None) -> FromWorker:
        data = self._channel.receive(deadline)[0]
        message = codec.decode_from_worker(data)
        if self._frames.wanted:
            self._frames.received(message, len(data))
        return message
