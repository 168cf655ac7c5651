"""A worker that answers in other kinds than it was asked for, and in words that are to be shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import isohub
from isohub.errors import BrokenWorkerError, RemoteError, RemoteProtocolError

# Well-formed answers, of the wrong kind.
WRONG_KINDS = """
    import torch

    from isohub.wire.messages import Returned
    from isohub.worker.execute import Executor, _OPERATIONS


    class Thing:
        def __len__(self): return 1
        def __iter__(self): return self
        def __next__(self): return 1
        def __bool__(self): return True
        def __hash__(self): return 1
        def __eq__(self, other): return True


    class Saving(torch.nn.Linear):
        def state_dict(self, *args, **kwargs):
            return super().state_dict(*args, **kwargs)
        def load_state_dict(self, *args, **kwargs):
            return super().load_state_dict(*args, **kwargs)


    def answers(verb, answer):
        setattr(Executor, "_" + verb, lambda self, request: self._border.pack(answer))


    def thing():
        for verb in ("len", "next", "bool", "hash", "dir"):
            answers(verb, {"of": "another kind"})
        return Thing()


    def net():
        for verb in ("train", "dir"):
            answers(verb, ["", 1])
        answers("state", 3)
        return Saving(2, 2)


    answers("list", {"a": 1})
    answers("help", 3)
"""

WRONG: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "len": ("thing", len, "a dict where int is due"),
    "bool": ("thing", bool, "a dict where bool is due"),
    "hash": ("thing", hash, "a dict where int is due"),
    "next": ("thing", next, "no pair"),
    "dir of an object": ("thing", dir, "no list of names"),
    "dir of a module": ("net", dir, "no list of names"),
    "modes": ("net", lambda model: model.eval(), "modes of a module tree"),
    "state dict": ("net", lambda model: model.state_dict(), "a state dict that is none"),
    "loading": ("net", lambda model: model.load_state_dict({}), "no pair"),
}

ESCAPE = "\x1b]0;owned\x07\u202e"
# Words with what drives a terminal, wherever one can be.
WORDS = """
    import collections
    import dataclasses
    import sys

    import torch

    ESCAPE = "\\x1b]0;owned\\x07\\u202e"


    class Thing:
        def method(self):
            return 1

    Thing.__qualname__ = "Thing" + ESCAPE


    class Part(torch.nn.Module):
        def extra_repr(self):
            return "part" + ESCAPE

    Part.__qualname__ = "Part" + ESCAPE


    def net():
        model = torch.nn.Sequential()
        model.add_module("name" + ESCAPE, Part())
        return model


    def thing():
        return Thing()


    def record():
        kind = collections.namedtuple("Output", ["field"])
        kind.__qualname__ = "Output" + ESCAPE
        return kind(1)


    def data():
        return dataclasses.make_dataclass("Output" + ESCAPE, ["field"])(1)


    def error():
        kind = type("Error" + ESCAPE, (ValueError,), {"__qualname__": "Error" + ESCAPE})
        raise kind("message" + ESCAPE)


    def crash():
        sys.stderr.write("last words" + ESCAPE + "\\n")
        sys.stderr.flush()
        import os
        os._exit(3)


    def helped():
        '''Help%s.'''

    helped.__doc__ %= ESCAPE
    globals()["named" + ESCAPE] = helped
"""

# What it says of the end of workers and of types to build; none of it is so.
CLAIMS = """
    from isohub import errors
    from isohub.wire.messages import Cause, Raised
    from isohub.worker import serve


    def claim(**fields):
        told = {"type_name": "x.Y", "builtin": "ValueError", "exact": False, "message": "no", **fields}
        serve._raised = lambda error, modes: Raised(error=Cause(**told), traceback="", refusal=1)
        raise ValueError
"""


@pytest.mark.parametrize("name", WRONG)
def test_answer_of_another_kind_ends_its_worker(repo_of: Callable[..., str], name: str):
    """An answer that is well said and is none to the question is refused, and its worker killed."""
    entry, use, text = WRONG[name]
    proxy: Any = isohub.load(repo_of(WRONG_KINDS), entry)
    worker = proxy._isohub_lease.worker

    with pytest.raises(RemoteProtocolError, match=text):
        use(proxy)

    assert worker.state == "broken"


@pytest.mark.parametrize(("ask", "text"), [("list", "no list of names"), ("help", "where a text is due")])
def test_names_and_texts_of_another_kind_end_their_worker(repo_of: Callable[..., str], ask: str, text: str):
    """What is to be a list of names, or a text, is one."""
    with isohub.Repo(repo_of(WRONG_KINDS)) as repo:
        repo.load("net")  # from now on its answers are of other kinds
        (worker,) = isohub.workers()

        with pytest.raises(RemoteProtocolError, match=text):
            repo.list() if ask == "list" else repo.help("net")

        assert worker.state == "broken"


@pytest.mark.parametrize("entry", ["net", "thing", "record", "data"])
def test_repr_drives_no_terminal(repo_of: Callable[..., str], entry: str):
    """Names of classes, fields and parts are shown without control characters."""
    shown = repr(isohub.load(repo_of(WORDS), entry))

    assert not set(ESCAPE) & set(shown) - set("]0;owned")
    assert "?]0;owned??" in shown


@pytest.mark.parametrize("entry", ["error", "crash"])
def test_error_drives_no_terminal(repo_of: Callable[..., str], entry: str):
    """Nor does the text of an error, its type, its traceback, or the last lines of a dead worker's stderr."""
    with pytest.raises((ValueError, BrokenWorkerError)) as caught:
        isohub.load(repo_of(WORDS), entry)

    error = caught.value
    texts = [str(error), getattr(error, "type_name", ""), getattr(error, "remote_traceback", "")]
    texts += [*getattr(error, "stderr_tail", ()), str(error.__cause__)]
    assert not any(set("\x1b\x07\u202e") & set(text) for text in texts)
    assert "?]0;owned??" in texts[0]


def test_names_and_help_drive_no_terminal(repo_of: Callable[..., str]):
    """Nor do the names of entrypoints, and what they say of themselves."""
    repo = repo_of(WORDS)

    assert "named?]0;owned??" in isohub.list(repo)
    assert isohub.help(repo, "helped") == "Help?]0;owned??."


@pytest.mark.parametrize(
    "claim",
    [
        {"ours": "BrokenWorkerError"},
        {"ours": "WorkerClosedError"},
        {"ours": "RemoteProtocolError"},
        {"ours": "__builtins__"},
        {"builtin": "os.system", "exact": True},
        {"builtin": "KeyboardInterrupt", "exact": True},
        {"builtin": "SystemExit", "exact": True},
        {"builtin": "__import__", "exact": True, "args": ["os"]},
        {"thrown": 1},
        {"type_name": "torch.nn.Module"},
    ],
    ids=str,
)
def test_claim_about_what_was_raised_is_only_shown(repo_of: Callable[..., str], claim: dict[str, Any]):
    """Whatever a worker says that an error is, it is a RemoteError of a builtin kind here, and the worker lives."""
    with isohub.Repo(repo_of(CLAIMS)) as repo:
        with pytest.raises(RemoteError, match="no"):
            repo.load("claim", **claim)
        (worker,) = isohub.workers()

        assert worker.state == "idle"


def test_classes_are_not_looked_up_by_a_workers_word(repo_of: Callable[..., str]):
    """A class that says to be another, importable one is no more than its name here."""
    code = """
        import torch

        class System(torch.nn.Module):
            pass

        System.__module__, System.__qualname__ = "os", "system"

        def net():
            return System()
    """
    model = isohub.load(repo_of(code), "net")

    assert model.__class__.__name__ == "system"
    assert issubclass(model.__class__, torch.nn.Module)
    assert model.__class__.__module__.startswith("isohub.")
