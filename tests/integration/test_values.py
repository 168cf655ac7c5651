"""What goes to a worker and comes back: every kind of value, and what cannot cross."""

from __future__ import annotations

import collections
import datetime
import math
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch

import isohub
from isohub.wire.specs import DTYPES
from tests.helpers.repos import make_repo, url
from tests.helpers.same import assert_same

REPO = """
    import collections
    import dataclasses
    import threading

    import torch


    class Echo(torch.nn.Module):
        def forward(self, *args, **kwargs):
            if kwargs:
                return args, kwargs
            return args[0] if len(args) == 1 else args

        def type_of(self, value):
            return type(value).__module__ + "." + type(value).__qualname__

        def repr_of(self, value):
            return repr(value)

        def are_views(self, one, other):
            return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()

        def are_one(self, one, other):
            return one is other


    def echo():
        return Echo()


    Point = collections.namedtuple("Point", "x y")


    @dataclasses.dataclass
    class Box:
        low: torch.Tensor
        label: str


    class ModelOutput(collections.OrderedDict):
        def __getattr__(self, name):
            try:
                return self[name]
            except KeyError:
                raise AttributeError(name) from None

        def __getitem__(self, key):
            return dict(self.items())[key] if isinstance(key, str) else tuple(self.values())[key]


    class Outputs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.base = torch.arange(24.0).reshape(4, 6)
            self.weight = torch.nn.Parameter(torch.ones(3))

        def point(self):
            return Point(torch.tensor(1.5), [2])

        def box(self):
            return Box(torch.zeros(2), "cat")

        def output(self):
            return ModelOutput(loss=None, logits=torch.arange(3.0))

        def maximum(self):
            return torch.tensor([[1.0, 3.0, 2.0]]).max(dim=1)

        def views(self):
            fresh = torch.arange(24.0).reshape(4, 6)
            return fresh[1:3], fresh[:, 2:], fresh.t()

        def twice(self):
            fresh = torch.arange(3.0)
            return fresh, {"again": fresh}

        def kept(self):
            return self.base

        def with_gradient(self):
            return self.weight * 2

        def lazy(self):
            z = torch.complex(torch.arange(3.0), torch.ones(3))
            return z.conj(), z.conj().imag

        def spread(self):
            return torch.arange(3.0).reshape(3, 1).expand(3, 4)

        def generator(self):
            return (i * i for i in range(4))

        def lock(self):
            return threading.Lock()


    def outputs():
        return Outputs()
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("values") / "owner" / "repo"
    return url(make_repo(folder, {"v1": {"hubconf.py": REPO}}), "v1")


@pytest.fixture
def echo(repo: str, forkserver: int) -> Any:
    return isohub.load(repo, "echo")


PLAIN: dict[str, Any] = {
    "none and bools": [None, True, False],
    "ints of 63, 64 and 65 bits and beyond": [
        0, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64, -(2**64), 10**400, -(7**2000),
    ],
    "floats": [0.0, -0.0, 1.0, 1e16, 1e22, 5e-324, 1.7976931348623157e308, 0.1, math.inf, -math.inf, math.nan],
    "complex": [1 + 2j, complex(-0.0, 0.0), complex(math.nan, -math.inf), complex(0.0, -0.0)],
    "strings": ["", "plain", "ü 日本 🙂", "\x00\x1f\x7f", 'quote " back \\ slash', "\udcff lone", "\ud83d"],
    "bytes": [b"", b"\x00\xff", bytes(range(256)) * 4, bytes(range(256)) * 5, b"x" * 3_000_000, bytearray(b"ab\x00")],
    "sets": [set(), {1, "a", None, (2, 3)}, frozenset({frozenset({1}), 2.5})],
    "ranges and slices": [range(3), range(10, 0, -3), range(2**70), slice(None), slice(1, None, -2), slice("a", 2.5)],
    "ellipsis": ...,
    "dates": [
        datetime.date(2024, 2, 29), datetime.time(23, 59, 59, 999999), datetime.timedelta(-1, 2, 3),
        datetime.datetime(1999, 12, 31, 23, 59, 59, 5),  # noqa: DTZ001 - a naive one crosses as such
        datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=5, minutes=30))),
        datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc),
    ],
    "paths": [Path("/srv/models"), Path("/"), Path("/with \udcff surrogate")],
    "nesting": {"a": [1, (2, {"b": [None, {3}]})], 4: {"c": ()}, (5, "d"): [], None: {}, 2.5: [[[[]]]], True: "yes"},
    "ordered dict": collections.OrderedDict([("z", 1), ("a", [2])]),
    "torch's": [
        torch.Size([2, 0, 3]), torch.Size([]), torch.float32, torch.bfloat16, torch.bool, torch.complex64,
        torch.device("cpu"), torch.device("cuda", 1), torch.strided, torch.channels_last,
    ],
    "deep": [[[[[[[[[[[[[[[[[[[[[[["down"]]]]]]]]]]]]]]]]]]]]]]],
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_plain_value_comes_back_equal(echo: Any, name: str):
    """Builtin values, and torch's small ones, come back of the same type and value."""
    assert_same(PLAIN[name], echo(PLAIN[name]))


def test_value_arrives_in_the_worker_as_itself(echo: Any):
    """What the repository's code gets is the value itself, not something that merely returns as it."""
    for values in PLAIN.values():
        value = values if not isinstance(values, list) else values[-1]
        kind = type(value)
        assert f"{kind.__module__}.{kind.__qualname__}" == echo.type_of(value)
        assert repr(value) == echo.repr_of(value)


def test_relative_path_becomes_absolute(echo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A relative path means the caller's folder, though the worker runs in another."""
    monkeypatch.chdir(tmp_path)

    assert_same(tmp_path / "weights.pt", echo(Path("weights.pt")))
    assert_same([tmp_path / "deep" / "file"], echo([PurePosixPath("deep/file")]))


def test_keywords_and_positions_arrive_as_given(echo: Any):
    """Positional and keyword arguments, tensors among them, arrive where they were put."""
    mask, x = torch.tensor([True, False]), torch.arange(4.0)

    assert_same(((x, 1), {"mask": mask, "self_": None, "name": "n"}), echo(x, 1, mask=mask, self_=None, name="n"))


_DTYPES = sorted(
    {dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype) and "torch.q" not in str(dtype)}, key=str
)


def test_tensor_of_every_dtype_comes_back_bit_for_bit(echo: Any):
    """A tensor of any dtype that torch has on the CPU keeps its dtype and all of its bits."""
    pattern = (torch.arange(64) * 37 % 251).to(torch.uint8)
    tensors = [(pattern % 2).bool() if dtype is torch.bool else pattern.view(dtype) for dtype in _DTYPES]

    assert {str(dtype).removeprefix("torch.") for dtype in _DTYPES} == {name for name in DTYPES if hasattr(torch, name)}
    assert_same(tensors, echo(tensors))


TENSORS: dict[str, Callable[[], Any]] = {
    "0-d": lambda: torch.tensor(2.5),
    "empty": lambda: [torch.empty(0), torch.empty(2, 0, 3, dtype=torch.int32), torch.empty(0, 5).t()],
    "transposed": lambda: torch.arange(6.0).reshape(2, 3).t(),
    "expanded": lambda: torch.arange(3.0).reshape(3, 1).expand(3, 4),
    "expanded from one number": lambda: torch.tensor(7.0).expand(2, 3),
    "strided": lambda: torch.arange(40.0)[3::7],
    "overlapping": lambda: torch.arange(10.0).as_strided((4, 3), (2, 1)),
    "channels last": lambda: torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "a view in the middle": lambda: torch.arange(100_000.0)[777:801],
    "unaligned view": lambda: torch.arange(64, dtype=torch.uint8)[3:],
    "nan and inf": lambda: torch.tensor([math.nan, math.inf, -0.0, 1e-45]),
    "meta": lambda: torch.empty_strided((2, 3), (1, 2), dtype=torch.float16, device="meta"),
    "large": lambda: torch.arange(6_000_000.0).reshape(2000, 3000),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensor_keeps_values_and_strides(echo: Any, name: str):
    """A tensor comes back with its shape, strides and values."""
    assert_same(TENSORS[name](), echo(TENSORS[name]()))


def test_conj_view_crosses_as_its_values(echo: Any, repo: str):
    """A lazily conjugated or negated view arrives as the values that it stands for, either way."""
    outputs = isohub.load(repo, "outputs")
    z = torch.complex(torch.arange(3.0), torch.ones(3))

    assert torch.equal(z.conj(), echo(z.conj()))
    assert torch.equal(z.conj().imag, echo(z.conj().imag))
    conj, negative = outputs.lazy()
    assert torch.equal(z.conj().resolve_conj(), conj)
    assert torch.equal(torch.full((3,), -1.0), negative)


def test_expanded_output_keeps_its_strides(repo: str, forkserver: int):
    """An expanded output stays expanded: it is not blown up on the way."""
    outputs = isohub.load(repo, "outputs")
    spread = outputs.spread()

    assert spread.stride() == (1, 0)
    assert torch.equal(torch.arange(3.0).reshape(3, 1).expand(3, 4), spread)


def test_argument_with_gradient_gives_the_same_values(echo: Any):
    """A tensor that requires gradients may be passed, with gradients on and off."""
    x = torch.arange(3.0, requires_grad=True)

    with torch.no_grad():
        assert torch.equal(x, echo(x))
    assert torch.equal(x.detach(), echo(x).detach())


def test_views_stay_views(echo: Any, repo: str):
    """Tensors that are views of one another are so on the other side, in both directions."""
    outputs = isohub.load(repo, "outputs")
    base = torch.arange(24.0).reshape(4, 6)
    rows, columns, transposed = outputs.views()

    assert torch.equal(base[1:3], rows)
    assert torch.equal(base[:, 2:], columns)
    assert torch.equal(base.t(), transposed)
    assert len({tensor.untyped_storage().data_ptr() for tensor in (rows, columns, transposed)}) == 1
    transposed.fill_(5)
    assert torch.equal(torch.full((2, 6), 5.0), rows)
    assert echo.are_views(base[0], base[:, 0])
    assert not echo.are_views(base, base.clone())


def test_one_tensor_is_one_object(echo: Any, repo: str):
    """A tensor object that occurs twice in a value is one object on the other side."""
    outputs = isohub.load(repo, "outputs")
    x = torch.arange(3.0)
    one, holder = outputs.twice()

    assert one is holder["again"]
    assert echo.are_one(x, x)
    assert not echo.are_one(x, x.clone())


def test_outputs_of_two_calls_are_apart(echo: Any):
    """A result that is still held is not overwritten by the next call."""
    first = echo(torch.zeros(1000))
    second = echo(torch.ones(1000))

    assert torch.equal(torch.zeros(1000), first)
    assert torch.equal(torch.ones(1000), second)


ARRAYS: dict[str, Callable[[], Any]] = {
    "float32": lambda: np.linspace(0, 1, 7, dtype=np.float32).reshape(7, 1),
    "int64": lambda: np.arange(-3, 3).reshape(2, 3),
    "bool": lambda: np.array([True, False]),
    "float16 and complex": lambda: [np.ones(2, np.float16), np.array([1 + 2j], np.complex64)],
    "datetime64": lambda: np.array(["2024-02-29T01:02:03", "NaT"], "datetime64[s]"),
    "timedelta64": lambda: np.array([1, -1], "timedelta64[ms]"),
    "fixed strings": lambda: [np.array(["a", "日本", ""]), np.array([b"x\x00y", b""])],
    "0-d": lambda: np.array(2.5),
    "empty": lambda: [np.empty((0, 3), np.float32), np.empty((2, 0), "datetime64[D]"), np.empty(0, "U3")],
    "other byte order": lambda: np.arange(3, dtype=">i4"),
    "read-only": lambda: np.broadcast_to(np.float32(1.5), (2, 2)),
    "scalars": lambda: [
        np.float32(0.1), np.float64(0.1), np.int8(-3), np.uint64(2**64 - 1), np.bool_(True), np.complex64(1j),
        np.datetime64("2024-02-29"), np.str_("text"), np.bytes_(b"raw"),
    ],
    "dtypes": lambda: [np.dtype("float32"), np.dtype("datetime64[s]"), np.dtype("U5")],
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_array_comes_back_equal(echo: Any, name: str):
    """NumPy arrays, scalars and dtypes come back of the same type, shape and bits."""
    assert_same(ARRAYS[name](), echo(ARRAYS[name]()))


def test_non_contiguous_array_keeps_its_values(echo: Any):
    """Arrays that run backwards, skip or are transposed keep their values."""
    base = np.arange(24).reshape(4, 6)

    for view in (base[::-1], base[:, ::2], base.T, base[1:3, ::-3]):
        back = echo(view)
        assert np.array_equal(view, back)
        assert back.flags.writeable


def test_named_tuple_output_behaves_as_one(repo: str, forkserver: int):
    """A named tuple arrives by value: by position, by name, unpacked, and as a tuple."""
    outputs = isohub.load(repo, "outputs")
    point = outputs.point()
    x, y = point

    assert isinstance(point, tuple)
    assert point._fields == ("x", "y")
    assert torch.equal(torch.tensor(1.5), point.x)
    assert x is point[0]
    assert [2] == y == point.y
    assert {"x": x, "y": [2]} == point._asdict()


def test_torch_return_type_behaves_as_one(repo: str, forkserver: int):
    """What `max(dim=...)` returns arrives with `values` and `indices`."""
    outputs = isohub.load(repo, "outputs")
    found = outputs.maximum()

    assert torch.equal(torch.tensor([3.0]), found.values)
    assert torch.equal(torch.tensor([1]), found[1])
    assert found[1] is found.indices


def test_dataclass_output_has_its_fields(repo: str, forkserver: int):
    """A dataclass arrives by value, with its fields as attributes."""
    outputs = isohub.load(repo, "outputs")
    box = outputs.box()

    assert torch.equal(torch.zeros(2), box.low)
    assert box.label == "cat"


def test_mapping_output_has_keys_attributes_and_positions(repo: str, forkserver: int):
    """A mapping-like output arrives by value, and is read by key, attribute and position."""
    outputs = isohub.load(repo, "outputs")
    output = outputs.output()

    assert torch.equal(torch.arange(3.0), output["logits"])
    assert output["logits"] is output.logits is output[1]
    assert list(output) == ["loss", "logits"]
    assert isinstance(output, dict)


def test_record_can_be_passed_back(echo: Any, repo: str):
    """What came as a record can be an argument again."""
    outputs = isohub.load(repo, "outputs")
    assert "x" not in echo(outputs.point())  # a tuple of values
    assert torch.equal(torch.tensor(1.5), echo(outputs.point())[0])
    assert torch.equal(torch.arange(3.0), echo(outputs.output())["logits"])


def test_output_that_the_worker_keeps_is_its_own_memory(repo: str, forkserver: int):
    """An output is a value: that the worker holds on to its tensor gives the caller no view of it."""
    outputs = isohub.load(repo, "outputs")
    kept = outputs.kept()
    kept.fill_(-1)

    assert torch.equal(torch.arange(24.0).reshape(4, 6), outputs.kept())


def test_result_that_cannot_cross_stays_as_an_object(repo: str, forkserver: int):
    """What the worker cannot say by value comes as a handle: a lock can be taken, a generator be read."""
    outputs = isohub.load(repo, "outputs")
    with outputs.lock() as taken:
        assert taken
    assert list(outputs.generator()) == [0, 1, 4, 9]
