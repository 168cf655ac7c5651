"""How far two tensors are apart, gathered over a stream of them in constant memory.

Values are compared as float64, a piece at a time. Two NaN, or two equal infinities, in one place are alike;
where only one side has one the difference is infinite, so that no limit lets it pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from isohub.comparison.classes import Classes, ClassNumbers

__all__ = ["Difference", "Numbers", "Tolerance"]

_PIECE = 1 << 20
_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
# Points for the plot of one against the other.
_MOST_POINTS = 800


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far apart values may be and still count as the same: `|a - b| <= atol + rtol * |a|`.

    Attributes:
        rtol: Share of the baseline's value.
        atol: Absolute.
    """

    rtol: float = 0.0
    atol: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not (0 <= value < math.inf):
                raise ValueError(f"{name} must be a finite number of at least 0, not {value!r}")


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """How one part of the outputs differs between two versions, over all inputs.

    Attributes:
        path: Where it is in the output; empty for a bare tensor.
        dtypes: Of the baseline and the other.
        shapes: Of the first call.
        elements: How many values were compared.
        different: How many of them differ at all.
        beyond: How many differ by more than the tolerance.
        max_abs: Greatest absolute difference.
        mean_abs: Mean absolute difference.
        max_rel: Greatest relative one, `|a - b| / max(|a|, |b|)`.
        mean_rel: Mean relative one.
        max_ulp: Greatest distance in units in the last place; None where the dtypes are no equal floats.
        norms: Euclidean norms of all finite values of each.
        norm_of_difference: The same of their differences.
        cosine: Cosine of the angle between all values of one and all of the other.
        first_difference: Index of the first that differs, its first dimension counted over all calls.
        nan: How many NaN each has.
        inf: How many infinite values each has.
        shape_changes: In how many calls the shapes differed, so that no value could be compared.
        classes: What it says as a classification; None where the shape is no `(samples, classes)`.
        points: Pairs of values for a plot.
    """

    path: str
    dtypes: tuple[str, str]
    shapes: tuple[list[int], list[int]]
    elements: int
    different: int
    beyond: int
    max_abs: float
    mean_abs: float
    max_rel: float
    mean_rel: float
    max_ulp: int | None
    norms: tuple[float, float]
    norm_of_difference: float
    cosine: float
    first_difference: list[int] | None
    nan: tuple[int, int]
    inf: tuple[int, int]
    shape_changes: int
    classes: ClassNumbers | None
    points: list[tuple[float, float]] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs, not even the dtype."""
        return not (self.different or self.shape_changes) and self.dtypes[0] == self.dtypes[1]

    @property
    def is_within(self) -> bool:
        """Whether all values agree within the tolerance."""
        return not (self.beyond or self.shape_changes)


class Difference:
    """Gathers what `Numbers` tells, from one pair of tensors after the other.

    Args:
        path: Where they are in the output.
        tolerance: What counts as the same.
    """

    def __init__(self, path: str, tolerance: Tolerance) -> None:
        self._path = path
        self._tolerance = tolerance
        self._dtypes = ("", "")
        self._shapes: tuple[list[int], list[int]] = ([], [])
        self._calls = self._elements = self._different = self._beyond = self._shape_changes = 0
        self._max_abs = self._sum_abs = self._max_rel = self._sum_rel = 0.0
        self._max_ulp: int | None = 0
        self._products = [0.0, 0.0, 0.0]
        self._sum_squares = 0.0
        self._first: list[int] | None = None
        self._samples = 0
        self._nan = [0, 0]
        self._inf = [0, 0]
        self._classes: Classes | None = None
        self._points: list[tuple[float, float]] = []
        self._stride = 1  # of the values that became points

    def add(self, one: torch.Tensor, other: torch.Tensor) -> None:
        """Take in what the two versions gave for one input."""
        one, other = _plain(one), _plain(other)
        names = (_name(one), _name(other))
        if not self._calls:
            self._dtypes, self._shapes = names, (list(one.shape), list(other.shape))
            if _looks_like_classes(one, other):
                self._classes = Classes()
        elif self._dtypes[0] == self._dtypes[1]:
            self._dtypes = names  # one that differs stays
        self._calls += 1
        if one.shape != other.shape:
            self._shape_changes += 1
            self._max_abs = self._max_rel = math.inf
            return
        if not one.is_floating_point() or names[0] != names[1]:
            self._max_ulp = None
        if self._classes is not None:
            self._classes.add(one, other)
        place = 0
        for left, right in zip(_pieces(one), _pieces(other), strict=True):
            self._add_piece(left, right, place, one.shape)
            place += left.numel()
        self._samples += one.shape[0] if one.ndim else 1

    def _add_piece(self, one: torch.Tensor, other: torch.Tensor, place: int, shape: torch.Size) -> None:
        a, b = one.double(), other.double()
        self._elements += a.numel()
        self._take_points(a, b)
        # NaN and infinities stay in a sum: without any, which is the rule, much need not be looked at.
        is_finite = math.isfinite(float(a.sum())) and math.isfinite(float(b.sum()))
        if is_finite and torch.equal(one, other):
            self._add_products(a, a)
            return
        # Values of 64 bits do not all fit into a float64, so that they are held against each other as they are.
        differ = one != other if one.dtype == other.dtype else a != b
        finite: torch.Tensor | None = None
        if not is_finite:
            finite = a.isfinite() & b.isfinite()
            differ &= ~(a.isnan() & b.isnan())
            for sums, kind in ((self._nan, torch.isnan), (self._inf, torch.isinf)):
                sums[0] += int(kind(a).sum())
                sums[1] += int(kind(b).sum())
            a, b = torch.where(finite, a, 0.0), torch.where(finite, b, 0.0)
        self._add_products(a, b)
        count = int(differ.sum())
        if not count:
            return
        self._different += count
        if self._first is None:
            flat = place + int(differ.to(torch.uint8).argmax())
            self._first = _unravel(flat, shape)
            if self._first:
                self._first[0] += self._samples
        self._add_distances(a, b, differ, finite, is_exact=not one.is_floating_point())
        if self._max_ulp is not None:
            steps = _ulp(one, other, differ if finite is None else differ & finite)
            self._max_ulp = None if steps is None else max(self._max_ulp, steps)

    def _add_products(self, a: torch.Tensor, b: torch.Tensor) -> None:
        for number, (left, right) in enumerate(((a, b), (a, a), (b, b))):
            self._products[number] += float(torch.dot(left, right))

    def _add_distances(
        self, a: torch.Tensor, b: torch.Tensor, differ: torch.Tensor, finite: torch.Tensor | None, *, is_exact: bool
    ) -> None:
        apart = (a - b).abs()
        size = torch.maximum(a.abs(), b.abs())
        if finite is not None:
            apart = torch.where(differ & ~finite, math.inf, apart)
        if is_exact:  # integers of 64 bits that are one float64
            apart = torch.where(differ & (apart == 0), 1.0, apart)
        relative = torch.where(size > 0, apart / size, torch.where(apart > 0, math.inf, 0.0))
        self._max_abs = max(self._max_abs, float(apart.max()))
        self._max_rel = max(self._max_rel, float(relative.max()))
        self._sum_abs += float(apart.sum())
        self._sum_squares += float(torch.dot(apart, apart))
        self._sum_rel += float(relative.sum())
        allowed = self._tolerance.atol + self._tolerance.rtol * a.abs()
        self._beyond += int((differ & (apart > allowed)).sum())

    def _take_points(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Keep one pair of every few, and of more as more come."""
        # Before any is taken: to make numbers of Python's of all of a large tensor takes longer than all else here.
        while self._elements > _MOST_POINTS * self._stride:
            self._points = self._points[::2]
            self._stride *= 2
        first = -(self._elements - a.numel()) % self._stride
        self._points += zip(a[first :: self._stride].tolist(), b[first :: self._stride].tolist(), strict=True)

    def result(self) -> Numbers:
        """Return what came together."""
        count = max(self._elements, 1)
        dot, one, other = self._products
        return Numbers(
            path=self._path,
            dtypes=self._dtypes,
            shapes=self._shapes,
            elements=self._elements,
            different=self._different,
            beyond=self._beyond,
            max_abs=self._max_abs,
            mean_abs=self._sum_abs / count,
            max_rel=self._max_rel,
            mean_rel=self._sum_rel / count,
            max_ulp=self._max_ulp if self._elements else None,
            norms=(math.sqrt(one), math.sqrt(other)),
            norm_of_difference=math.sqrt(self._sum_squares),
            cosine=1.0 if not self._different else _cosine(dot, one, other),
            first_difference=self._first,
            nan=(self._nan[0], self._nan[1]),
            inf=(self._inf[0], self._inf[1]),
            shape_changes=self._shape_changes,
            classes=self._classes.result() if self._classes is not None else None,
            points=[pair for pair in self._points if all(map(math.isfinite, pair))],
        )


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a dense tensor of real numbers in this machine's memory."""
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _looks_like_classes(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.is_floating_point() and other.is_floating_point() and one.ndim == 2 and one.shape[1] > 1


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), _PIECE):
        yield flat[start : start + _PIECE]


def _unravel(flat: int, shape: torch.Size) -> list[int]:
    index = []
    for size in reversed(shape):
        index.append(flat % size)
        flat //= size
    return index[::-1]


def _cosine(dot: float, one: float, other: float) -> float:
    if not one or not other:
        return 1.0 if one == other else 0.0
    value = dot / (math.sqrt(one) * math.sqrt(other))
    return max(-1.0, min(1.0, value)) if math.isfinite(value) else 0.0


def _ulp(one: torch.Tensor, other: torch.Tensor, where: torch.Tensor) -> int | None:
    """Return the greatest number of steps from one float to the next that lie between two of them."""
    bits = _BITS.get(one.dtype)
    if bits is None:
        return None
    if not bool(where.any()):
        return 0
    a, b = one[where].contiguous(), other[where].contiguous()
    last = torch.iinfo(bits).max
    size_a, size_b = (tensor.view(bits).bitwise_and(last).to(torch.int64) for tensor in (a, b))
    same_sign = a.signbit() == b.signbit()
    near = int(torch.where(same_sign, (size_a - size_b).abs(), 0).max())
    if bool(same_sign.all()):
        return near
    # Across zero the steps to it add up; as Python's integers, since two of 63 bits may not fit.
    left, right = size_a[~same_sign], size_b[~same_sign]
    worst = int((left.double() + right.double()).argmax())
    return max(near, int(left[worst]) + int(right[worst]))
