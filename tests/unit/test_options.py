from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from typing import Any

import pytest

from isohub.options import DEFAULT_START_TIMEOUT_S, Isolation


def test_defaults_change_nothing():
    """Without settings a worker has no set-up, no variables, this process's threads and no deadline."""
    isolation = Isolation()

    assert {field.name: getattr(isolation, field.name) for field in dataclasses.fields(isolation)} == {
        "setup": None,
        "env": {},
        "threads": None,
        "timeout_s": None,
        "start_timeout_s": DEFAULT_START_TIMEOUT_S,
        "dedicated": False,
        "results": "shared",
        "memory_bytes": None,
        "open_files": None,
        "restart": "never",
        "share_equal_weights": True,
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"setup": print},
        {"env": {"A": "1", "B": None, "C": ""}},
        {"threads": 1},
        {"timeout_s": 1},
        {"timeout_s": 1e-9},
        {"start_timeout_s": 0.5},
        {"dedicated": True},
        {"results": "frozen"},
        {"memory_bytes": 64 << 20},
        {"open_files": 32},
        {"restart": "on-crash"},
        {"restart": "never"},
    ],
    ids=str,
)
def test_good_setting_is_kept(settings: dict[str, Any]):
    """What can be set is what one reads back."""
    isolation = Isolation(**settings)

    assert settings == {name: getattr(isolation, name) for name in settings}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"setup": "import x"}, r"setup=\.\.\.\) takes a function without arguments, not 'import x'"),
        ({"env": [("A", "1")]}, r"env=\.\.\.\) takes a mapping"),
        ({"env": {"A": 1}}, r"maps texts to texts .* not 'A': 1"),
        ({"env": {1: "A"}}, r"maps texts to texts .* not 1: 'A'"),
        ({"threads": 2.0}, r"threads=\.\.\.\) takes an int or None, not 2\.0"),
        ({"threads": True}, r"threads=\.\.\.\) takes an int or None, not True"),
        ({"timeout_s": "3"}, r"timeout_s=\.\.\.\) takes a number of seconds, not '3'"),
        ({"timeout_s": True}, r"timeout_s=\.\.\.\) takes a number of seconds, not True"),
        ({"start_timeout_s": None}, r"start_timeout_s=\.\.\.\) takes a number of seconds, not None"),
        ({"memory_bytes": 1e9}, r"memory_bytes=\.\.\.\) takes an int or None, not 1000000000\.0"),
        ({"open_files": True}, r"open_files=\.\.\.\) takes an int or None, not True"),
        ({"dedicated": 1}, r"dedicated=\.\.\.\) takes True or False, not 1"),
    ],
    ids=str,
)
def test_wrong_type_is_refused_when_made(settings: dict[str, Any], message: str):
    """A value of the wrong type is refused before any worker starts, by a text that shows it."""
    with pytest.raises(TypeError, match=message):
        Isolation(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"env": {"": "1"}},
        {"restart": "always"},
        {"restart": True},
        {"env": {"A=B": "1"}},
        {"env": {"A\0": "1"}},
        {"env": {"A": "1\0"}},
        {"threads": 0},
        {"threads": -1},
        {"timeout_s": 0},
        {"timeout_s": -0.1},
        {"timeout_s": math.inf},
        {"timeout_s": math.nan},
        {"start_timeout_s": 0},
        {"results": "copied"},
        {"results": True},
        {"memory_bytes": (64 << 20) - 1},
        {"memory_bytes": 1 << 62},
        {"open_files": 31},
    ],
    ids=str,
)
def test_value_out_of_range_is_refused_when_made(settings: dict[str, Any]):
    """A number out of range, or a variable that cannot be one, is refused before any worker starts."""
    (name,) = settings
    with pytest.raises(ValueError, match=name):
        Isolation(**settings)


def test_settings_do_not_change_afterwards():
    """Neither a field nor the mapping that was given can change a worker's settings later."""
    given: dict[str, str | None] = {"A": "1"}
    isolation = Isolation(env=given)
    given["A"] = "2"

    assert isolation.env == {"A": "1"}
    with pytest.raises(TypeError):
        isolation.env["A"] = "3"  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        isolation.threads = 2  # type: ignore[misc]


def test_equal_settings_are_equal():
    """Two objects with the same settings are the same settings."""
    assert Isolation(env={"A": "1"}, threads=2) == Isolation(env={"A": "1"}, threads=2)
    assert Isolation(env={"A": "1"}) != Isolation(env={"A": "2"})


def test_isolation_can_be_copied_and_pickled():
    """Settings travel with whoever holds them, to another process for example."""
    isolation = Isolation(env={"A": "b"}, threads=2)

    assert isolation == copy.deepcopy(isolation)
    assert isolation == pickle.loads(pickle.dumps(isolation))
