"""Plain torch.hub in a fresh process: `plain_hub.py CASE OUT FOLDER...`.

Loads each of the folders, then uses each, in this order and in one process, and saves the list of results.
Whatever goes wrong with one of them is saved in its place, as text.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.real.cases import CASES


def main(name: str, out: str, folders: list[str]) -> None:
    case = CASES[name]
    torch.set_num_threads(1)
    case.setup()
    arguments = torch.load(Path(out).with_suffix(".arguments"), weights_only=False)
    loaded = [_tried(case.load, _loader(folder)) for folder in folders]
    results = [value if isinstance(value, str) else _tried(case.use, value, **arguments) for value in loaded]
    torch.save(results, out)


def _loader(folder: str) -> Any:
    def load(entrypoint: str, **keywords: Any) -> Any:
        return torch.hub.load(folder, entrypoint, source="local", **keywords)

    return load


def _tried(function: Any, *args: Any, **keywords: Any) -> Any:
    try:
        return function(*args, **keywords)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
