"""Layer by layer: what each sub-module gave for one input, and the first one that departs; gradients, too.

Note [in pieces]: the outputs of all layers together may be many times the weights. The versions run again for
each piece of them that fits into a fixed number of bytes; they start from the same seed each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from isohub.comparison import answers, probes
from isohub.comparison.inputs import Call
from isohub.comparison.numbers import Difference, Numbers, Tolerance
from isohub.comparison.subjects import Subject
from isohub.errors import RemoteProtocolError

__all__ = ["GradientDifference", "Layer", "LayerDifference", "compare_gradients", "compare_layers"]

_PIECE_BYTES = 256 << 20
_MAX_CALLS = 50_000


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One call of one sub-module, in both versions.

    Attributes:
        name: Its name in the baseline; empty for the whole module.
        other_name: Its name in the other.
        call: Which call of it, counted from 1.
        types: Its class in each.
        is_leaf: Whether it has no sub-modules.
        max_abs: Greatest absolute difference of its outputs; None where they cannot be compared.
        relative: Norm of the difference, as a share of the norm of the baseline's output; None as before.
        is_within: Whether they agree within the tolerance.
        is_equal: Whether they agree altogether.
    """

    name: str
    other_name: str
    call: int
    types: tuple[str, str]
    is_leaf: bool
    max_abs: float | None
    relative: float | None
    is_within: bool
    is_equal: bool


@dataclass(frozen=True, kw_only=True)
class LayerDifference:
    """Where two modules depart from each other.

    Attributes:
        layers: All calls that both have, in the order in which they ended.
        first: Place in `layers` of the first that departs by more than the tolerance; None if none does.
        is_input_different: Whether the first one gets another input already, so that what stands before it, outside
            of all modules, has changed; None if that is not known.
        only_in_baseline: Names of modules that are called in the baseline alone.
        only_in_other: Names of modules that are called in the other alone.
    """

    layers: list[Layer]
    first: int | None
    is_input_different: bool | None
    only_in_baseline: list[str] = field(default_factory=list)
    only_in_other: list[str] = field(default_factory=list)

    @property
    def first_layer(self) -> Layer | None:
        """The first layer that departs."""
        return None if self.first is None else self.layers[self.first]


@dataclass(frozen=True, kw_only=True)
class GradientDifference:
    """The gradients of the mean square of all outputs, for one input.

    Attributes:
        parameters: How many parameters both have.
        different: How many of them have other gradients.
        max_abs: Greatest difference.
        worst: The parameter that has it; None if there is none.
        numbers: What differs, by parameter.
    """

    parameters: int
    different: int
    max_abs: float
    worst: str | None
    numbers: list[Numbers]


@dataclass(frozen=True)
class _Step:
    name: str
    call: int
    type: str
    nbytes: int
    is_leaf: bool


def compare_layers(
    one: Subject,
    other: Subject,
    call: Call,
    *,
    renames: Mapping[str, str],
    tolerance: Tolerance,
    pool: ThreadPoolExecutor,
) -> LayerDifference | None:
    """Run both with one input, and compare the outputs of all their sub-modules; None if there are none."""
    plans = [_plan(answer) for answer in _both(pool, one, other, probes.layer_plan, call)]
    places = [{(step.name, step.call): place for place, step in enumerate(plan)} for plan in plans]
    pairs: list[tuple[int, int]] = []
    for (name, number), place in places[0].items():
        partner = places[1].get((renames.get(name, name), number))
        if partner is not None:
            pairs.append((place, partner))
    if not pairs:
        return None
    layers: list[Layer] = []
    for piece in _pieces(pairs, plans):
        values = [
            answers.tensors_by(
                _ask(subject, probes.layer_values, call, [pair[side] for pair in piece]), _places(piece, side)
            )
            for side, subject in enumerate((one, other))
        ]
        for pair in piece:
            found = (values[0].get(pair[0], []), values[1].get(pair[1], []))
            layers.append(_layer(plans[0][pair[0]], plans[1][pair[1]], found, tolerance))
    first = next((place for place, layer in enumerate(layers) if not layer.is_within), None)
    compared = ({plans[0][pair[0]].name for pair in pairs}, {plans[1][pair[1]].name for pair in pairs})
    return LayerDifference(
        layers=layers,
        first=first,
        is_input_different=None if first is None else _is_input_different(one, other, layers[first], call, tolerance),
        only_in_baseline=list(dict.fromkeys(step.name for step in plans[0] if step.name not in compared[0])),
        only_in_other=list(dict.fromkeys(step.name for step in plans[1] if step.name not in compared[1])),
    )


def compare_gradients(
    one: Subject, other: Subject, call: Call, renames: Mapping[str, str], pool: ThreadPoolExecutor
) -> GradientDifference | None:
    """Compare the gradients of all parameters that both have; None if they have none in common."""
    if one.module is None or other.module is None:
        return None
    theirs = {name: tensor for name, tensor in other.module.named_parameters() if tensor.requires_grad}
    pairs = []
    for name, tensor in one.module.named_parameters():
        owner, _, last = name.rpartition(".")
        partner = name if name in theirs else f"{renames.get(owner, owner)}.{last}"
        if tensor.requires_grad and partner in theirs and theirs[partner].shape == tensor.shape:
            pairs.append((name, partner))
    if not pairs:
        return None
    found: list[Numbers] = []
    piece: list[tuple[str, str]] = []
    nbytes = 0
    for number, pair in enumerate(pairs, 1):
        piece.append(pair)
        nbytes += theirs[pair[1]].nbytes
        if nbytes > _PIECE_BYTES or number == len(pairs):
            found += _gradients(one, other, call, piece, pool)
            piece, nbytes = [], 0
    differing = [numbers for numbers in found if not numbers.is_equal]
    worst = max(differing, key=lambda numbers: numbers.max_abs, default=None)
    return GradientDifference(
        parameters=len(pairs),
        different=len(differing),
        max_abs=0.0 if worst is None else worst.max_abs,
        worst=None if worst is None else worst.path,
        numbers=differing,
    )


def _gradients(
    one: Subject, other: Subject, call: Call, piece: list[tuple[str, str]], pool: ThreadPoolExecutor
) -> Iterator[Numbers]:
    names = ([pair[0] for pair in piece], [pair[1] for pair in piece])
    futures = [
        pool.submit(_ask, subject, probes.gradients, call, wanted)
        for subject, wanted in zip((one, other), names, strict=True)
    ]
    left, right = (_gradient_tensors(future.result(), wanted) for future, wanted in zip(futures, names, strict=True))
    for mine, yours in piece:
        difference = Difference(mine, Tolerance())
        a, b = left[mine], right[yours]
        if a is None and b is None:
            continue  # neither output depends on it
        if a is None:
            a = torch.zeros_like(b)  # type: ignore[arg-type]
        difference.add(a, torch.zeros_like(a) if b is None else b)
        yield difference.result()


def _gradient_tensors(answer: Any, names: list[str]) -> dict[str, torch.Tensor | None]:
    if not isinstance(answer, dict) or answer.keys() != set(names):
        raise RemoteProtocolError("no gradients by name where they are due")
    if not all(value is None or isinstance(value, torch.Tensor) for value in answer.values()):
        raise RemoteProtocolError("no gradients where they are due")
    return answer


def _both(pool: ThreadPoolExecutor, one: Subject, other: Subject, probe: Any, call: Call) -> list[Any]:
    futures = [pool.submit(_ask, subject, probe, call) for subject in (one, other)]
    return [future.result() for future in futures]


def _ask(subject: Subject, probe: Any, call: Call, *more: Any) -> Any:
    return subject.ask(probe, subject.arguments(call), *more)


def _plan(answer: Any) -> list[_Step]:
    if not isinstance(answer, list) or len(answer) > _MAX_CALLS:
        raise RemoteProtocolError("no list of layers where one is due")
    count: Counter[str] = Counter()
    steps = []
    for entry in answer:
        if not isinstance(entry, tuple) or len(entry) != 4:
            raise RemoteProtocolError("no layer where one is due")
        name = answers.text(entry[0], 500)
        count[name] += 1
        steps.append(
            _Step(
                name, count[name], answers.text(entry[1], 200), answers.number(entry[2]), bool(answers.flag(entry[3]))
            )
        )
    return steps


def _pieces(pairs: Sequence[tuple[int, int]], plans: Sequence[Sequence[_Step]]) -> Iterator[list[tuple[int, int]]]:
    piece: list[tuple[int, int]] = []
    nbytes = 0
    for pair in pairs:
        size = max(plans[side][pair[side]].nbytes for side in (0, 1))
        if piece and nbytes + size > _PIECE_BYTES:
            yield piece
            piece, nbytes = [], 0
        piece.append(pair)
        nbytes += size
    yield piece


def _places(piece: list[tuple[int, int]], side: int) -> list[int]:
    return [pair[side] for pair in piece]


def _layer(
    one: _Step, other: _Step, found: tuple[list[torch.Tensor], list[torch.Tensor]], tolerance: Tolerance
) -> Layer:
    results = _compared(found[0], found[1], tolerance)
    comparable = results is not None and not any(numbers.shape_changes for numbers in results)
    max_abs = relative = None
    if results is not None and comparable:
        max_abs = max((numbers.max_abs for numbers in results), default=0.0)
        norm = sum(numbers.norms[0] ** 2 for numbers in results) ** 0.5
        apart = sum(numbers.norm_of_difference**2 for numbers in results) ** 0.5
        relative = apart / norm if norm else (0.0 if not apart else float("inf"))
    return Layer(
        name=one.name,
        other_name=other.name,
        call=one.call,
        types=(one.type, other.type),
        is_leaf=one.is_leaf and other.is_leaf,
        max_abs=max_abs,
        relative=relative,
        is_within=results is not None and all(numbers.is_within for numbers in results),
        is_equal=results is not None and all(numbers.is_equal for numbers in results),
    )


def _compared(one: list[torch.Tensor], other: list[torch.Tensor], tolerance: Tolerance) -> list[Numbers] | None:
    if len(one) != len(other):
        return None
    results = []
    for number, (left, right) in enumerate(zip(one, other, strict=True)):
        difference = Difference(str(number), tolerance)
        difference.add(left, right)
        results.append(difference.result())
    return results


def _is_input_different(one: Subject, other: Subject, layer: Layer, call: Call, tolerance: Tolerance) -> bool | None:
    if layer.call != 1:
        return None
    given = [
        answers.tensors_by({0: _ask(subject, probes.entry_input, call, name)}, [0])[0]
        for subject, name in ((one, layer.name), (other, layer.other_name))
    ]
    results = _compared(given[0], given[1], tolerance)
    return results is None or not all(numbers.is_within for numbers in results)
