"""Leases: a checkout in use stays, and death gives it free."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from isohub.errors import FetchError
from isohub.hub import leases, tree
from isohub.hub.cache import Cache
from isohub.hub.checkout import Checkout
from isohub.hub.fetch import fetch
from isohub.hub.leases import Lease, is_leased, vacated
from isohub.hub.resolve import resolve
from isohub.refs import RepoRef
from tests.unit.hub.conftest import GitRepository


@pytest.fixture
def checkout(repository: GitRepository, cache: Cache) -> Checkout:
    return fetch(resolve(RepoRef.parse(f"git+{repository.url}")), cache)


@pytest.fixture
def folder(checkout: Checkout) -> Path:
    return checkout.files.parent


def lease_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lease")


def test_lease_lasts_until_its_last_holder_closes(checkout: Checkout, folder: Path) -> None:
    """A checkout is leased while anybody has a lease, and closing twice is closing once."""
    assert not is_leased(folder)
    first, second = Lease.acquire(checkout), Lease.acquire(checkout)
    assert is_leased(folder)
    first.close()
    first.close()
    assert is_leased(folder)
    with vacated(folder) as is_free:
        assert not is_free
    second.close()
    assert not is_leased(folder)
    with vacated(folder) as is_free:
        assert is_free


def test_death_releases_a_lease(checkout: Checkout, folder: Path) -> None:
    """A holder that is killed holds nothing any more."""
    script = """
import sys
from isohub.hub.cache import Cache
from isohub.hub.fetch import fetch
from isohub.hub.leases import Lease
from isohub.hub.resolve import resolve
from isohub.refs import RepoRef
lease = Lease.acquire(fetch(resolve(RepoRef.parse(sys.argv[2])), Cache(sys.argv[1])))
print("held", flush=True)
sys.stdin.read()
"""
    root = folder.parents[4]
    command = [sys.executable, "-c", script, str(root), str(checkout.repo)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert is_leased(folder)
        process.send_signal(signal.SIGKILL)
        process.wait(30)

    assert not is_leased(folder)


def test_fork_closes_only_its_own_copy(checkout: Checkout, folder: Path) -> None:
    """A fork that closes the lease does not give back its parent's."""
    lease = Lease.acquire(checkout)
    pid = os.fork()
    if pid == 0:
        lease.close()
        os._exit(0)
    os.waitpid(pid, 0)

    assert is_leased(folder)

    lease.close()
    assert not is_leased(folder)


def test_lease_of_what_is_being_removed_waits_and_fails(checkout: Checkout, folder: Path) -> None:
    """Who asks for a lease during a removal waits for it, and is told that the checkout is gone."""
    errors: list[BaseException] = []
    is_started = threading.Event()

    def acquire() -> None:
        is_started.set()
        try:
            Lease.acquire(checkout).close()
        except FetchError as error:
            errors.append(error)

    thread = threading.Thread(target=acquire)
    with vacated(folder) as is_free:
        assert is_free
        thread.start()
        is_started.wait()
        tree.remove(folder)
    thread.join(30)

    [error] = errors
    assert "was removed from the cache just now" in str(error)
    assert not folder.exists()


def test_lease_is_on_the_file_that_is_there(checkout: Checkout, folder: Path, cache: Cache) -> None:
    """A checkout that was removed and brought again is leased anew, under the same name."""
    old = Lease.acquire(checkout)
    old.close()
    with vacated(folder):
        tree.remove(folder)
    assert not lease_file(folder).exists()

    again = fetch(resolve(checkout.repo), cache)
    with Lease.acquire(again):
        assert is_leased(folder)


def test_use_is_stamped(checkout: Checkout, folder: Path) -> None:
    """Fetching, leasing and giving back each note the time; without any of them nothing is known."""
    os.utime(lease_file(folder), (1, 1))
    lease = Lease.acquire(checkout)
    started = leases.used_at(folder)
    os.utime(lease_file(folder), (1, 1))
    lease.close()
    ended = leases.used_at(folder)
    os.utime(lease_file(folder), (1, 1))
    leases.stamp(folder)
    stamped = leases.used_at(folder)
    lease_file(folder).unlink()

    assert all(moment is not None and moment.year > 2000 for moment in (started, ended, stamped))
    assert leases.used_at(folder) is None


def test_one_descriptor_for_each_lease(checkout: Checkout, folder: Path) -> None:
    """A lease costs one descriptor, which other programs do not inherit; `keep` costs one until `let_go`."""

    def inheritable() -> list[bool]:
        places = Path("/proc/self/fd").iterdir()
        return [os.get_inheritable(int(fd.name)) for fd in places if os.path.realpath(fd) == str(lease_file(folder))]

    lease = Lease.acquire(checkout)
    held = inheritable()
    lease.close()
    closed = inheritable()
    leases.keep(checkout)
    leases.keep(checkout)
    kept = inheritable()
    leases.let_go()

    assert (held, closed, kept) == ([False], [], [False])
    assert not is_leased(folder)
