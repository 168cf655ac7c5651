"""The language of `fail_on`: figures, numbers, comparisons, arithmetic, `and`, `or`, `not`. Nothing else, and no eval.

Python's own parser reads it; of what it knows, a short list is let in, and that is computed here.
"""

from __future__ import annotations

import ast
import difflib
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from isohub.errors import ExpressionError

__all__ = ["METRICS", "Expression"]

METRICS: Mapping[str, str] = {
    "max_abs": "greatest absolute difference of any output",
    "mean_abs": "mean absolute difference, of the output that has the greatest",
    "max_rel": "greatest relative difference",
    "mean_rel": "mean relative difference, of the output that has the greatest",
    "max_ulp": "greatest distance in units in the last place",
    "cosine": "cosine of the outputs, the least",
    "different": "share of the values that differ at all",
    "beyond": "share of the values that differ by more than the tolerance",
    "top1_agreement": "share of samples with the same class first",
    "top5_agreement": "mean share of the first five classes that both have",
    "kl": "mean Kullback-Leibler divergence from the baseline",
    "max_kl": "the greatest divergence",
    "nan": "NaN in the other's outputs",
    "new_nan": "NaN in the other's outputs beyond those in the baseline's",
    "inf": "infinite values in the other's outputs",
    "new_inf": "infinite values beyond the baseline's",
    "outputs_changed": "whether any output differs, or is of another shape or dtype",
    "broken": "whether the other version does not load, or fails when called",
    "state_added": "entries that only the other's state dict has",
    "state_removed": "entries that only the baseline's has",
    "state_moved": "entries that have another name",
    "state_changed": "entries with other values, shapes or dtypes",
    "structure_changed": "whether the module trees differ in more than names",
    "signature_changed": "whether the entrypoint takes other arguments",
    "files_changed": "imported files that differ",
    "parameters_ratio": "parameters, as a multiple of the baseline's",
    "weights_ratio": "bytes of weights, as a multiple of the baseline's",
    "latency_ratio": "time of a call, as a multiple of the baseline's",
    "latency_ratio_low": "lower end of its 95 % confidence interval",
    "latency_ratio_high": "upper end of it",
    "peak_memory_ratio": "peak memory of a call, as a multiple of the baseline's",
    "gradient_max_abs": "greatest absolute difference of any gradient",
}
"""The figures, and what they mean."""

_MAX_CHARACTERS = 2000
_COMPARISONS: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Lt: ("<", operator.lt), ast.LtE: ("<=", operator.le), ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge), ast.Eq: ("==", operator.eq), ast.NotEq: ("!=", operator.ne),
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_ALLOWED = "names of figures, numbers, < <= > >= == !=, + - * /, and, or, not, parentheses"


class Expression:
    """A condition over figures, read and checked.

    Args:
        text: Such as `"max_abs > 1e-4 or top1_agreement < 0.99"`.

    Attributes:
        text: The same.
        names: The figures that it uses.

    Raises:
        ExpressionError: It cannot be read, or names a figure that there is not.
    """

    def __init__(self, text: str) -> None:
        if not text.strip() or len(text) > _MAX_CHARACTERS:
            raise ExpressionError(
                f"fail_on takes an expression of 1 to {_MAX_CHARACTERS} characters, such as max_abs > 1e-4",
                text=str(text),
            )
        self.text = text.strip()
        try:
            self._tree = ast.parse(self.text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            problem = error.msg if isinstance(error, SyntaxError) else str(error)
            raise ExpressionError(
                f"fail_on: {self.text!r} cannot be read: {problem}. It has {_ALLOWED}", text=text
            ) from None
        self.names = sorted({node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)})
        self._check(self._tree, is_condition=True)

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def unknown(self, metrics: Mapping[str, float | bool | None]) -> list[str]:
        """Return the figures that it uses, and that are not known."""
        return [name for name in self.names if metrics.get(name) is None]

    def reason(self, metrics: Mapping[str, float | bool | None]) -> str | None:
        """Return why the condition holds, with the figures in it; None if it does not.

        A version that is broken fails whatever the condition, and so does one of which a figure is not known: a gate
        that could not look must not open.

        Args:
            metrics: The figures by name; None for one that has no meaning for what was compared.
        """
        if metrics.get("broken") and "broken" not in self.names:
            return "it is broken"
        unknown = self.unknown(metrics)
        if unknown:
            return f"{', '.join(unknown)} is not known of what was compared"
        held: list[str] = []
        try:
            return ", ".join(dict.fromkeys(held)) or self.text if self._value(self._tree, metrics, held) else None
        except (ZeroDivisionError, OverflowError) as error:
            return f"{self.text} cannot be computed: {error}"

    def _check(self, node: ast.expr, *, is_condition: bool) -> None:  # noqa: PLR0912 - a branch a kind of node
        match node:
            case ast.BoolOp(values=values) if is_condition:
                for value in values:
                    self._check(value, is_condition=True)
            case ast.UnaryOp(op=ast.Not(), operand=operand) if is_condition:
                self._check(operand, is_condition=True)
            case ast.Compare(left=left, ops=ops, comparators=others) if is_condition:
                if not all(type(op) in _COMPARISONS for op in ops):
                    raise self._refused(node)
                for value in (left, *others):
                    self._check(value, is_condition=False)
            case ast.Name(id=name):
                if name not in METRICS:
                    close = difflib.get_close_matches(name, METRICS, n=1)
                    hint = f" Did you mean {close[0]}?" if close else ""
                    raise ExpressionError(
                        f"fail_on: there is no figure {name!r}.{hint} There are: {', '.join(METRICS)}", text=self.text
                    )
            case ast.Constant(value=bool()) if is_condition:
                pass
            case ast.Constant(value=int() | float() as value) if not is_condition and -math.inf < value < math.inf:
                pass
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand) if not is_condition:
                self._check(operand, is_condition=False)
            case ast.BinOp(left=left, op=op, right=right) if not is_condition and type(op) in _ARITHMETIC:
                self._check(left, is_condition=False)
                self._check(right, is_condition=False)
            case _:
                raise self._refused(node)

    def _refused(self, node: ast.expr) -> ExpressionError:
        part = ast.get_source_segment(self.text, node) or self.text
        return ExpressionError(
            f"fail_on: {part!r} in {self.text!r} is not understood. It has {_ALLOWED}", text=self.text
        )

    def _value(self, node: ast.expr, metrics: Mapping[str, float | bool | None], held: list[str]) -> Any:
        match node:
            case ast.BoolOp(op=ast.And(), values=values):
                # All of them, so that a reason names each.
                return min([bool(self._value(value, metrics, held)) for value in values])
            case ast.BoolOp(values=values):
                return max([bool(self._value(value, metrics, held)) for value in values])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._value(operand, metrics, [])
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self._compare([left, *others], ops, metrics, held)
            case ast.Name(id=name):
                value = metrics[name]
                if value is True:
                    held.append(name)
                return value
            case ast.Constant(value=value):
                return value
            case ast.UnaryOp(op=op, operand=operand):
                number = self._value(operand, metrics, held)
                return -number if isinstance(op, ast.USub) else number
            case ast.BinOp(left=left, op=op, right=right):
                first, second = self._value(left, metrics, held), self._value(right, metrics, held)
                return _ARITHMETIC[type(op)](first, second)
        raise AssertionError(f"{node} was let in")

    def _compare(
        self,
        parts: list[ast.expr],
        ops: list[ast.cmpop],
        metrics: Mapping[str, float | bool | None],
        held: list[str],
    ) -> bool:
        values = [self._value(part, metrics, []) for part in parts]
        for place, op in enumerate(ops):
            if not _COMPARISONS[type(op)][1](values[place], values[place + 1]):
                return False
        texts = [_shown(part, value) for part, value in zip(parts, values, strict=True)]
        signs = [_COMPARISONS[type(op)][0] for op in ops]
        held.append(texts[0] + "".join(f" {sign} {text}" for sign, text in zip(signs, texts[1:], strict=True)))
        return True


def _shown(part: ast.expr, value: Any) -> str:
    number = str(value) if isinstance(value, bool) else f"{value:.6g}"
    has_names = any(isinstance(node, ast.Name) for node in ast.walk(part))
    return f"{ast.unparse(part)} ({number})" if has_names else number
