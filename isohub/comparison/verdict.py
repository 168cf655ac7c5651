"""What a comparison comes to: the figures that a gate asks for, and sentences for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from isohub.comparison.code import CodeDifference
from isohub.comparison.layers import GradientDifference, LayerDifference
from isohub.comparison.numbers import Numbers
from isohub.comparison.results import Kind, Pair, Version
from isohub.comparison.speed import SpeedRatio
from isohub.comparison.states import StateDifference
from isohub.comparison.structure import StructureDifference

__all__ = ["Found", "judge", "significant"]

_NOTABLE_MEMORY = 0.1
_MAX_ERROR = 300


@dataclass(kw_only=True)
class Found:
    """What was found of two versions; None where something was not compared. `Pair` has the same fields."""

    outputs: list[Numbers] | None = None
    only_in_baseline: list[str] = field(default_factory=list)
    only_in_other: list[str] = field(default_factory=list)
    other_texts: list[str] = field(default_factory=list)
    state: StateDifference | None = None
    structure: StructureDifference | None = None
    layers: LayerDifference | None = None
    gradients: GradientDifference | None = None
    speed: SpeedRatio | None = None
    code: CodeDifference | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def is_shape_changed(self) -> bool:
        """Whether the outputs have other parts, or texts among them differ."""
        return bool(self.only_in_baseline or self.only_in_other or self.other_texts)


def judge(one: Version, other: Version, found: Found) -> Pair:
    """Put together what was found of a version against the baseline, and say what it comes to."""
    metrics = _metrics(one, other, found)
    kind = _kind(other, found)
    changes = _changes(kind, found)
    return Pair(
        baseline=one.label,
        other=other.label,
        kind=kind,
        changes=changes,
        verdict=_verdict(kind, one, other, found, metrics),
        findings=[*_findings(one, other, found), *found.notes],
        metrics=metrics,
        **{name: value for name, value in vars(found).items() if name not in ("outputs", "notes")},
        outputs=found.outputs or [],
    )


def significant(value: float) -> str:
    """Return a number as people read it, with three digits."""
    return "infinite" if math.isinf(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _kind(other: Version, found: Found) -> Kind:
    if other.error is not None:
        return "broken"
    if found.outputs is None:
        if found.state is None:
            return "not compared"
        return "equal" if found.state.is_renamed and _is_tree_same(found) else "different"
    if found.is_shape_changed:
        return "different"
    if all(numbers.is_equal for numbers in found.outputs):
        return "equal"
    return "within tolerance" if all(numbers.is_within for numbers in found.outputs) else "different"


def _is_tree_same(found: Found) -> bool:
    return found.structure is None or found.structure.is_tree_renamed


def _changes(kind: Kind, found: Found) -> list[str]:
    state, structure, code = found.state, found.structure, found.code
    said = {
        "broken": kind == "broken",
        "outputs": found.outputs is not None and kind in ("different", "within tolerance"),
        "weights": state is not None and not state.is_renamed,
        "names": (state is not None and bool(state.moved)) or (structure is not None and bool(structure.renamed)),
        "structure": structure is not None and not structure.is_tree_renamed,
        "signature": structure is not None and structure.signatures[0] != structure.signatures[1],
        "docstring": structure is not None and bool(structure.docstring_diff),
        "dependencies": structure is not None and structure.dependencies[0] != structure.dependencies[1],
        "code": code is not None and any(file.is_imported for file in code.files),
        "speed": found.speed is not None and found.speed.is_notable,
    }
    return [name for name, is_so in said.items() if is_so]


def _metrics(one: Version, other: Version, found: Found) -> dict[str, float | bool | None]:
    outputs = found.outputs
    metrics: dict[str, float | bool | None] = {"broken": other.error is not None}
    metrics.update(_output_metrics(outputs, found.is_shape_changed))
    state, structure, speed = found.state, found.structure, found.speed
    metrics.update(
        state_added=None if state is None else len(state.added),
        state_removed=None if state is None else len(state.removed),
        state_moved=None if state is None else len(state.moved),
        state_changed=None
        if state is None
        else len({change.name for change in (*state.reshaped, *state.retyped, *state.changed)}),
        structure_changed=None if structure is None else not structure.is_tree_renamed,
        signature_changed=None if structure is None else structure.signatures[0] != structure.signatures[1],
        files_changed=None if found.code is None else sum(file.is_imported for file in found.code.files),
        parameters_ratio=_ratio(one.parameters, other.parameters),
        weights_ratio=_ratio(one.weights_bytes, other.weights_bytes),
        latency_ratio=None if speed is None else speed.median,
        latency_ratio_low=None if speed is None else speed.low,
        latency_ratio_high=None if speed is None else speed.high,
        peak_memory_ratio=_ratio(one.peak_bytes, other.peak_bytes),
        gradient_max_abs=None if found.gradients is None else found.gradients.max_abs,
    )
    return metrics


def _output_metrics(outputs: list[Numbers] | None, is_shape_changed: bool) -> dict[str, float | bool | None]:
    names = ("max_abs", "mean_abs", "max_rel", "mean_rel", "cosine", "different", "beyond", "nan", "new_nan", "inf")
    if outputs is None:
        return dict.fromkeys((*names, "new_inf", "max_ulp", "outputs_changed", *_CLASS_NAMES))
    elements = max(sum(numbers.elements for numbers in outputs), 1)
    ulps = [numbers.max_ulp for numbers in outputs]
    # A part that only one side has is as far away as can be.
    least = math.inf if is_shape_changed else 0.0
    return {
        "max_abs": max([least, *(numbers.max_abs for numbers in outputs)]),
        "mean_abs": max([least, *(numbers.mean_abs for numbers in outputs)]),
        "max_rel": max([least, *(numbers.max_rel for numbers in outputs)]),
        "mean_rel": max([least, *(numbers.mean_rel for numbers in outputs)]),
        "max_ulp": None if None in ulps or not ulps else max(ulp for ulp in ulps if ulp is not None),
        "cosine": min((numbers.cosine for numbers in outputs), default=1.0),
        "different": sum(numbers.different for numbers in outputs) / elements,
        "beyond": sum(numbers.beyond for numbers in outputs) / elements,
        "nan": sum(numbers.nan[1] for numbers in outputs),
        "new_nan": sum(max(numbers.nan[1] - numbers.nan[0], 0) for numbers in outputs),
        "inf": sum(numbers.inf[1] for numbers in outputs),
        "new_inf": sum(max(numbers.inf[1] - numbers.inf[0], 0) for numbers in outputs),
        "outputs_changed": is_shape_changed or not all(numbers.is_equal for numbers in outputs),
        **_class_metrics(outputs),
    }


_CLASS_NAMES = ("top1_agreement", "top5_agreement", "kl", "max_kl")


def _class_metrics(outputs: list[Numbers]) -> dict[str, float | bool | None]:
    found = [numbers.classes for numbers in outputs if numbers.classes is not None]
    if not found:
        return dict.fromkeys(_CLASS_NAMES)
    top5 = [classes.top5_agreement for classes in found if classes.top5_agreement is not None]
    return {
        "top1_agreement": min(classes.top1_agreement for classes in found),
        "top5_agreement": min(top5, default=None),
        "kl": max(classes.kl for classes in found),
        "max_kl": max(classes.max_kl for classes in found),
    }


def _ratio(one: int | None, other: int | None) -> float | None:
    return other / one if one and other is not None else None


def _verdict(kind: Kind, one: Version, other: Version, found: Found, metrics: dict[str, float | bool | None]) -> str:
    who = f"{other.label} against {one.label}"
    if kind == "broken":
        return f"{who}: broken. {_one_line(other.error or '')}"
    if kind == "not compared":
        return f"{who}: outputs were not compared, as there are no inputs."
    if found.outputs is None:
        assert found.state is not None, "that is what the kind was taken from"
        return f"{who}: " + (
            "the same weights and modules."
            if kind == "equal"
            else "other weights or modules. Outputs were not compared."
        )
    count = sum(numbers.elements for numbers in found.outputs)
    if kind == "equal":
        return f"{who}: the same outputs, in all {count:,} values." if count else f"{who}: the same outputs."
    if found.is_shape_changed or any(numbers.shape_changes for numbers in found.outputs):
        return f"{who}: outputs of another shape."
    apart = metrics["max_abs"] or 0.0
    told = f"up to {significant(apart)} apart"
    if metrics["new_nan"]:
        told = f"{metrics['new_nan']:,} new NaN"
    elif apart == 0:
        told = "of another dtype"
    agreement = metrics["top1_agreement"]
    classes = "" if agreement is None else f", the same class for {_share(agreement)} of the samples"
    what = "outputs that differ within the tolerance" if kind == "within tolerance" else "other outputs"
    return f"{who}: {what}, {told}{classes}."


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_ERROR else f"{line[:_MAX_ERROR]}..."


def _share(value: float) -> str:
    # Never rounded up to all of them.
    return "100 %" if value == 1 else f"{math.floor(value * 1000) / 10:.1f} %"


def _findings(one: Version, other: Version, found: Found) -> Sequence[str]:
    told: list[str] = []
    if other.error is not None:
        told += _code_findings(found.code)
        return told
    layers = found.layers
    if layers is not None and layers.first_layer is not None:
        first = layers.first_layer
        name = first.name or "the whole module"
        if first.is_leaf and first.types[0] != first.types[1]:
            told.append(f"The first layer that departs is {name}: {first.types[0]} became {first.types[1]}.")
        elif layers.is_input_different:
            told.append(
                f"The first layer that departs is {name}, which gets another input: what comes before it changed."
            )
        else:
            told.append(f"The first layer that departs is {name} ({first.types[1]}); its input is the same.")
    told += _state_findings(found.state)
    told += _structure_findings(found.structure)
    if found.speed is not None:
        speed = found.speed
        interval = f"95 % confidence {speed.low:.2f} to {speed.high:.2f}"
        if speed.is_notable:
            how = f"{speed.median:.2f} times as long" if speed.median > 1 else f"{speed.median:.2f} of the time"
            told.append(f"A call takes {how} ({interval}).")
        else:
            told.append(f"A call takes about as long: {speed.median:.2f} times ({interval}).")
    memory = _ratio(one.peak_bytes, other.peak_bytes)
    # Below a megabyte it is the allocator that is measured.
    if (
        memory is not None
        and abs(memory - 1) > _NOTABLE_MEMORY
        and max(one.peak_bytes or 0, other.peak_bytes or 0) > 1e6
    ):
        told.append(f"A call takes {memory:.2f} times the memory at its peak.")
    gradients = found.gradients
    if gradients is not None:
        told.append(
            f"Gradients differ for {gradients.different} of {gradients.parameters} parameters, most for "
            f"{gradients.worst} (up to {significant(gradients.max_abs)})."
            if gradients.different
            else f"The gradients of all {gradients.parameters} parameters are the same."
        )
    told += _code_findings(found.code)
    return told


def _state_findings(state: StateDifference | None) -> list[str]:
    if state is None:
        return []
    parts = []
    for names, what in (
        (state.changed, "with other values"),
        (state.reshaped, "of another shape"),
        (state.retyped, "of another dtype"),
        (state.added, "new"),
        (state.removed, "gone"),
        (state.moved, "under another name"),
    ):
        if names:
            parts.append(f"{len(names)} {what}")
    if not parts:
        return [f"The weights are the same, all {state.same} entries."] if state.same else []
    return [f"Of {state.entries[0]} entries of the state dict: {', '.join(parts)}; {state.same} are the same."]


def _structure_findings(structure: StructureDifference | None) -> list[str]:
    if structure is None:
        return []
    told = []
    if structure.changed:
        change = structure.changed[0]
        more = f", and {len(structure.changed) - 1} more" if len(structure.changed) > 1 else ""
        told.append(f"Module {change.name or '(root)'} was {change.before} and is {change.after}{more}.")
    if structure.added or structure.removed:
        told.append(f"Modules: {len(structure.added)} new, {len(structure.removed)} gone.")
    if structure.renamed:
        old, new = structure.renamed[0]
        more = f", and {len(structure.renamed) - 1} more" if len(structure.renamed) > 1 else ""
        told.append(f"Module {old} is called {new}{more}.")
    if structure.signatures[0] != structure.signatures[1]:
        told.append(f"The entrypoint took {structure.signatures[0]} and takes {structure.signatures[1]}.")
    if structure.docstring_diff:
        told.append("Its docstring has changed.")
    if structure.dependencies[0] != structure.dependencies[1]:
        told.append(f"Its dependencies were {structure.dependencies[0]} and are {structure.dependencies[1]}.")
    if structure.training[0] != structure.training[1]:
        modes = {True: "training", False: "evaluation", None: "no"}
        told.append(
            f"It came in {modes[structure.training[0]]} mode, and comes in {modes[structure.training[1]]} mode."
        )
    return told


def _code_findings(code: CodeDifference | None) -> list[str]:
    if code is None:
        return []
    files = [file for file in code.files if file.is_imported]
    if not files:
        return ["All imported files are the same."]
    shown = ", ".join(f"{file.path} (+{file.added} -{file.removed})" for file in files[:4])
    more = f" and {len(files) - 4} more" if len(files) > 4 else ""
    return [f"Imported files that differ: {shown}{more}."]
