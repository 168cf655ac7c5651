"""Repositories whose entrypoint says which version answers, and the surroundings in which they are loaded."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["SETTINGS", "answer", "raised", "version_files"]

# Variables of the user's that would lead a load elsewhere.
SETTINGS = (
    *("GITHUB_TOKEN", "GITHUB_SERVER_URL", "NETRC", "ISOHUB_OFFLINE", "ISOHUB_TRUST", "ISOHUB_REF_TTL_S"),
    *("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"),
)

_HUBCONF = '''
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((2,), {value!r}))

    def forward(self, x):
        return x * self.weight


def net():
    """Return version {value}."""
    return Net()


def nothing_said():
    return {value}


def _hidden():
    return {value}


fixed = {value}
'''


def version_files(value: float) -> dict[str, str | bytes]:
    """Return the files of a repository whose `net` multiplies by `value`."""
    return {"hubconf.py": _HUBCONF.format(value=float(value))}


def answer(model: Callable[[torch.Tensor], torch.Tensor]) -> list[float]:
    """Return what a `net` gives for 1 and 10: its version, and ten times that."""
    return model(torch.tensor([1.0, 10.0])).tolist()


def raised(call: Callable[[], object]) -> BaseException:
    """Return the exception that `call` raises."""
    try:
        value = call()
    except BaseException as error:
        return error
    raise AssertionError(f"nothing was raised; it returned {value!r}")
