"""Owns the forkserver and all workers of this process. The one object with state of its own."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from isohub import trace
from isohub.hub.checkout import Checkout
from isohub.hub.leases import Lease
from isohub.hub.services import Services
from isohub.options import Isolation
from isohub.supervisor import early, forkserver
from isohub.supervisor.arguments import pickle_function
from isohub.supervisor.background import Background
from isohub.supervisor.idle import IdleWorkers, count_asked_for
from isohub.supervisor.lending import CommonInputs
from isohub.supervisor.proxies import Proxies
from isohub.supervisor.restart import Restart
from isohub.supervisor.sharing import Sharing
from isohub.supervisor.worker import CLOSE_GRACE_S, Worker
from isohub.wire.messages import Prepare

__all__ = ["Registry"]

# At the end of the program: a call of a daemon thread may go on for ever, and nobody waits for its answer.
EXIT_GRACE_S = 2.0


@dataclass
class _Slot:
    """The place of one shared worker; its lock makes the second thread wait for the first one's launch."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    worker: Worker | None = None
    users: int = 0


class Registry:
    """One worker for each checkout and each way of setting it up, started when it is first asked for.

    Args:
        make_proxies: Makes what stands for a new worker's objects in this process.
    """

    def __init__(self, make_proxies: Callable[[Worker, Checkout], Proxies]) -> None:
        self._make_proxies = make_proxies
        self._forget()
        # A fork (a DataLoader, a web server) must not talk on our channels, nor keep the forkserver alive.
        os.register_at_fork(after_in_child=self._forked)

    def _forget(self) -> None:
        # Reentrant, like those of the slots: the collector may run a `__del__` that closes a Repo anywhere.
        self._lock = threading.RLock()
        self._slots: dict[object, _Slot] = {}
        self._workers: list[Worker] = []
        self._forkserver = early.take()
        self._background = Background()
        self._common = CommonInputs()
        self._idle = IdleWorkers(self._forkserver, self._background)
        self._sharing = Sharing()
        self._at_exit = False

    def __repr__(self) -> str:
        return f"<Registry {len(self.workers())} workers, forkserver pid={self._forkserver.pid}>"

    @property
    def forkserver_pid(self) -> int | None:
        """Process id of the forkserver; None while there is none."""
        return self._forkserver.pid

    def warm_up(self) -> None:
        """Start the forkserver, if it is not running, without waiting for it; and idle workers, if they are asked for.

        Raises:
            ValueError: `ISOHUB_IDLE_WORKERS` is no number of workers.
        """
        if self._forkserver.pid is None:  # the first time, or the first after its end
            self.keep_idle(max(self._idle.wanted, count_asked_for()))
        self._register_exit()
        self._forkserver.ensure_running()

    def keep_idle(self, count: int) -> None:
        """Have so many workers in reserve from now on, beside those in use.

        Raises:
            WorkerStartError: The forkserver cannot be asked for them.
        """
        self._register_exit()
        self._forkserver.ensure_running()
        self._idle.keep(count)

    def wait_for_idle(self, timeout_s: float) -> None:
        """Wait until those in reserve can be given a repository at once.

        Raises:
            WorkerStartError: They do not come in time.
        """
        self._idle.wait(time.monotonic() + timeout_s)

    def workers(self) -> list[Worker]:
        """Return the live workers, oldest first."""
        with self._lock:
            for worker in self._workers:
                worker.reap()
            self._workers = [worker for worker in self._workers if worker.alive]
            return list(self._workers)

    def worker(self, checkout: Checkout, isolation: Isolation) -> Worker:
        """Return a ready worker for `checkout`: the one that it has, or a new one.

        Whoever is done with it may say so by `release`; the worker ends when nobody uses it any more.

        Raises:
            WorkerStartError: A new one does not become ready.
            GoneError: The checkout was removed since it was fetched.
            LocalProtocolError: `isolation.setup` cannot be pickled.
            Exception: What `isolation.setup` raised.
        """
        self._register_exit()
        self._sweep()
        key = object() if isolation.dedicated else (checkout.key, *_settings(isolation))
        while True:
            with self._lock:
                slot = self._slots.setdefault(key, _Slot())
            with slot.lock:
                if self._slots.get(key) is not slot:
                    continue  # `release` took it away while this thread waited for its lock
                try:
                    return self._ready(slot, checkout, isolation)
                except BaseException:
                    if not slot.users:
                        self._slots.pop(key, None)
                    raise

    def release(self, worker: Worker) -> None:
        """Take back one `worker` call; the last one ends the worker."""
        with self._lock:
            slots = [(key, slot) for key, slot in self._slots.items() if slot.worker is worker]
        for key, slot in slots:
            with slot.lock:
                if slot.worker is not worker:
                    continue  # it had ended, and has a successor
                slot.users -= 1
                if not slot.users:
                    worker.close()
                    self._slots.pop(key, None)

    def shutdown(self, timeout_s: float = CLOSE_GRACE_S) -> None:
        """End all workers, the forkserver and the thread. The next `worker` starts afresh.

        Args:
            timeout_s: How long each worker may take for a call that is under way, and to end.
        """
        # First all are asked, then all are waited for. No threads: at exit Python 3.12 starts none.
        closing = self.workers()
        for worker in closing:
            worker.begin_close()
        for worker in closing:
            worker.close(timeout_s)
        with self._lock:
            self._slots.clear()
            self._workers.clear()
        self._idle.close()
        self._sharing.close()
        self._background.stop()
        self._forkserver.close()

    def _sweep(self) -> None:
        """Forget the places of workers that have ended: nobody asks for a dedicated one's again."""
        self.workers()  # notices those that ended by themselves
        with self._lock:
            slots = [(key, slot) for key, slot in self._slots.items() if slot.worker and not slot.worker.alive]
            for key, slot in slots:
                # One that is taken is just getting a new worker; whoever waits for it looks again.
                if slot.lock.acquire(blocking=False):
                    if slot.worker and not slot.worker.alive:
                        self._slots.pop(key, None)
                    slot.lock.release()

    def _ready(self, slot: _Slot, checkout: Checkout, isolation: Isolation) -> Worker:
        if slot.worker is not None:
            slot.worker.reap()
        if slot.worker is None or not slot.worker.alive:
            slot.worker, slot.users = None, 0
            slot.worker = self._launch(checkout, isolation)
        slot.users += 1
        return slot.worker

    def _launch(self, checkout: Checkout, isolation: Isolation) -> Worker:
        label = checkout.repo.label + (f"@{checkout.commit[:7]}" if checkout.commit else "")
        with trace.step("supervisor.launch", worker=label) as step:
            setup = None if isolation.setup is None else pickle_function(isolation.setup)
            prepare = Prepare(
                root=os.fspath(checkout.root),
                label=label,
                sys_path=[os.fspath(checkout.root)],
                cwd=os.fspath(checkout.cwd),
                argv=[os.fspath(checkout.root / "hubconf.py")],
                environ=forkserver.worker_environment(isolation.env),
                hub_dir=os.fspath(checkout.hub_folder),
                pycache=None if checkout.pycache is None else os.fspath(checkout.pycache),
                threads=isolation.threads or torch.get_num_threads(),
                setup=setup,
                frozen=isolation.results == "frozen",
                memory_bytes=isolation.memory_bytes,
                open_files=isolation.open_files,
            )
            lease = Lease.acquire(checkout)  # before anybody knows of the worker: the checkout may be gone
            try:
                worker = Worker(label, isolation, self._background, Services(str(checkout.repo)), self._common)
                worker.lease, worker.checkout, worker.sharing = lease, checkout, self._sharing
                worker.border.proxies = self._make_proxies(worker, checkout)
                with self._lock:
                    self._workers.append(worker)
                worker.start(self._idle, prepare)
                if isolation.restart == "on-crash":
                    worker.restart = Restart(
                        self._idle, prepare, checkout, lambda: self._make_proxies(worker, checkout)
                    )
            except BaseException:
                lease.close()
                raise
            step.fields["pid"] = worker.pid
        self._idle.refill_soon()
        return worker

    def _register_exit(self) -> None:
        with self._lock:
            if not self._at_exit:
                self._at_exit = True
                atexit.register(self.shutdown, EXIT_GRACE_S)

    def _forked(self) -> None:
        for worker in self._workers:
            worker.forget()
        self._idle.forget()
        self._forkserver.forget()
        self._sharing.forget()
        self._background.abandon()
        self._common.forget()
        # Models of the parent's that came along keep their own `Worker`, which refuses to be used here.
        self._forget()


def _settings(isolation: Isolation) -> tuple[object, ...]:
    """Return what makes two workers of one checkout differ. A worker has one deadline for all its calls."""
    environ = tuple(sorted(isolation.env.items(), key=str))
    limits = (isolation.timeout_s, isolation.memory_bytes, isolation.open_files, isolation.results)
    memory = (isolation.restart, isolation.share_equal_weights)
    return (isolation.setup, environ, isolation.threads, *memory, *limits)
