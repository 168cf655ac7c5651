"""Objects that stay in the worker, as the caller holds them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from isohub.errors import LocalProtocolError, RemoteProtocolError
from isohub.model import journal, recipe
from isohub.model.generators import lent
from isohub.model.refusals import check_surroundings, is_followed
from isohub.supervisor.worker import Worker
from isohub.wire.messages import Verb
from isohub.wire.texts import clean

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "BoundMethod", "Lease", "RemoteObject", "ask", "get_attribute", "judged", "names_in", "nested", "object_class",
    "run_in", "text_in",
]  # fmt: skip

# What an honest worker answers to such a question needs no other. A hostile one must not lead this process
# to its recursion limit.
MAX_NESTED = 8

_nesting = threading.local()
# What is over with its answer. An attribute that is set, say, would hold what was lent.
_LENDING = ("call", "method", "run")


class Lease:
    """One handle of a worker's, for as long as anybody here holds it.

    Args:
        worker: The worker.
        handle: Number of the object in its table.
        released: Called with the handle and how often it was received, when nobody holds it any more.
    """

    def __init__(self, worker: Worker, handle: int, released: Callable[[int, int], None]) -> None:
        self.worker = worker
        self.handle = handle
        self.origin: Any = None  # how it came, for pickles; see `model.recipe`
        self.part: journal.Part | None = None  # how it is built again, if it is; see `model.journal`
        self.stands_for: weakref.ref[Any] | None = None  # the module tree or object of this handle
        self.table: Any = None  # of the process in which the handle means something
        self.what = "an object"
        self._released = released
        self._received = [0]
        self._watch()

    def receive(self) -> None:
        """Count that the worker sent the handle once more."""
        self._received[0] += 1

    def take_over(self, other: Lease) -> None:
        """Be the lease of another handle from now on, of which `other` knows nothing more."""
        other._finalizer.detach()
        self._finalizer.detach()
        self.handle, self.table = other.handle, other.table
        self._released, self._received = other._released, other._received
        self._watch()

    def _watch(self) -> None:
        self._finalizer = weakref.finalize(self, _release, self._released, self.handle, self._received)
        self._finalizer.atexit = False


def _release(released: Callable[[int, int], None], handle: int, received: list[int]) -> None:
    released(handle, received[0])


class RemoteObject:
    """Stands for an object that lives in a worker.

    Attributes, methods, calls, `len`, iteration, items, `in`, `with`, `bool`, `==` and `str` go to the
    object, as far as its class has them. Handed back to its own worker as an argument, it arrives as the
    object itself. When the last `RemoteObject` for it dies, the worker lets go of it.

    Raises:
        AttributeError: As the object would.
        BrokenWorkerError: The worker is dead, and the object with it.

    Example:
        >>> model, (get_timestamps, *_) = isohub.load(repo, "vad")
        >>> get_timestamps(wave, model)
    """

    __slots__ = ("__weakref__", "_isohub_lease", "_isohub_type")

    _isohub_lease: Lease
    _isohub_type: str
    _isohub_path = ""  # a module has one

    def __init__(self, lease: Lease, type_name: str) -> None:
        object.__setattr__(self, "_isohub_lease", lease)
        object.__setattr__(self, "_isohub_type", type_name)

    def __repr__(self) -> str:
        lease = self._isohub_lease
        return f"<RemoteObject {clean(self._isohub_type, 500)} in {lease.worker!r}>"

    def __str__(self) -> str:
        return str(ask(self, "str"))

    def __getattr__(self, name: str) -> Any:
        # Python looks these up on its own, to copy, show or wrap an object; they are not the worker's.
        if name.startswith("__") and name.endswith("__") and name not in _FORWARDED:
            raise AttributeError(name)
        return get_attribute(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        ask(self, "setattr", value, name=name)
        recipe.note_attribute(self, name, value)

    def __delattr__(self, name: str) -> None:
        ask(self, "delattr", name=name)

    def __dir__(self) -> list[str]:
        return names_in(self._isohub_lease.worker, ask(self, "dir"))

    def __reduce_ex__(self, _: object) -> Any:
        return recipe.reduce_object(self)

    def __copy__(self) -> Any:
        raise self._uncopied()

    def __deepcopy__(self, _: object) -> Any:
        raise self._uncopied()

    def _uncopied(self) -> LocalProtocolError:
        return LocalProtocolError(
            f"a RemoteObject ({self._isohub_type}) stands for an object in worker process "
            f"{self._isohub_lease.worker.pid}. It cannot be copied; pass it as an argument of a call, or take the data "
            "out of it"
        )


# Names with two underscores that mean something to a user.
_FORWARDED = frozenset(("__name__", "__doc__", "__version__", "__wrapped__", "__all__", "__file__"))


class BoundMethod:
    """A method of an object in a worker. Calling it is one exchange; it holds no handle of its own."""

    def __init__(self, lease: Lease, path: str, name: str) -> None:
        self._isohub_lease = lease
        self._isohub_path = path
        self.__name__ = name
        self._owner: object = None

    def bind(self, owner: object) -> None:
        """Keep `owner` alive with this method."""
        self._owner = owner

    def __repr__(self) -> str:
        return f"<method {clean(self.__name__, 500)} of {self._owner!r}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method in the worker and return its result."""
        return ask(self, "method", *args, name=self.__name__, kwargs=kwargs)


def ask(proxy: Any, verb: Verb, *args: Any, name: str = "", kwargs: dict[str, Any] | None = None) -> Any:
    """Ask the worker of `proxy` to do something with what it stands for."""
    if is_followed():
        check_surroundings(args, kwargs)
    has_generator = torch.Generator in map(type, args) or (kwargs and torch.Generator in map(type, kwargs.values()))
    if has_generator and verb in _LENDING:
        with lent(proxy, args, kwargs) as (there, named):
            return _asked(proxy, verb, there, named, name)
    return _asked(proxy, verb, args, kwargs, name)


def _asked(proxy: Any, verb: Verb, args: tuple[Any, ...], kwargs: dict[str, Any] | None, name: str) -> Any:
    lease: Lease = proxy._isohub_lease
    if lease.part is None or verb not in journal.VERBS:
        return lease.worker.request(verb, args, kwargs, of=lease, path=proxy._isohub_path, name=name)
    with journal.noting(proxy, verb, args, kwargs, name):
        return lease.worker.request(verb, args, kwargs, of=lease, path=proxy._isohub_path, name=name)


def run_in(target: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a function of yours in the worker of an isolated module, with the real module.

    For what has to see the module itself: code that walks or rewrites it, utilities of torch that look into
    modules (`torch.nn.utils.parametrize`, `torch.func.functional_call`), a loop of many small calls.

    Args:
        target: An `IsolatedModule`, also a sub-module, or a `RemoteObject`; the function gets what it stands
            for as its first argument.
        function: Goes to the worker by cloudpickle, with whatever it refers to. It sees the packages that are
            installed, not the modules of your program.
        *args: Further arguments, as in any call of an isolated module: tensors cross through shared memory,
            gradients find their way back.
        **kwargs: Keyword arguments.

    Returns:
        What the function returns. Changes that it makes to the module are seen here.

    Raises:
        TypeError: `target` lives in no worker.
        LocalProtocolError: The function or an argument cannot cross.
        BrokenWorkerError: The worker is dead, or dies meanwhile.
        Exception: What the function raised.

    Example:
        >>> isohub.run_in(model, lambda module, x: module.features(x).mean(), image)
    """
    if getattr(target, "_isohub_lease", None) is None:
        raise TypeError(f"run_in() takes an isolated module or a RemoteObject, and got a {type(target).__name__}")
    return ask(target, "run", function, *args, kwargs=kwargs)


def get_attribute(proxy: Any, name: str) -> Any:
    """Return an attribute of what `proxy` stands for.

    Raises:
        AttributeError: It has none of that name.
    """
    value = ask(proxy, "getattr", name=name)
    if isinstance(value, BoundMethod):
        value.bind(proxy)
    return value


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    return ask(self, "call", *args, kwargs=kwargs)


def _len(self: Any) -> int:
    return _checked(self, ask(self, "len"), int)  # type: ignore[no-any-return]


def _bool(self: Any) -> bool:
    return _checked(self, ask(self, "bool"), bool)  # type: ignore[no-any-return]


def _iter(self: Any) -> Iterator[Any]:
    return ask(self, "iter")  # type: ignore[no-any-return]


def _next(self: Any) -> Any:
    answer = ask(self, "next")
    with judged(self._isohub_lease.worker):
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise RemoteProtocolError("an answer to next() that is no pair")
    found, value = answer
    if not found:
        raise StopIteration
    return value


def _enter(self: Any) -> Any:
    return ask(self, "enter")


def _exit(self: Any, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
    return bool(ask(self, "exit", error))


def _eq(self: Any, other: object) -> Any:
    try:
        with nested():
            return bool(ask(self, "eq", other))
    except LocalProtocolError:
        return NotImplemented  # the other cannot be there; Python goes on to ask it, and then by identity


def _hash(self: Any) -> int:
    with nested():
        return _checked(self, ask(self, "hash"), int)  # type: ignore[no-any-return]


@contextmanager
def nested() -> Iterator[None]:
    """Mark a question that may have to be asked in order to make the value of an answer: a set needs hashes.

    Raises:
        RemoteProtocolError: Its answer led to another such question, and that one's to a next, too often.
    """
    depth = getattr(_nesting, "depth", 0)
    if depth >= MAX_NESTED:
        raise RemoteProtocolError(f"answers that need another answer to be made, {depth} deep")
    _nesting.depth = depth + 1
    try:
        yield
    finally:
        _nesting.depth = depth


@contextmanager
def judged(worker: Worker) -> Iterator[None]:
    """End a worker whose answer was said rightly and turns out to be none to what it was asked.

    What runs inside asks no other worker anything, for whose lies this one would be killed.
    """
    try:
        yield
    except RemoteProtocolError as fault:
        raise worker.refuse(fault) from fault


def names_in(worker: Worker, answer: object) -> list[str]:
    """Return the names that a worker answered, as they may be shown.

    Raises:
        RemoteProtocolError: They are no names; the worker was killed.
    """
    with judged(worker):
        if not isinstance(answer, list) or not all(isinstance(name, str) for name in answer):
            raise RemoteProtocolError("an answer that is no list of names")
    return [clean(name, 500) for name in answer]


def text_in(worker: Worker, answer: object) -> str | None:
    """Return the text that a worker answered, or None, as it may be shown.

    Raises:
        RemoteProtocolError: It is neither; the worker was killed.
    """
    with judged(worker):
        if not isinstance(answer, str | None):
            raise RemoteProtocolError(f"a {type(answer).__name__} where a text is due")
    return None if answer is None else clean(answer)


def _checked(proxy: Any, value: Any, kind: type) -> Any:
    with judged(proxy._isohub_lease.worker):
        if type(value) is not kind:
            raise RemoteProtocolError(f"a {type(value).__name__} where {kind.__name__} is due")
    return value


_METHODS: dict[str, dict[str, Any]] = {
    "call": {"__call__": _call},
    "len": {"__len__": _len},
    "iter": {"__iter__": _iter},
    "next": {"__next__": _next},
    "getitem": {"__getitem__": lambda self, key: ask(self, "getitem", key)},
    "setitem": {"__setitem__": lambda self, key, value: ask(self, "setitem", key, value)},
    "delitem": {"__delitem__": lambda self, key: ask(self, "delitem", key)},
    "contains": {"__contains__": lambda self, key: bool(ask(self, "contains", key))},
    "with": {"__enter__": _enter, "__exit__": _exit},
    "bool": {"__bool__": _bool},
    "eq": {"__eq__": _eq, "__hash__": _hash},
}
_classes: dict[tuple[type, frozenset[str]], type[Any]] = {}


def object_class(base: type[Any], protocols: list[str]) -> type[Any]:
    """Return `base` with the special methods that `protocols` (of `wire.values.PROTOCOLS`) stand for.

    Python looks special methods up on the type, and their mere presence means something: an object with
    `__len__` is false when empty, one with `__iter__` can be unpacked.
    """
    key = (base, frozenset(_METHODS.keys() & set(protocols)))
    if key not in _classes:
        members: dict[str, Any] = {"__slots__": ()} if base is RemoteObject else {}
        for protocol in key[1]:
            members.update(_METHODS[protocol])
        members["__module__"] = base.__module__
        _classes[key] = type(base.__name__, (base,), members)
    return _classes[key]
