"""What an image's header says of its size, and what a hostile one does not."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane import content_types, image_sizes

EXIF = b"\xff\xe1" + struct.pack(">H", 60_002) + b"Exif" + bytes(59_996)
FRAME = b"\xff\xc2\x00\x11\x08" + struct.pack(">HH", 480, 640)

WEBP = b"RIFF\x00\x00\x00\x00WEBP"

IMAGES = {
    "image/png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
    + struct.pack(">II", 640, 480)
    + b"\x08\x06\x00\x00\x00",
    "image/jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(9) + FRAME,
    "image/gif": b"GIF89a" + struct.pack("<HH", 640, 480),
    "image/webp": WEBP + b"VP8X\n\x00\x00\x00" + bytes(4) + b"\x7f\x02\x00\xdf\x01\x00",
    "image/svg+xml": b'<?xml version="1.0"?>\n<svg width="640" height="480px" viewBox="0 0 1 1"/>',
}


@pytest.mark.parametrize("content_type", IMAGES)
def test_a_size_is_read_from_the_header(content_type: str) -> None:
    assert content_types.is_of(content_type, IMAGES[content_type])
    assert image_sizes.size_of(content_type, IMAGES[content_type]) == (640, 480)


@pytest.mark.parametrize(
    ("content_type", "head", "size"),
    [
        ("image/webp", WEBP + b"VP8 " + bytes(4) + b"\x30\x01\x00\x9d\x01\x2a\x80\x42\xe0\x81", (640, 480)),
        ("image/webp", WEBP + b"VP8L\x00\x00\x00\x00\x2f\x7f\xc2\x77\x00", (640, 480)),
        ("image/jpeg", b"\xff\xd8" + EXIF * 3 + b"\xff\xff\xff" + FRAME, (640, 480)),
        ("image/svg+xml", b"<svg\n viewBox='0 0 24.5 12' />", (24, 12)),
        ("image/svg+xml", b'<svg width="100%" height="100%" viewBox="0,0,640,480">', (640, 480)),
        ("image/svg+xml", b'<svg width="100%">', None),
        ("image/svg+xml", b'<svg width="9999999999" height="1">', None),
        ("image/svg+xml", b'<svg viewBox="0 0 1.2.3 4">', None),
        ("image/svg+xml", b"<svg " + b"viewBox" * 500, None),
        ("image/png", IMAGES["image/png"][:20], None),
        ("image/png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", 2**32 - 1, 1), None),
        ("image/png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIDAT" + bytes(20), None),
        ("image/gif", b"GIF89a\x00\x00\x01\x00", None),
        ("image/jpeg", b"\xff\xd8\xff\xe0\x00\x00" + FRAME, None),  # a segment that would be read for ever
        ("image/jpeg", b"\xff\xd8" + b"\xff" * 10_000, None),
        ("image/jpeg", b"\xff\xd8\xff\xe0\xff\xff", None),
        ("image/jpeg", b"\xff\xd8\xff\xc4\x00\x02" + FRAME, (640, 480)),
        ("image/jpeg", b"\xff\xd8\xff\xc0\x00\x11\x08\x00", None),
        ("image/jpeg", b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x00\x00\x01", None),  # its height comes later
        ("image/x-icon", b"\x00\x00\x01\x00\x01\x00\x10\x10", None),
        ("text/plain", b"plain", None),
    ],
)  # fmt: skip
def test_what_does_not_tell_its_size_has_none(
    content_type: str, head: bytes, size: tuple[int, int] | None
) -> None:
    assert image_sizes.size_of(content_type, head) == size


@given(st.sampled_from(sorted(IMAGES)), st.binary(max_size=200), st.integers(min_value=0, max_value=60))
def test_no_header_breaks_the_reader(content_type: str, noise: bytes, kept: int) -> None:
    for head in (noise, IMAGES[content_type][:kept] + noise):
        size = image_sizes.size_of(content_type, head)
        assert size is None or (0 < size.width <= image_sizes.MOST and 0 < size.height <= image_sizes.MOST)
