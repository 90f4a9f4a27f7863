"""How wide and high an image is, as its header says: PNG, JPEG, GIF, WebP, and SVG where it is in pixels.

The header is a stranger's: what makes no sense has no size, and nothing is decoded. A JPEG is as it is
stored, whichever way its EXIF turns it.

Sources: PNG (W3C, 11.2.1), GIF89a 18, JPEG (ITU-T T.81, B.1 and B.2.2), WebP (RFC 9649, 2.5 to 2.7).
"""

import re
import struct
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from backplane import content_types

JPEG_HEAD: Final = 256 * 1024  # bytes: metadata and a thumbnail come before the size, 64 KiB each
MOST: Final = 2**31 - 1  # pixels; what PNG allows

_NO_FRAMES: Final = frozenset({0xC4, 0xC8, 0xCC})  # among the markers of frames: tables, and one reserved
_SVG: Final = re.compile(rb"<svg\b[^>]*>")
_SVG_LENGTH: Final = rb"""\s%s\s*=\s*["']\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)(?:px)?\s*["']"""
_SVG_BOX: Final = re.compile(
    rb"""\sviewBox\s*=\s*["'][0-9.+\-]{1,20}[\s,]+[0-9.+\-]{1,20}[\s,]+([0-9.]{1,20})[\s,]+([0-9.]{1,20})\s*["']"""
)


class Size(NamedTuple):
    width: int
    height: int


def head_of(content_type: str) -> int:
    """How many bytes from the start must be looked at."""
    return JPEG_HEAD if content_type == "image/jpeg" else content_types.HEAD


def size_of(content_type: str, head: bytes) -> Size | None:
    """None: these bytes don't tell."""
    reader = _READERS.get(content_type)
    try:
        size = reader(head) if reader else None
    except (struct.error, ValueError):  # cut short, or no number
        return None
    return size if size and 0 < size.width <= MOST and 0 < size.height <= MOST else None


def _png(head: bytes) -> Size | None:
    return Size(*struct.unpack_from(">II", head, 16)) if head[12:16] == b"IHDR" else None


def _gif(head: bytes) -> Size:
    return Size(*struct.unpack_from("<HH", head, 6))


def _webp(head: bytes) -> Size | None:
    match head[12:16]:
        case b"VP8 " if head[23:26] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", head, 26)
            return Size(width & 0x3FFF, height & 0x3FFF)
        case b"VP8L" if head[20:21] == b"\x2f":
            (bits,) = struct.unpack_from("<I", head, 21)
            return Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        case b"VP8X" if len(head) >= 30:  # noqa: PLR2004  where the canvas ends
            return Size(int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1)
    return None


def _jpeg(head: bytes) -> Size | None:
    """Walks from segment to segment, each at least two bytes on."""
    at = 2
    while at + 4 <= len(head) and head[at] == 0xFF:  # noqa: PLR2004  a marker begins
        marker = head[at + 1]
        if marker == 0xFF:  # noqa: PLR2004  a byte that fills
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES:  # noqa: PLR2004  a frame begins
            height, width = struct.unpack_from(">HH", head, at + 5)
            return Size(width, height)
        else:
            (length,) = struct.unpack_from(">H", head, at + 2)
            if length < 2:  # noqa: PLR2004  it counts itself
                return None
            at += 2 + length
    return None


def _svg(head: bytes) -> Size | None:
    root = _SVG.search(head)
    if root is None:
        return None
    said = [re.search(_SVG_LENGTH % name, root[0]) for name in (b"width", b"height")]
    if said[0] and said[1]:
        return Size(round(float(said[0][1])), round(float(said[1][1])))
    box = _SVG_BOX.search(root[0])
    return Size(round(float(box[1])), round(float(box[2]))) if box else None


_READERS: Final[Mapping[str, Callable[[bytes], Size | None]]] = {
    "image/png": _png,
    "image/jpeg": _jpeg,
    "image/gif": _gif,
    "image/webp": _webp,
    "image/svg+xml": _svg,
}
