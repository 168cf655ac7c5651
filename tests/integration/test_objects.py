"""What stands for an object in a worker: `RemoteObject`, used as the object itself is."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import isohub
from isohub.errors import LocalProtocolError
from tests.helpers.repos import make_repo, url
from tests.helpers.waiting import until

REPO = """
    import types
    import weakref

    import torch


    class Shelf:
        kind = "shelf"

        def __init__(self, *things):
            self.things = dict(enumerate(things))
            self.depth = 3
            self.log = []

        def put(self, key, thing, *, loud=False):
            self.things[key] = thing
            return f"{key}!" if loud else key

        def __call__(self, x, twice=False):
            return x * (2 if twice else 1)

        def __len__(self):
            return len(self.things)

        def __iter__(self):
            return iter(self.things)

        def __contains__(self, key):
            return key in self.things

        def __getitem__(self, key):
            return self.things[key]

        def __setitem__(self, key, value):
            self.things[key] = value

        def __delitem__(self, key):
            del self.things[key]

        def __enter__(self):
            self.log.append("enter")
            return self

        def __exit__(self, kind, error, trace):
            self.log.append(None if kind is None else f"{kind.__name__}: {error}")
            return kind is KeyError

        def __bool__(self):
            return self.depth > 0

        def __eq__(self, other):
            return isinstance(other, Shelf) and self.things == other.things

        def __hash__(self):
            return 7

        def __str__(self):
            return f"shelf of {len(self)}"

        @property
        def broken(self):
            raise AttributeError("no such board")

        @classmethod
        def of_three(cls):
            return cls(1, 2, 3)

        def same(self, other):
            return other is self

        def me(self):
            return self


    class Bare:
        def __init__(self):
            self.value = 1

        def method(self):
            return self.value


    LIVE = weakref.WeakSet()
    KEPT = Bare()


    def shelf(*things):
        return Shelf(*things)


    def bare():
        made = Bare()
        LIVE.add(made)
        return made


    def kept():
        return KEPT


    def live():
        return len(LIVE)


    def is_kept(thing):
        return thing is KEPT


    def shelf_class():
        return Shelf


    def namespace():
        return torch.nn.functional


    def operators():
        return types.SimpleNamespace(double=lambda x: x * 2, name="ops")


    class Loader:
        def __init__(self):
            self.at = 0

        def __iter__(self):
            self.at = 0
            return self

        def __next__(self):
            self.at += 1
            if self.at > 3:
                raise StopIteration
            return self.at


    def loader():
        return Loader()


    def counting(n):
        for i in range(n):
            yield i, torch.full((2,), float(i))
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("objects") / "owner" / "repo"
    return url(make_repo(folder, {"v1": {"hubconf.py": REPO}, "v2": {"hubconf.py": REPO + "\n"}}), "v1")


@pytest.fixture
def shelf(repo: str, forkserver: int) -> Any:
    return isohub.load(repo, "shelf", "a", [1, 2])


def test_attributes(shelf: Any):
    """Attributes are read, set and deleted in the worker; what is missing is an AttributeError."""
    assert (shelf.kind, shelf.depth) == ("shelf", 3)
    shelf.depth = {"new": (1, 2)}
    assert shelf.depth == {"new": (1, 2)}
    del shelf.depth
    assert not hasattr(shelf, "depth")
    with pytest.raises(AttributeError, match="no such board"):
        _ = shelf.broken
    with pytest.raises(AttributeError, match="nowhere"):
        del shelf.nowhere
    assert getattr(shelf, "nowhere", "default") == "default"


def test_methods_and_calls(shelf: Any):
    """Methods take positions and keywords, can be kept, and the object itself can be called."""
    put = shelf.put
    assert put("k", torch.arange(2.0), loud=True) == "k!"
    assert torch.equal(torch.arange(2.0), shelf["k"])
    assert torch.equal(torch.tensor([2.0]), shelf(torch.ones(1), twice=True))
    assert callable(shelf)
    assert "put" in repr(put)


def test_container(shelf: Any):
    """Length, iteration, membership and items work as on the object."""
    assert (len(shelf), list(shelf), 1 in shelf, 5 in shelf, shelf[1]) == (2, [0, 1], True, False, [1, 2])
    shelf["new"] = 3.5
    assert shelf["new"] == 3.5
    del shelf["new"]
    assert "new" not in shelf
    with pytest.raises(KeyError, match="gone"):
        _ = shelf["gone"]


def test_truth_equality_and_text(repo: str, shelf: Any):
    """`bool`, `==`, `hash` and `str` are the object's own; `repr` tells what it is and where."""
    equal, other = isohub.load(repo, "shelf", "a", [1, 2]), isohub.load(repo, "shelf")

    assert shelf
    shelf.depth = 0
    assert not shelf
    assert shelf == equal
    assert shelf != other
    assert hash(shelf) == 7
    assert str(shelf) == "shelf of 2"
    assert "hubconf.Shelf" in repr(shelf)
    assert "owner/repo" in repr(shelf)
    assert {"put", "things", "depth"} <= set(dir(shelf))


def test_object_without_protocols_has_none(repo: str, forkserver: int):
    """A proxy is not callable, sized or iterable unless its object is; it is true and equal to itself alone."""
    bare = isohub.load(repo, "bare")

    assert not callable(bare)
    for function in (len, iter, lambda value: value[0], lambda value: 1 in value):
        with pytest.raises(TypeError):
            function(bare)
    assert bare
    assert bare == bare  # noqa: PLR0124 - that is what is asked
    assert bare != isohub.load(repo, "bare")


def test_context_manager(shelf: Any):
    """`with` enters and leaves the object, which may swallow an exception, and is told which it was."""
    with shelf as entered:
        assert entered is shelf
    with shelf:
        raise KeyError("swallowed")
    with pytest.raises(ValueError, match="passes"), shelf:
        raise ValueError("passes")

    assert shelf.log == ["enter", None, "enter", "KeyError: 'swallowed'", "enter", "ValueError: passes"]


def test_generator_is_read_in_turn(repo: str, forkserver: int):
    """A generator stays in the worker, and is read one by one, to its end."""
    counting = isohub.load(repo, "counting", 3)

    assert iter(counting) is counting
    first, tensor = next(counting)
    assert (first, tensor.tolist()) == (0, [0.0, 0.0])
    assert [i for i, _ in counting] == [1, 2]
    with pytest.raises(StopIteration):
        next(counting)


def test_iterator_that_starts_anew_is_read_to_its_end(repo: str, forkserver: int):
    """An object whose `__iter__` starts it anew is asked for an iterator once a loop, and for its items then."""
    loader = isohub.load(repo, "loader")

    assert [item for item, _ in zip(loader, range(10), strict=False)] == [1, 2, 3]
    assert [item for item, _ in zip(loader, range(10), strict=False)] == [1, 2, 3]


def test_equality_with_what_cannot_cross_is_false(repo: str, shelf: Any):
    """Compared with an object of another worker, or one that cannot be sent, an object is not equal to it."""
    other = isohub.load(repo.replace("@v1", "@v2"), "shelf", "a", [1, 2])

    assert shelf != other
    assert shelf != threading.Lock()
    assert [threading.Lock(), other, shelf].index(shelf) == 2


def test_modules_and_classes(repo: str, forkserver: int):
    """A module object is a namespace of functions, a class makes objects, a function has its name."""
    functional, operators = isohub.load(repo, "namespace"), isohub.load(repo, "operators")
    shelf_class = isohub.load(repo, "shelf_class")

    assert torch.equal(torch.tensor([0.0, 2.0]), functional.relu(torch.tensor([-1.0, 2.0])))
    assert functional.__name__ == "torch.nn.functional"
    assert (operators.double(4), operators.name) == (8, "ops")
    assert len(shelf_class(1, 2)) == 2
    assert len(shelf_class.of_three()) == 3
    assert (shelf_class.__name__, shelf_class.kind) == ("Shelf", "shelf")


def test_handle_passed_back_is_the_object(repo: str, shelf: Any):
    """A proxy passed as an argument arrives as the object itself, wherever it is nested."""
    assert shelf.same(shelf)
    assert not shelf.same(isohub.load(repo, "shelf", "a", [1, 2]))
    kept = isohub.load(repo, "kept")
    assert isohub.load(repo, "is_kept", kept)
    shelf["nested"] = [{"x": kept}]
    assert shelf["nested"][0]["x"] is kept
    assert isohub.load(repo, "is_kept", thing=kept)


def test_one_object_has_one_proxy(repo: str, shelf: Any):
    """The same object of the worker is the same object here, by whatever way it comes."""
    assert shelf.me() is shelf
    assert isohub.load(repo, "kept") is isohub.load(repo, "kept")
    assert isohub.load(repo, "bare") is not isohub.load(repo, "bare")


def test_object_dies_with_its_proxy(repo: str, forkserver: int):
    """The worker lets go of an object when nobody holds its proxy or one of its methods any more."""
    things = [isohub.load(repo, "bare") for _ in range(3)]
    method = things[0].method
    assert isohub.load(repo, "live") == 3
    things.clear()
    gc.collect()

    until(lambda: isohub.load(repo, "live") == 1)
    assert method() == 1
    method = None
    until(lambda: isohub.load(repo, "live") == 0)


def test_object_sent_again_outlives_its_first_proxy(repo: str, forkserver: int):
    """An object that comes again while its first proxy is being given back stays alive."""
    for _ in range(50):
        kept = isohub.load(repo, "kept")
        del kept
    kept = isohub.load(repo, "kept")

    assert kept.value == 1
    assert isohub.load(repo, "is_kept", kept)


def test_handle_of_another_worker_is_refused(repo: str, shelf: Any):
    """What lives in one worker cannot be passed to another, and the error names both."""
    other = isohub.load(repo.replace("@v1", "@v2"), "shelf")

    with pytest.raises(LocalProtocolError, match=r"lives in worker owner/repo:v1.*cannot go to worker owner/repo:v2"):
        other.same(shelf)
    with pytest.raises(LocalProtocolError, match="lives in worker"):
        other.put("k", [lambda: shelf])
    assert other.same(other)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_proxy_cannot_be_copied(repo: str, shelf: Any, duplicate: Callable[[Any], Any]):
    """Copying a proxy is refused with a text that says why."""
    with pytest.raises(LocalProtocolError, match="cannot be copied; pass it as an argument"):
        duplicate(shelf)
