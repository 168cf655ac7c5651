"""The arguments of an entrypoint as text."""

from __future__ import annotations

import json
import math

import torch

from isohub.telemetry.metadata import arguments_text


def told(*args: object, **kwargs: object) -> object:
    return json.loads(arguments_text(args, kwargs))


def test_plain_data_is_there_as_it_is():
    """Numbers, texts, lists and dicts are told as they are."""
    assert told(1, "a", [True, None], weights={"x": 0.5}) == {
        "args": [1, "a", [True, None]], "kwargs": {"weights": {"x": 0.5}},
    }  # fmt: skip


def test_other_things_are_told_by_their_kind():
    """A tensor is told by dtype and shape, another object by its class, and what JSON cannot say as a text."""
    assert told(torch.zeros(2, 3), object(), math.nan, (1, {2})) == {
        "args": ["<Tensor torch.float32 [2, 3]>", "<object>", "<nan>", [1, "<set>"]], "kwargs": {},
    }  # fmt: skip


def test_secrets_are_left_out():
    """Values by the name of a secret and passwords in URLs are left out, wherever they are."""
    text = arguments_text(
        ("https://me:hunter2@host/x", {"api_key": "hunter2"}), {"hf_token": "hunter2", "password": ["hunter2"]}
    )

    assert "hunter2" not in text
    assert "host/x" in text


def test_length_is_bounded():
    """However long arguments are, their text is not."""
    deep: list[object] = []
    for _ in range(10_000):
        deep = [deep]

    assert len(arguments_text(("x" * 10**6, list(range(10**5)), deep), {f"k{i}": "y" * 150 for i in range(40)})) < 9000
