"""`Isolation(restart="on-crash")`: when a new worker is started, when not, and what happens when that fails."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from isohub.errors import BrokenWorkerError, RemoteProtocolError, RestartError, WorkerClosedError
from isohub.supervisor.restart import MAX_TRIES, PAUSE_S
from tests.helpers.leaks import holdings
from tests.helpers.repos import git, make_repo, url, write_files
from tests.helpers.waiting import until

HUBCONF = """
    import os, pathlib, signal
    import torch

    NOTE = pathlib.Path(os.environ.get("NOTE", "/nonexistent"))
    VERSION = 1

    class Net(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = torch.nn.Linear(2, width)

        def forward(self, x):
            return self.layer(x)

        def version(self):
            return VERSION

        def die(self):
            os.kill(os.getpid(), signal.SIGKILL)

        def fail(self):
            raise ValueError("no such thing")

    def net():
        order = NOTE.read_text() if NOTE.exists() else "3"
        if order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "raise":
            raise LookupError("no weights")
        return Net(int(order))

    class Trainer:
        def __init__(self):
            self.model = Net(3)

        def loss(self, x):
            return self.model(x).sum()

    def trainer():
        return Trainer()

    def liar():
        from isohub.worker import autograd
        autograd._Graph.backward = lambda *args: [[torch.zeros(1)], []]
        return Net(3)
"""
X = torch.tensor([[1.0, 2.0]])
RESTART = isohub.Isolation(restart="on-crash")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def repo(repo_of: Callable[..., str]) -> str:
    return repo_of(HUBCONF)


@pytest.fixture
def note(tmp_path: Path) -> Path:
    """A file that says how wide the next model is, or how its building fails."""
    return tmp_path / "note"


def noting(note: Path) -> isohub.Isolation:
    return isohub.Isolation(restart="on-crash", env={"NOTE": str(note)})


def crash(model: Any) -> None:
    """Kill the worker of a model that nobody calls, and wait until it is gone."""
    pid = model.isohub.pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_threads_start_one_worker(repo: str):
    """Threads that find a worker dead at once, each with a model of its own, build one new worker."""
    models = [isohub.load(repo, "net", isolate=RESTART) for _ in range(4)]
    expected = [model(X) for model in models]
    crash(models[0])
    start = threading.Barrier(8)

    def call(index: int) -> torch.Tensor:
        start.wait()
        return models[index % 4](X)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(call, range(8)))

    assert all(torch.equal(expected[index % 4], value) for index, value in enumerate(found))
    assert [worker.restarts for worker in isohub.workers()] == [1]


def test_loads_after_a_crash_find_the_new_worker(repo: str):
    """A `Repo`, a new load of the same ref and the old model share the worker that was started again."""
    with isohub.Repo(repo, isolate=RESTART) as held:
        old = held.load("net")
        crash(old)
        new = isohub.load(repo, "net", isolate=RESTART)

        assert held.list() == ["Net", "Trainer", "liar", "net", "trainer"]
        assert old(X).shape == new(X).shape
        assert old.isohub.pid == new.isohub.pid
        assert [worker.restarts for worker in isohub.workers()] == [1]
        assert "restarts=1" in repr(isohub.workers()[0])


def test_other_policy_is_another_worker(repo: str):
    """A worker that is started again is not shared with loads that want none of that."""
    assert isohub.load(repo, "net", isolate=RESTART).isohub.pid != isohub.load(repo, "net").isohub.pid


def test_closed_worker_stays_closed(repo: str):
    """What the program closed, before or after it died, is not started again."""
    models = []
    for dies in (False, True):
        with isohub.Repo(repo, isolate=RESTART) as held:
            models.append(held.load("net"))
            if dies:
                crash(models[-1])

    for model in models:
        with pytest.raises(WorkerClosedError):
            model(X)
    assert isohub.workers() == []


def test_liar_is_not_started_again(repo: str):
    """A worker that was killed because it lied has no successor."""
    model = isohub.load(repo, "liar", isolate=RESTART)
    with pytest.raises(RemoteProtocolError):
        model(X).sum().backward()

    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="was killed"):
            model(X)
    assert isohub.workers() == []


def test_same_commit_comes_back(tmp_path: Path, forkserver: int):
    """A branch that has moved on since changes nothing: the new worker runs the commit of the old one."""
    folder = make_repo(tmp_path / "owner" / "repo", {"v1": {"hubconf.py": HUBCONF}})
    model = isohub.load(url(folder, "main"), "net", isolate=RESTART)
    write_files(folder, {"hubconf.py": HUBCONF.replace("VERSION = 1", "VERSION = 2")})
    git(folder, "commit", "-qam", "v2")

    crash(model)

    assert model.version() == 1


def test_edited_working_tree_is_an_error(tmp_path: Path, forkserver: int):
    """Where the files of a working tree were edited since, the same model cannot be built, and an error says so."""
    write_files(tmp_path / "tree", {"hubconf.py": HUBCONF})
    model = isohub.load(tmp_path / "tree", "net", isolate=RESTART)
    crash(model)
    assert model.version() == 1

    write_files(tmp_path / "tree", {"hubconf.py": HUBCONF.replace("VERSION = 1", "VERSION = 22")})
    crash(model)

    for _ in range(2):
        with pytest.raises(RestartError, match="were edited"):
            model.version()
    assert model.state_dict()["layer.weight"].shape == (3, 2)


def test_other_shape_is_an_error_that_names_it(repo: str, note: Path):
    """Code that builds something else than before is told apart by name; when it builds the same again, all is well."""
    model = isohub.load(repo, "net", isolate=noting(note))
    expected = model(X)
    note.write_text("5")
    crash(model)

    with pytest.raises(RestartError, match="not what died") as caught:
        model(X)
    assert caught.value.entrypoint == "net"
    assert caught.value.differences == (
        "its parameter 'layer.bias' is (5,), not (3,)", "its parameter 'layer.weight' is (5, 2), not (3, 2)"
    )  # fmt: skip

    note.unlink()
    assert torch.equal(expected, model(X))
    assert [worker.restarts for worker in isohub.workers()] == [1]


@pytest.mark.parametrize(("order", "text"), [("raise", "LookupError: no weights"), ("die", "SIGKILL")])
def test_failing_load_fails_the_call_and_is_tried_again(repo: str, note: Path, order: str, text: str):
    """A load that raises or dies when it is done again is the error of that call alone; the next one tries again."""
    model, expected = isohub.load(repo, "net", isolate=noting(note)), None
    expected = model(X)
    note.write_text(order)
    crash(model)

    with pytest.raises(RestartError, match=text):
        model(X)

    note.unlink()
    assert torch.equal(expected, model(X))


def test_crash_loop_is_slowed_down(repo: str):
    """After some deaths in a row no worker is started for a while; then there is another try, and a call that works."""
    model = isohub.load(repo, "net", isolate=RESTART)
    for _ in range(MAX_TRIES + 1):
        with pytest.raises(BrokenWorkerError, match="SIGKILL"):
            model.die()

    with pytest.raises(RestartError, match="died 4 times") as caught:
        model(X)
    assert 0 < caught.value.retry_after_s <= PAUSE_S
    assert isohub.workers()[0].restarts == MAX_TRIES

    def works() -> bool:
        try:
            return model(X).shape == (1, 3)
        except RestartError:
            return False

    until(works, timeout_s=4 * PAUSE_S)
    assert isohub.workers()[0].restarts == MAX_TRIES + 1


def test_good_call_ends_the_count(repo: str):
    """Deaths count as in a row only without a call that went well between them; one that raises went well."""
    model = isohub.load(repo, "net", isolate=RESTART)

    for _ in range(MAX_TRIES + 2):
        with pytest.raises(BrokenWorkerError, match="SIGKILL"):
            model.die()
        with pytest.raises(ValueError, match="no such thing"):
            model.fail()


def test_death_within_a_hook_fails_the_outer_call(repo: str):
    """A hook that survives the death of its worker gets no new one in the middle of the call, which fails."""
    model = isohub.load(repo, "net", isolate=RESTART)
    expected = model(X)
    seen: list[type[Exception]] = []

    def hook(*_: object) -> None:
        for use in (model.die, model.version):
            try:
                use()
            except BrokenWorkerError as error:
                seen.append(type(error))

    handle = model.layer.register_forward_hook(hook)
    with pytest.raises(BrokenWorkerError, match="SIGKILL"):
        model(X)
    handle.remove()

    assert [BrokenWorkerError] * 2 == seen
    assert torch.equal(expected, model(X))


def test_kept_descriptors_go_with_the_weights(repo: str):
    """There is one descriptor for each piece of weights, as long as the model lives, and none without `restart`."""

    def descriptors() -> int:
        return sum("memfd:isohub" in name for name in holdings()["descriptors"].elements())

    plain = isohub.load(repo, "net")
    before = descriptors()
    held = isohub.Repo(repo, isolate=RESTART)
    model = held.load("net")
    assert before + 1 == descriptors()

    for _ in range(3):
        crash(model)
        model(X)
    assert before + 1 == descriptors()

    weight = model.layer.weight
    del model
    assert before + 1 == descriptors()
    del weight
    until(lambda: held.list() and before == descriptors())  # the worker says with an answer that nothing is there
    assert plain(X).shape == (1, 3)


def test_parameters_without_their_module_are_not_lost_silently(repo: str, forkserver: int):
    """Where an optimizer has the parameters of a part that is not held, a restart says so and builds nothing again."""
    trainer = isohub.load(repo, "trainer", isolate=RESTART)
    parameters = list(trainer.model.parameters())
    trainer.loss(X).backward()
    assert all(parameter.grad is not None for parameter in parameters)
    with pytest.raises(BrokenWorkerError):
        trainer.model.die()

    with pytest.raises(RestartError, match=r"Hold on to the module"):
        trainer.loss(X)

    assert [tuple(parameter.shape) for parameter in parameters] == [(3, 2), (3,)]
