"""`isohub.save`: an artifact into a file, with where it comes from in it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from isohub.shm.tensors import bytes_of
from isohub.telemetry.metadata import EXTRA_FILE, KEY_PREFIX, Metadata

__all__ = ["save"]

# The dtypes of the safetensors format.
_DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0", "complex64": "C64",
}  # fmt: skip


def save(artifact: Any, path: str | os.PathLike[str]) -> None:
    """Write what `isohub.load(..., returns=...)` returned into a file, with the metadata that it has.

    A ScriptModule becomes a TorchScript file (torch.jit.load, libtorch), an exported program a .pt2 file
    (torch.export.load), a state dict a safetensors file. The file is there whole or not at all.

    Args:
        artifact: What was loaded by `returns="torchscript"`, `"export"` or `"state_dict"`.
        path: The file; the name is the caller's choice.

    Raises:
        TypeError: It is none of these, or a tensor in it has no place in the format.
        OSError: The file cannot be written.

    Example:
        >>> isohub.save(isohub.load("owner/name:v1", "resnet18", returns="torchscript"), "resnet18.pt")
    """
    known: Metadata | None = getattr(artifact, "isohub", None)
    known = known if isinstance(known, Metadata) else None
    target = Path(path)
    # Beside it, so that the rename stays on one file system. The suffix is one that torch.export demands.
    temporary = target.with_name(f".{target.name[:100]}.{uuid4().hex}.pt2")
    try:
        _write(artifact, known, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _write(artifact: Any, known: Metadata | None, path: Path) -> None:
    extra = {} if known is None else {EXTRA_FILE: known.as_json()}
    if isinstance(artifact, torch.jit.ScriptModule):
        artifact._c.save(str(path), _extra_files=extra)
    elif isinstance(artifact, torch.export.ExportedProgram):
        torch.export.save(artifact, path, extra_files=extra)
    elif isinstance(artifact, Mapping) and all(isinstance(name, str) for name in artifact):
        _write_safetensors(artifact, {} if known is None else known.fields(), path)
    else:
        raise TypeError(
            'isohub.save takes what isohub.load returned by returns="torchscript", "export" or "state_dict", not '
            f"{artifact!r:.200}"
        )


def _write_safetensors(tensors: Mapping[str, Any], fields: dict[str, str], path: Path) -> None:
    """Write the format by hand, which takes a few lines and no further package."""
    header: dict[str, Any] = {}
    if fields:
        header["__metadata__"] = {KEY_PREFIX + name: text for name, text in fields.items()}
    end = 0
    # The largest elements first: then each tensor is aligned to its own, as the format asks for.
    ordered = sorted(tensors.items(), key=lambda item: -_itemsize(*item))
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.itemsize
        dtype = _DTYPES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("xb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for _, tensor in ordered:
            if tensor.numel():
                file.write(bytes_of(tensor.detach().resolve_conj().resolve_neg().contiguous()))


def _itemsize(name: str, tensor: Any) -> int:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name!r}: a safetensors file holds tensors alone, not {tensor!r:.100}")
    if tensor.layout is not torch.strided or str(tensor.dtype).removeprefix("torch.") not in _DTYPES:
        raise TypeError(f"{name!r}: a safetensors file has no place for a tensor of {tensor.dtype}, {tensor.layout}")
    if tensor.is_meta:
        raise TypeError(f"{name!r}: this tensor has no values here; they stayed in the worker")
    return tensor.itemsize
