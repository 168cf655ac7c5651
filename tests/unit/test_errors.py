from __future__ import annotations

import builtins
import copy
import inspect
import re

import pytest

import isohub
from isohub import errors

CLASSES = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}


def drawn() -> dict[str, tuple[str, ...]]:
    """Return the tree in the module's docstring: each class with its bases, the drawn one and those in brackets."""
    tree: dict[str, tuple[str, ...]] = {}
    above: list[str] = ["Exception"]
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│ ]*)[├└]── (\w+)\s+(?:\(([\w, ]+)\))?", line)
        if found:
            depth = len(found[1]) // 4 + 1
            brackets = tuple(found[3].split(", ")) if found[3] and all(map(is_builtin, found[3].split(", "))) else ()
            tree[found[2]] = (above[depth - 1], *brackets)
            above[depth:] = [found[2]]
    return tree


def is_builtin(name: str) -> bool:
    return inspect.isclass(getattr(builtins, name, None))


def test_docstring_draws_the_classes():
    """The tree that users read is the tree that there is: every class, under its base, with its builtin bases."""
    assert {name: tuple(base.__name__ for base in kind.__bases__) for name, kind in CLASSES.items()} == drawn()


def test_every_class_is_exported():
    """Each class is in `__all__`, and can be reached as `isohub.errors.<name>`."""
    assert sorted(CLASSES) == sorted(errors.__all__)
    assert all(getattr(isohub.errors, name) is kind for name, kind in CLASSES.items())


@pytest.mark.parametrize("name", CLASSES)
def test_error_is_made_of_its_message(name: str):
    """Every error can be made of a message alone, copied, and caught as an IsohubError."""
    error = CLASSES[name]("what happened")
    vars(error)["worker"] = "w"
    copied = copy.copy(error)

    assert isinstance(error, errors.IsohubError)
    assert str(error) == "what happened"
    assert (type(error), error.args, vars(error)) == (type(copied), copied.args, vars(copied))


@pytest.mark.parametrize("name", CLASSES)
def test_documented_attributes_are_there(name: str):
    """Each attribute that a docstring names is there, whoever made the error."""
    error = CLASSES[name]("x")
    attributes = (inspect.getdoc(CLASSES[name]) or "").partition("Attributes:\n")[2]

    for attribute in re.findall(r"^    (\w+): ", attributes, re.MULTILINE):
        assert hasattr(error, attribute), attribute


def test_every_class_says_what_it_is():
    """Each class has a docstring of its own."""
    assert [name for name, kind in CLASSES.items() if not kind.__dict__.get("__doc__")] == []
