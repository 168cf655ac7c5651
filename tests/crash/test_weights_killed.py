"""Weights that many processes ask for at once, while whoever downloads is killed, again and again."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from isohub.hub.weight_store import WeightStore
from tests.helpers.cold_loads import PROCESSES, rounds
from tests.helpers.fileserver import FileServer, file_server
from tests.helpers.versions import SETTINGS
from tests.helpers.waiting import until

ROUNDS = rounds(1)
KILLS = PROCESSES - 1
# Half of what is left is more than one of the pieces that a download is written in, each time.
NBYTES = (256 << 10) * 2**KILLS
SCRIPT = """
import sys
from isohub.hub.weights import fetch_weights
print(fetch_weights(sys.argv[1], progress=False))
"""

pytestmark = pytest.mark.timeout(60 + 30 * ROUNDS)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


# How the server names the version that it gives the n-th time, and whether it can go on in the middle.
@pytest.mark.parametrize(
    ("etag", "has_ranges", "goes_on"),
    [
        pytest.param(lambda _: '"same"', True, True, id="goes-on"),
        pytest.param(lambda _: None, True, False, id="names-no-version"),
        pytest.param(lambda _: '"same"', False, False, id="has-no-ranges"),
        pytest.param(lambda turn: f'"v{turn}"', True, False, id="changes"),
    ],
)
def test_23_download_killed_again_and_again(etag: Callable[[int], str | None], has_ranges: bool, goes_on: bool):
    """A download that is killed is gone on with where the server can, and else begun anew; half of it is never used."""
    versions = 1 if goes_on else PROCESSES  # so that a mixture of two would be seen
    with file_server() as server:
        for turn in range(ROUNDS):
            url = f"http://{server.netloc}/model{turn}.pth"
            bodies = [random.Random(f"{turn} {number % versions}").randbytes(NBYTES) for number in range(PROCESSES)]
            server.requests.clear()
            processes: list[subprocess.Popen[str]] = []
            gates = [threading.Event() for _ in range(KILLS)]

            def put(number: int) -> None:
                gate = gates[number] if number < KILLS else None  # noqa: B023
                settings = {"etag": etag(number), "has_ranges": has_ranges, "gate": gate}
                server.put(f"/model{turn}.pth", bodies[number], **settings)  # noqa: B023

            put(0)
            try:
                for _ in range(PROCESSES):
                    start = [sys.executable, "-c", SCRIPT, url]
                    processes.append(subprocess.Popen(start, stdout=subprocess.PIPE, text=True))
                alive = list(processes)
                for number in range(KILLS):
                    victim = _in_the_middle(server, f"/model{turn}.pth", bodies[number], alive, goes_on=goes_on)
                    assert WeightStore().find(url) is None
                    put(number + 1)
                    victim.kill()
                    alive.remove(victim)
                    gates[number].set()
                (last,) = alive
                place = Path(last.communicate(timeout=60)[0].strip())
            finally:
                for gate in gates:
                    gate.set()
                for process in processes:
                    process.kill()
                    process.wait()
                    process.stdout.close()

            assert last.returncode == 0
            assert place.read_bytes() == bodies[-1]
            assert WeightStore().partials() == []
            sha256 = hashlib.sha256(bodies[-1]).hexdigest()
            assert {path.name for path in place.parent.parent.iterdir()} == {sha256, f"{sha256}.lease"}
            _assert_asked(server, is_versioned=etag(0) is not None, goes_on=goes_on)


def _in_the_middle(
    server: FileServer, path: str, body: bytes, alive: list[subprocess.Popen[str]], *, goes_on: bool
) -> subprocess.Popen[str]:
    """Wait until half of the body has been sent, and some of that written; return the process that does it."""
    assert server.files[path].half_sent.wait(30)
    found: list[subprocess.Popen[str]] = []

    def is_written() -> bool:
        found[:] = [process for process in alive if _writes(process.pid)]
        before = max(_starts(server), default=0) if goes_on else 0
        there = b"".join(place.read_bytes() for place in WeightStore().partials())
        # What the one before has left is of another body, or else what this one goes on from.
        return len(found) == 1 and len(there) > before and body.startswith(there)

    until(is_written)
    return found[0]


def _writes(pid: int) -> bool:
    try:
        return any(fd.readlink().name == "partial" for fd in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # closed meanwhile
        return False


def _starts(server: FileServer) -> list[int]:
    """Return where the requests begin that ask for the rest of the file."""
    return [int(text.removeprefix("bytes=").removesuffix("-")) for text in server.ranges() if text is not None]


def _assert_asked(server: FileServer, *, is_versioned: bool, goes_on: bool) -> None:
    """Hold what was asked for against what there was of the file each time."""
    assert len(server.requests) == PROCESSES  # one for each, as all but the last were killed in the middle
    assert server.ranges()[0] is None
    starts = _starts(server)
    assert len(starts) == (KILLS if is_versioned else 0)
    if goes_on:
        assert starts == sorted(set(starts))
        assert starts[-1] >= NBYTES // 2
