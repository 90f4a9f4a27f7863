"""Which types of content may be uploaded, and whether an object's first bytes are of the type it claims.

Signatures are those of the WHATWG's MIME sniffing standard (mimesniff.spec.whatwg.org) where it has them.
Text has none: it is what decodes as UTF-8 and holds no control characters that no text does.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

HEAD: Final = 4096  # bytes from the start that are looked at

_BINARY: Final = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def _begins(*signatures: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(signatures)


def _riff(kind: bytes) -> Callable[[bytes], bool]:
    return lambda head: head[:4] == b"RIFF" and head[8:12] == kind


def _media(*brands: bytes) -> Callable[[bytes], bool]:
    """ISO base media: a first box `ftyp` that names what the file is."""
    return lambda head: head[4:8] == b"ftyp" and head[8:12] in brands


def _is_text(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if len(head) < HEAD or error.start < len(head) - 3:  # a letter may be cut off at the end
            return False
    return _BINARY.search(head) is None


def _is_svg(head: bytes) -> bool:
    return _is_text(head) and re.search(rb"<svg[\s>]", head) is not None


TYPES: Final[Mapping[str, Callable[[bytes], bool]]] = {
    "image/png": _begins(b"\x89PNG\r\n\x1a\n"),
    "image/jpeg": _begins(b"\xff\xd8\xff"),
    "image/gif": _begins(b"GIF87a", b"GIF89a"),
    "image/webp": _riff(b"WEBP"),
    "image/avif": _media(b"avif", b"avis"),
    "image/heic": _media(b"heic", b"heix", b"mif1"),
    "image/svg+xml": _is_svg,
    "image/x-icon": _begins(b"\x00\x00\x01\x00"),
    "application/pdf": _begins(b"%PDF-"),
    "application/json": _is_text,
    "application/zip": _begins(b"PK\x03\x04", b"PK\x05\x06"),
    "audio/mpeg": _begins(b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2"),
    "audio/ogg": _begins(b"OggS"),
    "audio/wav": _riff(b"WAVE"),
    "video/mp4": _media(
        b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1", b"M4V ", b"dash"
    ),
    "video/webm": _begins(b"\x1a\x45\xdf\xa3"),
    "font/woff": _begins(b"wOFF"),
    "font/woff2": _begins(b"wOF2"),
    "font/ttf": _begins(b"\x00\x01\x00\x00", b"true"),
    "font/otf": _begins(b"OTTO"),
    "text/plain": _is_text,
    "text/css": _is_text,
    "text/csv": _is_text,
    "text/markdown": _is_text,
}


def is_of(content_type: str, head: bytes) -> bool:
    """Whether these first bytes, HEAD of them or all there are, can be of that type."""
    looks_right = TYPES.get(content_type)
    return looks_right is not None and looks_right(head)
