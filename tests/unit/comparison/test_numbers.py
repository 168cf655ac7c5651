"""How far two tensors are apart, over a stream of them."""

from __future__ import annotations

import math
import tracemalloc

import pytest
import torch

from isohub.comparison.numbers import Difference, Numbers, Tolerance


def compared(*pairs: tuple[torch.Tensor, torch.Tensor], rtol: float = 0.0, atol: float = 0.0) -> Numbers:
    difference = Difference("", Tolerance(rtol=rtol, atol=atol))
    for one, other in pairs:
        difference.add(one, other)
    return difference.result()


def test_equal_tensors():
    """Equal values differ nowhere, and point the same way."""
    found = compared((torch.randn(3, 4), torch.zeros(0)), (torch.ones(2), torch.ones(2)))
    same = compared((torch.arange(6.0), torch.arange(6.0)))

    assert found.shape_changes == 1
    assert (same.is_equal, same.different, same.max_abs, same.max_ulp, same.cosine) == (True, 0, 0.0, 0, 1.0)
    assert same.first_difference is None


def test_differences_of_known_values():
    """Absolute and relative differences, their means, norms and the cosine are those that one computes by hand."""
    found = compared((torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 2.5], [3.0, 2.0]])))

    assert (found.elements, found.different, found.max_abs, found.mean_abs) == (4, 2, 2.0, 0.625)
    assert (found.max_rel, found.mean_rel) == (0.5, pytest.approx((0.2 + 0.5) / 4))
    assert found.norm_of_difference == pytest.approx(math.sqrt(0.25 + 4))
    assert found.norms == (pytest.approx(math.sqrt(30)), pytest.approx(math.sqrt(1 + 6.25 + 9 + 4)))
    assert found.cosine == pytest.approx((1 + 5 + 9 + 8) / math.sqrt(30 * 20.25))
    assert found.first_difference == [0, 1]


def test_stream_counts_as_one():
    """A stream of batches gives the numbers of all of it at once, the index of the first difference included."""
    one, other = torch.randn(30, 5), torch.randn(30, 5)
    other[:17] = one[:17]
    streamed = compared(*zip(one.split(4), other.split(4), strict=True))
    whole = compared((one, other))

    assert streamed.first_difference == whole.first_difference == [17, 0]
    assert (streamed.elements, streamed.different, streamed.max_abs) == (150, 65, whole.max_abs)
    assert streamed.mean_abs == pytest.approx(whole.mean_abs)
    assert streamed.cosine == pytest.approx(whole.cosine)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_ulp(dtype: torch.dtype):
    """One step to the next float is one unit in the last place, and across zero the steps to it add up."""
    one = torch.tensor([1.0, -2.5, 0.0], dtype=dtype)
    above = torch.nextafter(one, torch.full_like(one, math.inf)) if dtype.itemsize >= 4 else None
    if above is None:
        above = (one.view(torch.int16) + torch.tensor([1, -1, 1], dtype=torch.int16)).view(dtype)
    tiny = above[2:]

    assert compared((one, above)).max_ulp == 1
    assert compared((tiny, -tiny)).max_ulp == 2


def test_ulp_of_opposite_ends():
    """The distance between the greatest and the least float64 is told exactly, though it needs 64 bits."""
    most = torch.tensor([torch.finfo(torch.float64).max], dtype=torch.float64)

    assert compared((most, -most)).max_ulp == 2 * 0x7FEFFFFFFFFFFFFF


def test_no_ulp_between_dtypes():
    """Values of two dtypes are compared, but not in units in the last place, and they are not equal."""
    found = compared((torch.ones(3), torch.ones(3, dtype=torch.float64)))

    assert (found.different, found.max_ulp, found.is_equal, found.is_within) == (0, None, False, True)


def test_nan_and_infinity():
    """NaN in both places are alike, and where one side alone has one the difference is infinite."""
    nan, inf = math.nan, math.inf
    alike = compared((torch.tensor([nan, inf, -inf, 1.0]), torch.tensor([nan, inf, -inf, 1.0])))
    unlike = compared((torch.tensor([1.0, inf, 2.0]), torch.tensor([nan, -inf, 2.0])))

    assert (alike.different, alike.max_abs, alike.nan, alike.inf) == (0, 0.0, (1, 1), (2, 2))
    assert (unlike.different, unlike.max_abs, unlike.nan, unlike.inf) == (2, inf, (0, 1), (1, 1))


def test_other_shape_is_infinitely_far():
    """Outputs of another shape pass no limit."""
    found = compared((torch.ones(2, 3), torch.ones(3, 2)))

    assert (found.shape_changes, found.max_abs, found.is_within) == (1, math.inf, False)
    assert found.shapes == ([2, 3], [3, 2])


def test_tolerance():
    """A value is within the tolerance up to atol and rtol times the baseline's, not a bit further."""
    one, other = torch.tensor([100.0, 1.0]), torch.tensor([101.0, 1.5])

    assert compared((one, other), rtol=0.01, atol=0.49).beyond == 0
    assert compared((one, other), rtol=0.01, atol=0.48).beyond == 1
    assert compared((one, other), rtol=0.0, atol=0.49).beyond == 2


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, True])
def test_tolerance_is_checked(value: float):
    """A tolerance is a finite number of at least zero."""
    with pytest.raises(ValueError, match="rtol must be"):
        Tolerance(rtol=value)


def test_integers_of_64_bits():
    """Integers that no float64 tells apart are different all the same."""
    found = compared((torch.tensor([2**53]), torch.tensor([2**53 + 1])))

    assert (found.different, found.max_abs, found.max_ulp) == (1, 1.0, None)


def test_complex_bool_and_strided():
    """Complex numbers are compared by their parts, truth values as numbers, and strides do not matter."""
    parts = compared((torch.tensor([1 + 2j]), torch.tensor([1 + 5j])))
    flags = compared((torch.tensor([True, False]), torch.tensor([True, True])))
    turned = torch.arange(6.0).reshape(2, 3)

    assert (parts.elements, parts.max_abs) == (2, 3.0)
    assert (flags.different, flags.max_abs) == (1, 1.0)
    assert compared((turned.t().contiguous().t(), turned)).is_equal


def test_points_stay_few():
    """Of however many values, a bounded number is kept for the plot, from the whole of the stream."""
    values = torch.arange(100_000.0)
    points = compared(*((part, part + 1) for part in values.split(777))).points

    assert 300 < len(points) <= 800
    assert points[0] == (0.0, 1.0)
    assert points[-1][0] > 99_000
    assert all(other == one + 1 for one, other in points)


def test_points_are_an_even_part():
    """However the values come, points are every so many of them, and no others are made into objects on the way."""
    values = torch.arange(3_000_000, dtype=torch.float64)
    tracemalloc.start()
    try:
        points = compared(*((part, part) for part in values.split([7, 1_000_000, 999_993, 1_000_000]))).points
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert [(float(at), float(at)) for at in range(0, 3_000_000, 4096)] == points
    assert peak_bytes < 1 << 20  # a thousandth of the values; all of a part are 24 MB


def test_classes():
    """Top-1, top-5 and the divergence of classifiers are those that one computes from the softmax."""
    torch.manual_seed(0)
    one = torch.randn(40, 9)
    other = one + torch.randn(40, 9)
    found = compared(*zip(one.split(7), other.split(7), strict=True)).classes
    assert found is not None
    p, q = one.double().softmax(1), other.double().softmax(1)
    divergence = (p * (p / q).log()).sum(1)
    shared = [
        len(set(a.topk(5).indices.tolist()) & set(b.topk(5).indices.tolist())) / 5 for a, b in zip(p, q, strict=True)
    ]

    assert found.samples == 40
    assert found.top1_agreement == float((p.argmax(1) == q.argmax(1)).double().mean())
    assert found.top5_agreement == pytest.approx(sum(shared) / 40)
    assert (found.kl, found.max_kl) == (pytest.approx(float(divergence.mean())), pytest.approx(float(divergence.max())))
    assert found.taken_as == "logits"


def test_probabilities_are_taken_as_such():
    """Rows that sum to one go through no second softmax, nor do their logarithms."""
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)

    for one, other, kind in ((p, q, "probabilities"), (p.log(), q.log(), "log probabilities")):
        found = compared((one, other)).classes
        assert found is not None
        assert (found.taken_as, found.kl) == (kind, pytest.approx(expected, rel=1e-6))
