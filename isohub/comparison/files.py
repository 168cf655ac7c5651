"""Inputs from files, as the command line names them: tensors, arrays, images, folders of these, random numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isohub.comparison.inputs import Call, Inputs, random_input
from isohub.errors import ComparisonError

__all__ = ["read_inputs"]

_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
_TENSORS = frozenset({".pt", ".pth", ".npy", ".npz", ".safetensors"})


@dataclass(frozen=True)
class _Named:
    name: str | None
    text: str


def read_inputs(files: Sequence[str], randoms: Sequence[str], *, batch_size: int = 32, seed: int = 0) -> Inputs:
    """Return the inputs that texts of the command line name.

    Args:
        files: Each `[NAME=]PATH[#KEY]`: a file of tensors (`.pt`, `.npy`, `.npz`, `.safetensors`), an image, or a
            folder of files; `KEY` takes one member of a dict. With a name it is a keyword argument.
        randoms: Each `[NAME=]float32[8,3,224,224]`. They come after the files.
        batch_size: How many images of a folder go through at once.
        seed: For the random numbers.

    Raises:
        ComparisonError: One cannot be read, or there is more than one folder.
    """
    parts = [_split(text) for text in files]
    values: list[tuple[_Named, Any]] = [(part, _read(part.text, batch_size)) for part in parts]
    for number, text in enumerate(randoms):
        part = _split_name(text)
        values.append((part, random_input(part.text, seed + number)))
    described = ", ".join([*files, *(f"{text} of seed {seed + number}" for number, text in enumerate(randoms))])
    if not values:
        return Inputs(None)
    if len(values) == 1 and values[0][0].name is None:
        return Inputs(values[0][1], described)
    streams = [value for _, value in values if isinstance(value, _Folder)]
    if len(streams) > 1:
        raise ComparisonError("only one --input can be a folder: its files go through one after the other")
    return Inputs(_Product(values) if streams else _call(values), described)


def _call(values: Sequence[tuple[_Named, Any]]) -> Call:
    kwargs = {part.name: value for part, value in values if part.name is not None}
    return Call(tuple(value for part, value in values if part.name is None), kwargs)


class _Product:
    """The files of a folder, each with the other inputs beside it."""

    def __init__(self, values: Sequence[tuple[_Named, Any]]) -> None:
        self._values = values
        self._folder = next(value for _, value in values if isinstance(value, _Folder))

    def __len__(self) -> int:
        return len(self._folder)

    def __iter__(self) -> Iterator[Call]:
        for item in self._folder:
            yield _call([(part, item if isinstance(value, _Folder) else value) for part, value in self._values])


class _Folder:
    """The files of a folder, read as they are needed; images go through in batches of those of one size."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        self._paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGES | _TENSORS)
        self._batch_size = batch_size
        if not self._paths:
            raise ComparisonError(
                f"{folder} has no file of tensors and no image: {', '.join(sorted(_TENSORS | _IMAGES))}"
            )
        self._is_images = all(path.suffix.lower() in _IMAGES for path in self._paths)

    def __len__(self) -> int:
        # Of images it is a guess: those of another size begin a new batch.
        return -(-len(self._paths) // self._batch_size) if self._is_images else len(self._paths)

    def __iter__(self) -> Iterator[Any]:
        batch: list[torch.Tensor] = []
        for path in self._paths:
            if path.suffix.lower() in _TENSORS:
                if batch:
                    yield torch.cat(batch)
                    batch = []
                yield _tensors(path)
                continue
            image = _image(path)
            if batch and (batch[0].shape != image.shape or len(batch) == self._batch_size):
                yield torch.cat(batch)
                batch = []
            batch.append(image)
        if batch:
            yield torch.cat(batch)


def _split_name(text: str) -> _Named:
    name, equals, rest = text.partition("=")
    return _Named(name.strip(), rest) if equals and name.strip().isidentifier() else _Named(None, text)


def _split(text: str) -> _Named:
    # A file that is there is that file, whatever its name looks like.
    return _Named(None, text) if Path(text).exists() else _split_name(text)


def _read(text: str, batch_size: int) -> Any:
    path, mark, key = text.rpartition("#")
    if not mark or Path(text).exists():
        path, key = text, ""
    place = Path(path).expanduser()
    if place.is_dir():
        return _Folder(place, batch_size)
    if not place.is_file():
        raise ComparisonError(f"There is no input file {path!r}, seen from {str(Path.cwd())!r}")
    value = _image(place) if place.suffix.lower() in _IMAGES else _tensors(place)
    if not key:
        return value
    if not isinstance(value, Mapping) or key not in value:
        known = ", ".join(map(str, value)) if isinstance(value, Mapping) else f"a {type(value).__name__}"
        raise ComparisonError(f"{path} has no member {key!r}: it has {known}")
    return value[key]


def _tensors(path: Path) -> Any:
    kind = path.suffix.lower()
    try:
        if kind in {".pt", ".pth"}:
            # The caller's own file, and tensors alone: no worker wrote it.
            return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
        if kind == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if kind in {".npy", ".npz"}:
            import numpy as np

            loaded = np.load(path, allow_pickle=False)
            if kind == ".npy":
                return torch.as_tensor(loaded)
            return {name: torch.as_tensor(loaded[name]) for name in loaded.files}
    except ImportError as error:
        raise ComparisonError(
            f"{path} cannot be read without the package {error.name}: pip install 'isohub[compare]'"
        ) from None
    except Exception as error:
        raise ComparisonError(
            f"{path} cannot be read as tensors: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    raise ComparisonError(f"{path}: unknown kind of file. There are {', '.join(sorted(_TENSORS | _IMAGES))}")


def _image(path: Path) -> torch.Tensor:
    """Return an image as float32 from 0 to 1, `(1, channels, height, width)`: one channel if it is grey, else three."""
    try:
        from PIL import Image
    except ImportError:
        raise ComparisonError(
            f"{path} cannot be read without the package pillow: pip install 'isohub[compare]'"
        ) from None
    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if opened.mode in {"1", "L", "I;16", "LA"} else "RGB")
            width, height = image.size
            raw = bytearray(image.tobytes())
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ComparisonError(f"{path} cannot be read as an image: {error}") from error
    channels = len(raw) // (width * height)
    pixels = torch.frombuffer(raw, dtype=torch.uint8).reshape(height, width, channels)
    return pixels.permute(2, 0, 1).unsqueeze(0).float() / 255
