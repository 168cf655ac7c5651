"""How people write ages and sizes on the command line, and how they are shown to them: `30d`, `10GB`."""

from __future__ import annotations

import re
from datetime import datetime, timezone

import typer

__all__ = ["ago", "lasting", "seconds_of", "size", "size_of"]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
          "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])", re.ASCII | re.IGNORECASE)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", re.ASCII | re.IGNORECASE)


def seconds_of(text: str) -> float:
    """Return how many seconds `30d`, `12h`, `90m`, `45s` or `2w` are.

    Raises:
        BadParameter: It is none of these.
    """
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no age: write 45s, 90m, 12h, 30d or 2w.")
    return float(match[1]) * _SECONDS[match[2].lower()]


def size_of(text: str) -> int:
    """Return how many bytes `500`, `500MB`, `10GB` or `10GiB` are.

    Raises:
        BadParameter: It is none of these.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = None if match is None else _BYTES.get(match[2].lower())
    if match is None or unit is None:
        raise typer.BadParameter(f"{text!r} is no size: write 500MB, 10GB, 10GiB, or a number of bytes.")
    return int(float(match[1]) * unit)


def size(nbytes: int) -> str:
    """Return a size as people read it: `1.2 GB`."""
    from rich.filesize import decimal

    return decimal(nbytes)


def ago(moment: datetime) -> str:
    """Return how long ago something was: `now`, `5 min`, `3 h`, `12 d`."""
    age_s = (datetime.now(timezone.utc) - moment).total_seconds()
    return lasting(age_s) if age_s >= 60 else "now"


def lasting(time_s: float) -> str:
    """Return a time as people read it: `7 s`, `5 min`, `3 h`, `12 d`."""
    for unit, seconds in (("d", 86_400), ("h", 3600), ("min", 60)):
        if time_s >= seconds:
            return f"{int(time_s // seconds)} {unit}"
    return f"{int(time_s)} s"
