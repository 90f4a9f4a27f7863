"""Downloads from addresses that others name: whole or not at all, and never from within."""

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.artefacts import CONTENT, HERE, TYPE, Artefacts

from backplane import downloads
from backplane.downloads import PUBLIC, BrokenOffError, Reach, RefusedError

MORE = len(CONTENT) + 1


@pytest.fixture(scope="module")
def artefacts() -> Iterator[Artefacts]:
    with Artefacts() as server:
        yield server


def fetch(url: str, *, limit: int = MORE, seconds: float = 60.0, reach: Reach = HERE) -> bytes:
    with downloads.get(url, limit=limit, ends=time.monotonic() + seconds, reach=reach) as found:
        return b"".join(found.blocks())


# ---- whole or not at all ----


@pytest.mark.parametrize("path", ["/whole", "/chunked"])
def test_what_comes_whole_is_as_it_was_sent(artefacts: Artefacts, path: str) -> None:
    assert fetch(artefacts.url(path)) == CONTENT


def test_type_and_length_are_told_before_anything_is_read(artefacts: Artefacts) -> None:
    with downloads.get(artefacts.url("/whole"), limit=MORE, ends=time.monotonic() + 60, reach=HERE) as found:
        assert (found.content_type, found.length) == (TYPE, len(CONTENT))


@pytest.mark.parametrize(
    ("path", "error", "reason"),
    [
        ("/cut", BrokenOffError, "it ended after"),
        ("/cut-chunks", BrokenOffError, "it broke off"),
        (f"/claims?{len(CONTENT) + 1}", BrokenOffError, "it ended after"),
        (f"/claims?{10**12}", RefusedError, f"it has {10**12} bytes"),
        (f"/claims?{'9' * 40}", RefusedError, "no length that can be read"),
        ("/claims?-1", RefusedError, "no length that can be read"),
        ("/claims?1e9", RefusedError, "no length that can be read"),
        ("/endless", RefusedError, "more than"),
        ("/until-the-end", RefusedError, "does not say how long"),
        ("/encoded", RefusedError, "compresses"),
        ("/flaky", BrokenOffError, "answered 503"),
        ("/missing", RefusedError, "answered 404"),
        ("/nowhere", RefusedError, "without saying where"),
    ],
)
def test_what_does_not_is_refused_or_tried_again(
    artefacts: Artefacts, path: str, error: type[Exception], reason: str
) -> None:
    artefacts.fails = 1
    with pytest.raises(error, match=reason) as told:
        fetch(artefacts.url(path))
    assert "http" not in str(told.value)


def test_what_drips_is_cut_when_the_time_is_up(artefacts: Artefacts) -> None:
    with pytest.raises(BrokenOffError):
        fetch(artefacts.url("/drip"), seconds=0.5)


def test_nobody_there_may_pass() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(BrokenOffError, match="can't be reached"):
        fetch(f"http://127.0.0.1:{port}/")


# ---- never from within ----

PRIVATE = [
    "127.0.0.1",
    "127.8.9.10",
    "0.0.0.0",  # noqa: S104  an address to refuse
    "10.1.2.3",
    "100.64.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "192.168.1.1",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a00:1",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::1",
    "2001:db8::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_no_address_of_a_private_network_is_reached(address: str) -> None:
    assert not PUBLIC.allows(address)
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(RefusedError):
        fetch(f"https://{host}/", reach=PUBLIC)


@pytest.mark.parametrize("address", ["1.1.1.1", "140.82.112.3", "2606:4700::6810:84e5", "2a00:1450::200e"])
def test_addresses_of_the_internet_are(address: str) -> None:
    assert PUBLIC.allows(address)


@pytest.mark.parametrize(
    "url",
    [
        "https://0x7f.1/",
        "https://2130706433/",
        "https://127.1/",
        "https://localhost/",
        "https://0251.0376.0251.0376/",
    ],
)
def test_nor_under_another_way_of_writing_it(url: str) -> None:
    with pytest.raises(RefusedError, match="not on the public internet"):
        fetch(url, reach=PUBLIC)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "expo.dev/artifacts",
        "file:///etc/passwd",
        "http://expo.dev/a",
        "ftp://expo.dev/a",
        "gopher://expo.dev/a",
        "https:///a",
        "https://user:password@expo.dev/a",
        "https://expo.dev:8443/a",
        "https://expo.dev:99999/a",
        "https://expo.dev:x/a",
        "https://[::1/a",
        "https://expo.dev/a b",
        "https://expo.dev/a\r\nx-injected: 1",
        "https://expo.dev/\x00",
        "https://expó.dev/a",
        "https://" + "a" * 64 + ".dev/a",
        "https://expo..dev/a",
        "https://expo.dev/" + "a" * 5000,
    ],
)
def test_an_address_that_is_not_one_of_https_is_refused_before_anybody_is_asked(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("nobody is to be connected to")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(RefusedError):
        fetch(url, reach=PUBLIC)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "169.254.169.254", "10.0.0.1", "[::1]", "[fd00:ec2::254]"]
)
def test_a_redirect_is_judged_like_the_first_address(
    artefacts: Artefacts, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first hop may be reached, the second may not."""
    asked = []

    class FirstOnly(Reach):
        def allows(self, address: str) -> bool:
            asked.append(address)
            return len(asked) == 1

    with pytest.raises(RefusedError, match="not on the public internet"):
        fetch(artefacts.url(f"/to?https://{address}/"), reach=FirstOnly(loopback=True))
    assert len(asked) == 2


def test_a_redirect_is_followed_to_where_it_may_and_not_in_a_circle(artefacts: Artefacts) -> None:
    assert fetch(artefacts.url(f"/to?{artefacts.url('/whole')}")) == CONTENT
    assert fetch(artefacts.url("/to?/whole")) == CONTENT
    with pytest.raises(RefusedError, match="redirected more than"):
        fetch(artefacts.url("/circle"))


def test_this_machine_is_not_reached_unless_a_test_says_so(artefacts: Artefacts) -> None:
    with pytest.raises(RefusedError, match="not one of HTTPS"):
        fetch(artefacts.url("/whole"), reach=PUBLIC)


def test_a_name_is_resolved_once_and_what_was_judged_is_what_is_reached(
    artefacts: Artefacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that answers a public address first and a private one then: the connection knows the first."""
    answers = iter(["203.0.114.7", "127.0.0.1"])
    connected: list[str] = []

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(address: tuple[str, int], timeout: float) -> Any:
        connected.append(address[0])
        raise OSError("not in a test")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(BrokenOffError):
        fetch("https://rebind.example.com/", reach=PUBLIC)
    assert connected == ["203.0.114.7"]


def test_a_name_with_one_private_address_among_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("203.0.114.7", "10.0.0.1")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(RefusedError, match="not on the public internet"):
        fetch("https://both.example.com/", reach=PUBLIC)
