"""A worker that describes module trees, records and references that no honest one would."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import isohub
from isohub.errors import RemoteProtocolError
from isohub.model.objects import Lease
from isohub.model.records import make_record
from isohub.model.tree import Tree
from isohub.shm.tensors import TensorReader
from isohub.wire.specs import META, ModuleNode, TensorSpec
from isohub.wire.values import Record

_numbers = itertools.count(1)

# It takes the channel over, and answers every request by a value that names a handle never heard of.
REPO = """
    import gc
    import itertools

    from isohub.wire import codec
    from isohub.wire.messages import Payload, Returned
    from isohub.wire.values import Items, Ref


    def answer_all(make):
        channel = next(found for found in gc.get_objects() if type(found).__name__ == "Channel")
        for handle in itertools.count(1000):
            channel.send(codec.encode(Returned(payload=Payload(make(handle)))))
            channel.receive()


    def hashes():
        answer_all(lambda handle: Items("set", [Ref("object", handle, "", "", "x", ["eq"])]))


    def keys():
        answer_all(lambda handle: Items("frozenset", [Ref("object", handle, "", "", "x", ["eq"])]))


    def modules():
        answer_all(lambda handle: Ref("module", handle, "a"))
"""


@pytest.mark.parametrize("entry", ["hashes", "keys", "modules"])
def test_questions_that_answers_lead_to_are_bounded(repo_of: Callable[..., str], entry: str):
    """An answer that needs another answer to be made, and so on for ever, ends the worker after a few."""
    repo = repo_of(REPO)

    with pytest.raises(RemoteProtocolError, match="8 deep"):
        isohub.load(repo, entry)
    assert "broken" in {worker.state for worker in isohub.workers()} or not isohub.workers()


@pytest.mark.parametrize(
    ("nodes", "what"),
    [
        ([("a", 1), ("a", 2)], "one name"),
        ([("", 1)], "named ''"),
        ([("a.b", 1)], "named 'a.b'"),
        ([("a", 0)], "contains itself"),
        ([("a", 7)], "node 7"),
        ([("a", -2)], "node -2"),
        ([], "nothing leads to"),
    ],
)
def test_nodes_that_are_no_tree_are_refused(nodes: list[tuple[str, int]], what: str):
    """Two parts of one name, names that are no path, cycles and nodes out of nowhere are refused."""
    with pytest.raises(RemoteProtocolError, match=what):
        _tree().update([_node(nodes), _node(), _node()], _tensors(), {})


def test_names_are_unique_among_tensors_too():
    """Two parameters or two buffers of one name in one module are refused."""
    for twice in (_node(parameters=[("w", 0), ("w", 0)]), _node(buffers=[("w", 0, True), ("w", 0, False)])):
        with pytest.raises(RemoteProtocolError, match="one name"):
            _tree().update([twice], _tensors(1), {})


def test_paths_that_double_with_each_level_are_refused():
    """Modules that each name the next one twice would make a state dict without end."""
    nodes = [_node([("a", index + 1), ("b", index + 1)]) for index in range(150)]

    with pytest.raises(RemoteProtocolError, match="places"):
        _tree().update([*nodes, _node()], _tensors(), {})


def test_depth_counts_along_the_longest_path():
    """A chain is as deep as its longest way from the root, also where a short way was described first."""
    chain = [_node([("next", index + 1)]) for index in range(150)]
    # The root names the end of a second chain last, and that one goes on with the first.
    second = [_node([("next", 152 + index)]) for index in range(1, 150)]
    nodes = [_node([("first", 1), ("second", 152)]), *[_shift(node) for node in chain], _node(), *second]
    nodes.append(_node([("next", 1)]))

    with pytest.raises(RemoteProtocolError, match="deep"):
        _tree().update(nodes, _tensors(), {})


def test_module_in_two_places_is_one():
    """A module that is honestly in two places is one object here, as it is there."""
    root = _tree().update([_node([("a", 1), ("b", 1)]), _node(parameters=[("w", 0)])], _tensors(1), {})

    assert root._modules["a"] is root._modules["b"]
    assert list(root.state_dict()) == ["a.w", "b.w"]


@pytest.mark.parametrize("bad", [[("a", 1), ("a", 2)], [("a", 1), ("b", 9)]])
def test_refused_update_leaves_the_mirror_as_it_was(bad: list[tuple[str, int]]):
    """What a refused update was to change has all its modules, weights and modes as before."""
    tree = _tree()
    nodes = [_node([("a", 1), ("b", 2)], parameters=[("w", 0)]), _node(parameters=[("w", 1)]), _node()]
    root = tree.update(nodes, _tensors(2), {})
    before = dict(root.named_modules()), dict(root.named_parameters()), root.w.shape
    changed = [_node(bad, parameters=[("w", 1)], training=False), _node(training=False), _node()]

    with pytest.raises(RemoteProtocolError):
        tree.update(changed, _tensors(2, size=5), {})

    after = dict(root.named_modules()), dict(root.named_parameters()), root.w.shape
    assert before == after
    assert all(module.training for module in root.modules())


@pytest.mark.parametrize("kind", ["namedtuple", "dataclass"])
def test_record_with_a_special_method_is_refused(kind: str):
    """A field named as what Python itself calls, to copy or to pickle, is refused."""
    with pytest.raises(RemoteProtocolError, match="__reduce_ex__"):
        make_record(Record(kind, "x.Y", ["__reduce_ex__"], []), [1])  # type: ignore[arg-type]


def test_special_keys_of_a_mapping_are_no_attributes():
    """A key of a mapping that is named as what Python calls is a key, and nothing that is called."""
    mapping = make_record(Record("mapping", "x.Y", ["__deepcopy__", "keyed"], []), [1, 2])

    assert not hasattr(mapping, "__deepcopy__")
    assert mapping == {"__deepcopy__": 1, "keyed": 2}


def _tree() -> Tree:
    trees: Any = weakref.WeakValueDictionary()
    return Tree(Lease(None, 1, lambda *_: None), None, weakref.WeakValueDictionary(), trees)  # type: ignore[arg-type]  # neither is asked anything


def _tensors(count: int = 0, size: int = 2) -> TensorReader:
    specs = [TensorSpec(META, "float32", [size + index], [1], 0) for index in range(count)]
    return TensorReader([], specs, lambda _: None, lambda *_: None)


def _node(
    children: list[tuple[str, int]] | None = None,
    parameters: list[tuple[str, int]] | None = None,
    buffers: list[tuple[str, int, bool]] | None = None,
    *,
    training: bool = True,
) -> ModuleNode:
    return ModuleNode(next(_numbers), "x.Y", training, "", False, parameters or [], buffers or [], children or [], [])


def _shift(node: ModuleNode) -> ModuleNode:
    return _node([(name, index + 1) for name, index in node.children])
