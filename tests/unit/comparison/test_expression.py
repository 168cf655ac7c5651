"""The language of `fail_on`."""

from __future__ import annotations

from typing import Any

import pytest

from isohub.comparison.expression import METRICS, Expression
from isohub.errors import ExpressionError

FIGURES: dict[str, Any] = {
    **dict.fromkeys(METRICS, 0),
    "max_abs": 0.013,
    "top1_agreement": 0.982,
    "cosine": 0.5,
    "outputs_changed": True,
    "broken": False,
    "kl": None,
}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("max_abs > 1e-4", "max_abs (0.013) > 0.0001"),
        ("max_abs > 1e-4 or top1_agreement < 0.99", "max_abs (0.013) > 0.0001, top1_agreement (0.982) < 0.99"),
        ("max_abs > 1 or top1_agreement < 0.99", "top1_agreement (0.982) < 0.99"),
        ("max_abs > 1 and top1_agreement < 0.99", None),
        ("0.01 < max_abs <= 0.013", "0.01 < max_abs (0.013) <= 0.013"),
        ("1 - top1_agreement >= 0.01", "1 - top1_agreement (0.018) >= 0.01"),
        ("-cosine * 2 == -1", "-cosine * 2 (-1) == -1"),
        ("outputs_changed", "outputs_changed"),
        ("not broken", "not broken"),
        ("not (max_abs > 1e-4)", None),
        ("True", "True"),
    ],
)
def test_reason(text: str, reason: str | None):
    """A condition that holds is told with the figures that it holds for, and one that does not with None."""
    assert Expression(text).reason(FIGURES) == reason


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "max_abs.real > 0", "max_abs[0] > 0", "(lambda: 1)() > 0",
        "max_abs if 1 else 2",
        "max_abs > 'a'", "max_abs in (1, 2)", "max_abs is None", "max_abs ** 9 > 1", "max_abs // 2 > 1", "max_abs > 1j",
        "[x for x in (1,)]", "max_abs := 1", "f'{max_abs}'", "max_abs > 1e999", "max_abs & 1", "max_abs + 1", "1",
        "max_abs >", "", "   ", "max_abs > 1\nmax_abs", "(" * 300 + "1",
        "max_abs" + " + 1" * 900 + " > 0", "max_abs > \0",
    ],
)  # fmt: skip
def test_everything_else_is_refused(text: str):
    """What is none of the few things that the language has is an error, and nothing of it is computed."""
    with pytest.raises(ExpressionError, match="fail_on") as caught:
        Expression(text)

    assert caught.value.text == text


def test_unknown_figure_is_named():
    """A figure that there is not is an error that names the nearest one, and all."""
    with pytest.raises(
        ExpressionError, match=r"no figure 'max_ab'\. Did you mean max_abs.*There are: max_abs, mean_abs"
    ):
        Expression("max_ab > 1")


def test_gate_that_cannot_look_stays_shut():
    """A condition over a figure that is not known fails, and so does a version that is broken."""
    assert Expression("kl > 1").reason(FIGURES) == "kl is not known of what was compared"
    assert Expression("max_abs > 1").reason({**FIGURES, "broken": True}) == "it is broken"
    assert Expression("broken").reason({**FIGURES, "broken": True}) == "broken"


def test_division_by_zero_fails():
    """What cannot be computed is no pass."""
    assert Expression("1 / nan > 2").reason(FIGURES) == "1 / nan > 2 cannot be computed: division by zero"
