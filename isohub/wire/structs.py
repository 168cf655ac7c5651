"""`Struct`: msgspec's, or a stand-in of the standard library where msgspec is not installed.

A worker may run in an interpreter that has torch but not msgspec. The parent always has msgspec, so
the parent's decoder always checks types; the stand-in only has to write what the parent reads and to
read what the (trusted) parent wrote. Both write the same bytes, which `tests/unit/wire` compares.
"""

from __future__ import annotations

__all__ = ["Struct", "decode_as", "encode", "replace"]

try:
    import msgspec
    from msgspec import Struct
    from msgspec.structs import replace

    _encoder = msgspec.json.Encoder()

    def encode(message: Struct) -> bytes:
        """Return `message` as JSON."""
        return _encoder.encode(message)

    def decode_as(kind: object) -> msgspec.json.Decoder[object]:
        """Return a decoder of JSON that accepts exactly `kind`, a Struct class or a union of them."""
        return msgspec.json.Decoder(kind)

except ImportError:  # pragma: no cover - chosen in tests by a fresh interpreter without msgspec
    from isohub.wire.stdlib_structs import Struct, decode_as, encode, replace  # type: ignore[assignment]
