"""What an upload's first bytes say of its type."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane import content_types

BEGINNINGS = {
    "image/png": b"\x89PNG\r\n\x1a\n\x00",
    "image/jpeg": b"\xff\xd8\xff\xe0",
    "image/gif": b"GIF89a",
    "image/webp": b"RIFF\x00\x00\x00\x00WEBPVP8 ",
    "image/avif": b"\x00\x00\x00\x20ftypavif",
    "image/heic": b"\x00\x00\x00\x18ftypheic",
    "image/svg+xml": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "image/x-icon": b"\x00\x00\x01\x00\x01",
    "application/pdf": b"%PDF-1.7",
    "application/json": b'{"a": "\xc3\xa9"}',
    "application/zip": b"PK\x03\x04",
    "audio/mpeg": b"ID3\x04",
    "audio/ogg": b"OggS\x00",
    "audio/wav": b"RIFF\x00\x00\x00\x00WAVEfmt ",
    "video/mp4": b"\x00\x00\x00\x20ftypisom",
    "video/webm": b"\x1a\x45\xdf\xa3",
    "font/woff": b"wOFF",
    "font/woff2": b"wOF2",
    "font/ttf": b"\x00\x01\x00\x00",
    "font/otf": b"OTTO",
    "text/plain": b"plain",
    "text/css": b"a { }",
    "text/csv": b"a,b\r\n",
    "text/markdown": b"# A",
}
TEXTS = {"application/json", "text/plain", "text/css", "text/csv", "text/markdown"}


@pytest.mark.parametrize("content_type", content_types.TYPES)
def test_a_type_is_known_by_its_beginning_and_others_are_not_taken_for_it(content_type: str) -> None:
    for other, head in BEGINNINGS.items():
        expected = other == content_type or (
            content_type in TEXTS
            and other
            in TEXTS
            | {"image/svg+xml", "application/pdf", "image/gif", "font/woff", "font/woff2", "font/otf"}
        )
        assert content_types.is_of(content_type, head) is expected, other
    assert content_types.is_of(content_type, b"MZ\x90\x00\x03") is False
    assert content_types.is_of(content_type, b"") is (content_type in TEXTS)


def test_a_type_that_is_not_listed_is_nothings() -> None:
    assert not content_types.is_of("text/html", b"<html>")


def test_a_letter_may_be_cut_off_where_the_look_ends_and_nowhere_else() -> None:
    head = ("é" * content_types.HEAD).encode()
    for odd in (b"", b"a"):
        assert content_types.is_of("text/plain", (odd + head)[: content_types.HEAD])
    assert not content_types.is_of("text/plain", b"\xc3")
    assert not content_types.is_of("text/plain", b"\xff" + head[: content_types.HEAD - 1])


@given(st.sampled_from(sorted(content_types.TYPES)), st.binary(max_size=64))
def test_any_bytes_are_judged(content_type: str, head: bytes) -> None:
    assert content_types.is_of(content_type, head) in {True, False}
