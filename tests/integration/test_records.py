"""Values of a repository's own classes that cross as records, and what they are when they come back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import isohub
from tests.helpers.repos import make_repo, url

REPO = """
    import collections
    import dataclasses
    import typing

    import torch

    Stats = collections.namedtuple("Stats", "count index mean")
    T = typing.TypeVar("T")


    class Pair(typing.NamedTuple):
        left: torch.Tensor
        right: "Pair | None" = None


    @dataclasses.dataclass
    class Config:
        dim: int = 3
        type_name: str = "mine"

        def __post_init__(self):
            self.half = self.dim / 2


    @dataclasses.dataclass(frozen=True)
    class Frozen:
        dim: int


    @dataclasses.dataclass
    class Slotted:
        __slots__ = ("dim",)
        dim: int


    @dataclasses.dataclass
    class Typed(typing.Generic[T]):
        dim: T


    class Bunch(dict):
        __getattr__ = dict.__getitem__


    class AttrDict(dict):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.__dict__ = self


    @dataclasses.dataclass
    class Output(collections.OrderedDict):
        loss: torch.Tensor = None
        logits: torch.Tensor = None

        def __post_init__(self):
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                if value is not None:
                    self[field.name] = value


    class FromFile(dict):
        def __init__(self, path, mode):
            super().__init__(path=path, mode=mode)


    MADE = {
        "namedtuple": lambda: Stats(3, 4, 1.5),
        "nested": lambda: Pair(torch.ones(2), Pair(torch.zeros(2))),
        "dataclass": lambda: Config(5),
        "frozen": lambda: Frozen(3),
        "slots": lambda: Slotted(3),
        "generic": lambda: Typed[int](3),
        "mapping": lambda: Bunch(dim=3),
        "attributes": lambda: AttrDict(dim=3, keys_of=4),
        "output": lambda: Output(logits=torch.ones(2)),
        "counter": lambda: collections.Counter("abba"),
        "torch": lambda: torch.tensor([[1.0, 3.0]]).max(dim=1),
        "file": lambda: FromFile("a", "r"),
    }


    def make(name):
        return MADE[name]()


    def is_same(value, name):
        expected = MADE[name]()
        return type(value) is type(expected) and repr(value) == repr(expected)


    def attribute(value, name):
        return getattr(value, name)


    def net(config):
        return torch.nn.Linear(config.dim, 1)


    def type_of(value):
        return type(value).__name__


    def renamed(names):
        return collections.namedtuple("Stats", names)(*range(len(names.split())))
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("records") / "owner" / "repo"
    return url(make_repo(folder, {"v1": {"hubconf.py": REPO}}), "v1")


def test_fields_come_before_names_of_ours(repo: str, forkserver: int):
    """A field may be called as a method of tuples or as something of isohub's, and is read by its name."""
    stats, config = isohub.load(repo, "make", "namedtuple"), isohub.load(repo, "make", "dataclass")

    assert (3, 4, 1.5) == (stats.count, stats.index, stats.mean) == stats
    assert (config.dim, config.type_name, config.half) == (5, "mine", 2.5)
    assert repr(stats) == "Stats(count=3, index=4, mean=1.5)"
    assert repr(config) == "Config(dim=5, type_name='mine', half=2.5)"
    assert stats._replace(count=7).count == 7
    with pytest.raises(AttributeError, match="total"):
        _ = stats.total


@pytest.mark.parametrize(
    "name",
    ["namedtuple", "nested", "dataclass", "frozen", "slots", "generic", "mapping", "attributes", "output", "counter",
     "torch"],
)  # fmt: skip
def test_record_handed_back_is_what_it_was(repo: str, forkserver: int, name: str):
    """A record that goes back to its worker is one of its class again, with the same members."""
    record = isohub.load(repo, "make", name)

    assert isohub.load(repo, "is_same", record, name)
    assert isohub.load(repo, "is_same", copy.copy(record), name)


def test_record_handed_back_has_its_attributes(repo: str, forkserver: int):
    """What is no field is there again as well: what `__post_init__` set, defaults of fields that are not keys."""
    config, output = isohub.load(repo, "make", "dataclass"), isohub.load(repo, "make", "output")

    assert isohub.load(repo, "attribute", config, "half") == 2.5
    assert torch.equal(torch.ones(2), isohub.load(repo, "attribute", output, "logits"))
    assert isohub.load(repo, "attribute", output, "loss") is None
    assert isohub.load(repo, "attribute", isohub.load(repo, "make", "attributes"), "keys_of") == 4


def test_config_goes_into_another_entrypoint(repo: str, forkserver: int):
    """A config that one entrypoint returned builds the model of another, with what was changed in it."""
    config, mapping = isohub.load(repo, "make", "dataclass"), isohub.load(repo, "make", "mapping")
    config.dim, mapping["dim"] = 7, 8

    assert isohub.load(repo, "net", config).weight.shape == (1, 7)
    assert isohub.load(repo, "net", mapping).weight.shape == (1, 8)


def test_mapping_whose_class_takes_something_else_comes_back_as_a_dict(repo: str, forkserver: int):
    """A mapping that cannot be made of its items alone goes back as a plain dict of them."""
    record = isohub.load(repo, "make", "file")

    assert record == {"path": "a", "mode": "r"}
    assert isohub.load(repo, "type_of", record) == "dict"


def test_named_tuples_of_one_name_are_not_mixed_up(repo: str, forkserver: int):
    """A named tuple whose class was made anew with other fields goes back as a plain tuple."""
    old = isohub.load(repo, "renamed", "a b c")
    new = isohub.load(repo, "renamed", "x y")

    assert isohub.load(repo, "type_of", new) == "Stats"
    assert isohub.load(repo, "type_of", old) == "tuple"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@pytest.mark.parametrize("name", ["namedtuple", "dataclass", "mapping"])
def test_record_can_be_copied(repo: str, forkserver: int, name: str, duplicate: Callable[[Any], Any]):
    """A record is plain data here: it is copied and pickled with all that it has."""
    record = isohub.load(repo, "make", name)
    duplicated = duplicate(record)

    assert (type(record), repr(record)) == (type(duplicated), repr(duplicated))
    assert record == duplicated
