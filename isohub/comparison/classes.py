"""Outputs of the shape `(samples, classes)`: do two versions choose the same class, and how sure are they."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["ClassNumbers", "Classes"]

Kind = Literal["logits", "probabilities", "log probabilities"]


@dataclass(frozen=True, kw_only=True)
class ClassNumbers:
    """How two versions agree as classifiers.

    Attributes:
        samples: How many there were.
        top1_agreement: Share of them for which both have the same class first.
        top5_agreement: Mean share of the five first classes of one that are among the other's; None with five
            classes or fewer.
        kl: Mean Kullback-Leibler divergence of the other from the baseline, in nats.
        max_kl: The greatest.
        taken_as: What the values were taken for; logits go through a softmax first.
    """

    samples: int
    top1_agreement: float
    top5_agreement: float | None
    kl: float
    max_kl: float
    taken_as: Kind


class Classes:
    """Gathers what `ClassNumbers` tells."""

    def __init__(self) -> None:
        self._samples = self._top1 = 0
        self._top5 = self._kl = self._max_kl = 0.0
        self._has_top5 = True
        self._kind: Kind | None = None

    def add(self, one: torch.Tensor, other: torch.Tensor) -> None:
        """Take in two outputs of one shape."""
        if one.ndim != 2 or not one.numel():
            return
        a, b = one.double(), other.double()
        if self._kind is None:
            kinds = {_kind(a), _kind(b)}
            self._kind = kinds.pop() if len(kinds) == 1 else "logits"
        self._samples += len(a)
        self._top1 += int((a.argmax(dim=1) == b.argmax(dim=1)).sum())
        if a.shape[1] > 5:
            best_a, best_b = a.topk(5).indices, b.topk(5).indices
            self._top5 += float((best_a.unsqueeze(2) == best_b.unsqueeze(1)).any(dim=2).double().mean(dim=1).sum())
        else:
            self._has_top5 = False
        log_a, log_b = _logs(a, self._kind), _logs(b, self._kind)
        terms = torch.where(log_a == -math.inf, 0.0, log_a.exp() * (log_a - log_b))
        divergence = terms.sum(dim=1).nan_to_num(math.inf, math.inf, math.inf).clamp_min(0.0)
        self._kl += float(divergence.sum())
        self._max_kl = max(self._max_kl, float(divergence.max()))

    def result(self) -> ClassNumbers | None:
        """Return what came together; None if there was no sample."""
        if not self._samples or self._kind is None:
            return None
        return ClassNumbers(
            samples=self._samples,
            top1_agreement=self._top1 / self._samples,
            top5_agreement=self._top5 / self._samples if self._has_top5 else None,
            kl=self._kl / self._samples,
            max_kl=self._max_kl,
            taken_as=self._kind,
        )


def _kind(values: torch.Tensor) -> Kind:
    if _sums_to_one(values):
        return "probabilities"
    if bool((values <= 0).all()) and _sums_to_one(values.exp()):
        return "log probabilities"
    return "logits"


def _sums_to_one(values: torch.Tensor) -> bool:
    return bool((values >= 0).all()) and bool(((values.sum(dim=1) - 1).abs() < 1e-3).all())


def _logs(values: torch.Tensor, kind: Kind) -> torch.Tensor:
    if kind == "probabilities":
        return values.log()
    return values if kind == "log probabilities" else values.log_softmax(dim=1)
