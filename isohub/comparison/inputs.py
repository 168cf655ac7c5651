"""What the versions are called with: one input, or a stream of them that is never held as a whole."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from isohub.errors import ComparisonError
from isohub.shm.tensors import bytes_of

__all__ = ["Call", "Inputs", "random_input"]

_RANDOM = re.compile(r"\s*(\w+)\s*\[\s*(\d+(?:\s*,\s*\d+)*)?\s*\]\s*(?:<\s*(\d+))?\s*")
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
        torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool,
    )
}  # fmt: skip
_DEFAULT_BOUND = 10


@dataclass(frozen=True)
class Call:
    """The arguments of one call.

    Attributes:
        args: Positional ones.
        kwargs: Keyword ones.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many samples it has: the first dimension of its first tensor, or 1."""
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, torch.Tensor) and value.ndim:
                return value.shape[0]
        return 1


class Inputs:
    """The inputs of a comparison, read as a user wrote them.

    A tensor or an array is the one argument of one call, a tuple all positional arguments of one, a dict all keyword
    arguments of one. Anything else that can be iterated over (a list, a `DataLoader`, a generator) is a stream
    whose items are read in the same way, but for a list: that is what a `DataLoader` makes of a pair `(sample,
    label)`, and its first member alone goes to the model.

    Args:
        given: The inputs; None for none.
        description: What to say of them in a report; None to describe what was given.

    Raises:
        ComparisonError: They are none of these.
    """

    def __init__(self, given: Any, description: str | None = None) -> None:
        self.is_none = given is None
        self.is_stream = not (given is None or _is_single(given))
        if self.is_stream and (isinstance(given, str | bytes) or not isinstance(given, Iterable)):
            raise ComparisonError(
                f"inputs takes a tensor, a tuple or dict of arguments, or an iterable of these, not {given!r:.200}"
            )
        self._given = given
        self.description = description or _describe(given)

    def __iter__(self) -> Iterator[Call]:
        if self.is_none:
            return
        if not self.is_stream:
            yield _call_of(self._given)
            return
        for item in self._given:
            if isinstance(item, list):
                if not item:
                    raise ComparisonError("an input of the stream is an empty list: give a tensor, a tuple or a dict")
                yield _call_of(item[0])
            else:
                yield _call_of(item)

    @property
    def count(self) -> int | None:
        """How many calls there will be; None where nobody knows yet."""
        if not self.is_stream:
            return 0 if self.is_none else 1
        try:
            return len(self._given)
        except TypeError:
            return None

    def digest(self) -> str:
        """Return a hash of all inputs; a stream must be one that can be gone through again."""
        digest = hashlib.sha256()
        for call in self:
            _feed(digest, (call.args, dict(call.kwargs)))
        return digest.hexdigest()

    def kept(self) -> Inputs:
        """Return inputs that can be gone through any number of times: a stream becomes a list."""
        if not self.is_stream or isinstance(self._given, list | tuple):
            return self
        return Inputs([*self], self.description)


def random_input(text: str, seed: int = 0) -> torch.Tensor:
    """Return a tensor of random numbers as a text asks for it.

    Args:
        text: A dtype and a shape: `float32[8,3,224,224]`; floats are of the standard normal distribution, integers
            from 0 to 9, or below a bound: `int64[2,16]<30000`.
        seed: Equal seeds give equal numbers.

    Raises:
        ComparisonError: The text cannot be read.
    """
    match = _RANDOM.fullmatch(text)
    dtype = None if match is None else _DTYPES.get(match[1])
    if match is None or dtype is None:
        raise ComparisonError(
            f"{text!r} is no random input: write a dtype and a shape, such as float32[8,3,224,224] or "
            f"int64[2,16]<30000. Dtypes: {', '.join(_DTYPES)}"
        )
    shape = [int(size) for size in (match[2] or "").replace(" ", "").split(",") if size]
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    if dtype.is_floating_point or dtype.is_complex:
        real = torch.complex64 if dtype.is_complex else torch.float32
        return torch.randn(shape, generator=generator, dtype=real).to(dtype)
    bound = int(match[3] or _DEFAULT_BOUND)
    if not 0 < bound <= torch.iinfo(dtype).max + 1:
        raise ComparisonError(f"{text!r}: numbers below {bound} do not fit {match[1]}")
    return torch.randint(0, bound, shape, generator=generator).to(dtype)


def _is_single(given: Any) -> bool:
    return isinstance(given, torch.Tensor | tuple | Mapping | Call) or type(given).__module__ == "numpy"


def _call_of(item: Any) -> Call:
    if isinstance(item, Call):
        return item
    if isinstance(item, Mapping):
        return Call((), dict(item))
    return Call(item) if isinstance(item, tuple) else Call((item,))


def _describe(given: Any) -> str:
    if given is None:
        return "none"
    if _is_single(given):
        call = _call_of(given)
        parts = [_describe_value(value) for value in call.args]
        parts += [f"{name}={_describe_value(value)}" for name, value in call.kwargs.items()]
        return ", ".join(parts) or "no arguments"
    return f"a stream, {type(given).__name__}"


def _describe_value(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}".replace(" ", "")
    shown = repr(value)
    return shown if len(shown) <= 60 else type(value).__name__


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        digest.update(f"tensor {plain.dtype} {list(plain.shape)}".encode())
        digest.update(bytes_of(plain))
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)}".encode())
        for key, member in value.items():
            digest.update(repr(key).encode("utf-8", "replace"))
            _feed(digest, member)
    elif isinstance(value, list | tuple):
        digest.update(f"{type(value).__name__} {len(value)}".encode())
        for member in value:
            _feed(digest, member)
    elif type(value).__module__ == "numpy":
        _feed(digest, torch.as_tensor(value))
    else:
        digest.update(repr(value).encode("utf-8", "replace"))
