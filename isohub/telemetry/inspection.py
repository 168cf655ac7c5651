"""What a file of a model tells of itself, read without loading it.

Whoever made the file: nothing in it is unpickled or executed, no name in it is looked up, and each piece is read
up to a limit only. Of a pickle, its instructions are listed, which runs none of them.

::

    PK..                     zip: code/ -> TorchScript, archive_format -> exported program, data.pkl -> torch.save
    <8 bytes> {...}          safetensors
    80 02..05                a pickle: torch.save before 1.6, or any other
"""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from isohub.errors import ArtifactError
from isohub.telemetry.metadata import EXTRA_FILE, KEY_PREFIX

__all__ = ["Inspection", "TensorEntry", "inspect_file"]

# The limit of the safetensors format itself for its header; no other index is nearly as long.
_MAX_INDEX_BYTES = 100_000_000
_MAX_PICKLE_BYTES = 64 << 20
_MAX_EXTRA_BYTES = 64 << 10
# torch.save wrote five pickles before the tensors, up to torch 1.5.
_MAX_PICKLES = 5

_FORMATS = {
    "torchscript": "TorchScript",
    "export": "exported program",
    "torch.save": "torch.save",
    "zip": "zip archive",
    "safetensors": "safetensors",
    "pickle": "pickle",
    "unknown": "unknown",
}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor that a file lists: its name, the dtype in the words of the format, the shape."""

    name: str
    dtype: str
    shape: list[int]


@dataclass
class Inspection:
    """What a file tells of itself.

    Attributes:
        format: `"torchscript"`, `"export"`, `"safetensors"`, `"torch.save"`, `"pickle"`, `"zip"` or `"unknown"`.
        nbytes: Its size in bytes.
        metadata: The fields that isohub wrote, texts by name; empty if it wrote none.
        extra: What else of that kind is in it, as far as it is text: extra files, and `__metadata__`.
        tensors: The tensors that it lists by name; None for a format that does not list them.
        imports: What loading it would import, for the pickles among them; None for other formats.
        torch: Version of torch that an exported program says it was written by; None elsewhere.
    """

    format: str = "unknown"
    nbytes: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    tensors: list[TensorEntry] | None = None
    imports: list[str] | None = None
    torch: str | None = None

    @property
    def title(self) -> str:
        """The format as people call it."""
        return _FORMATS[self.format]


def inspect_file(path: Path) -> Inspection:
    """Read what a file tells of itself.

    Raises:
        OSError: It cannot be read, or is no file.
        ArtifactError: It begins like one of the formats, and cannot be read as one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file" if path.exists() else f"There is no file {path}")
    found = Inspection(nbytes=path.stat().st_size)
    with path.open("rb") as file:
        start = file.read(9)
        file.seek(0)
        try:
            if start.startswith(b"PK\x03\x04"):
                _zip(file, found)
            elif start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= found.nbytes - 8:
                _safetensors(file, found)
            elif start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
                found.format = "pickle"
                found.imports = sorted(set(_imports(file, _MAX_PICKLES)))
        except OSError:
            raise
        except Exception as error:
            # Escaped: what is said of the file may quote from it.
            told = ascii(f"{type(error).__name__}: {error}")[1:-1]
            raise ArtifactError(
                f"{path} begins like a file of the kind {found.title!r}, and cannot be read as one ({told:.300}): it "
                "is damaged, cut short, or not what it looks like"
            ) from error
    return found


def _zip(file: BinaryIO, found: Inspection) -> None:
    found.format = "zip"
    with zipfile.ZipFile(file) as archive:
        # All names are below one folder, which is called after the file that it was first.
        entries = {name.partition("/")[2]: info for name, info in archive.NameToInfo.items()}
        if "archive_format" in entries:
            found.format = "export"
            _exported(archive, entries, found)
        elif "constants.pkl" in entries and any(name.startswith("code/") for name in entries):
            found.format = "torchscript"
        elif "data.pkl" in entries:
            found.format = "torch.save"
            data = _read(archive, entries["data.pkl"], _MAX_PICKLE_BYTES)
            found.imports = sorted(set(_imports(io.BytesIO(data), 1)))
        for name, info in entries.items():
            if name.startswith("extra/"):
                _extra(name.removeprefix("extra/"), _read(archive, info, _MAX_EXTRA_BYTES, cut=True), found)


def _exported(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], found: Inspection) -> None:
    models = [name for name in entries if name.startswith("models/") and name.endswith(".json")]
    if models:
        document = json.loads(_read(archive, entries[models[0]], _MAX_INDEX_BYTES))
        version = document.get("torch_version") if isinstance(document, dict) else None
        found.torch = version if isinstance(version, str) else None
    found.tensors = []
    for name in entries:
        if name.startswith("data/weights/") and name.endswith("_weights_config.json"):
            config = json.loads(_read(archive, entries[name], _MAX_INDEX_BYTES))["config"]
            found.tensors += [_weight(key, entry["tensor_meta"]) for key, entry in config.items()]


def _weight(name: str, meta: dict[str, Any]) -> TensorEntry:
    number = meta["dtype"]
    dtype = _SCALAR_TYPES[number] if type(number) is int and 0 <= number < len(_SCALAR_TYPES) else "unknown"
    return TensorEntry(name, dtype, [_size(size["as_int"]) for size in meta["sizes"]])


# ScalarType of torch/_export/serde/schema.py, by its numbers.
_SCALAR_TYPES = (
    "unknown", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "complex32", "complex64",
    "complex128", "bool", "bfloat16",
)  # fmt: skip


def _safetensors(file: BinaryIO, found: Inspection) -> None:
    found.format = "safetensors"
    nbytes = int.from_bytes(file.read(8), "little")
    if nbytes > _MAX_INDEX_BYTES:
        raise ValueError(f"a header of {nbytes} bytes")
    header = json.loads(file.read(nbytes))
    texts = header.pop("__metadata__", {})
    if not isinstance(texts, dict):
        raise ValueError("__metadata__ is no object")  # noqa: TRY004 - of the file, not of an argument
    for name, text in texts.items():
        if name.startswith(KEY_PREFIX):
            found.metadata[name.removeprefix(KEY_PREFIX)] = str(text)
        else:
            found.extra[name] = str(text)
    found.tensors = [
        TensorEntry(name, str(entry["dtype"]), [_size(size) for size in entry["shape"]])
        for name, entry in header.items()
    ]


def _size(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"a size of {value!r:.40}")
    return value


def _extra(name: str, data: bytes, found: Inspection) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = f"({len(data)} bytes that are no text)"
    if name == EXTRA_FILE:
        fields = json.loads(text)
        if isinstance(fields, dict) and all(isinstance(value, str) for value in fields.values()):
            found.metadata = fields
            return
    found.extra[name] = text


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int, *, cut: bool = False) -> bytes:
    """Return the content of an entry, whatever size it claims to have.

    Raises:
        ValueError: It is longer than `limit`, and not to be cut there.
    """
    with archive.open(info) as entry:
        data = entry.read(limit + 1)
    if len(data) > limit and not cut:
        raise ValueError(f"{info.filename!r:.200} has more than {limit} bytes")
    return data[:limit]


def _imports(file: BinaryIO, pickles: int) -> Iterator[str]:
    """List what some pickles, one after the other, would import, from their instructions alone."""
    data = io.BytesIO(file.read(_MAX_PICKLE_BYTES))
    for number in range(pickles):
        try:
            yield from _imports_of(data)
        except Exception as error:  # pickletools raises whatever the bytes lead to
            if number == 0:
                raise ValueError(f"a pickle that breaks off: {error}") from error
            return  # where the pickles end, the tensors begin


def _imports_of(data: io.BytesIO) -> Iterator[str]:
    texts: list[str] = []  # as they were pushed
    memo: dict[int, str] = {}
    last: str | None = None
    for code, argument, _ in pickletools.genops(data):
        name = code.name
        if name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".", 1)
        elif name == "STACK_GLOBAL":
            yield ".".join(texts[-2:]) if len(texts) > 1 else "?"
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            place = len(memo) if name == "MEMOIZE" else int(argument or 0)
            memo[place] = last if last is not None else "?"
        elif "GET" in name:
            texts.append(memo.get(int(argument or 0), "?"))
        elif isinstance(argument, str):
            texts.append(argument)
        last = argument if isinstance(argument, str) and name not in ("GLOBAL", "INST") else None
