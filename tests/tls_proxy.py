"""TLS before a PostgreSQL server that has none: answers SSLRequest as a server does, then passes on."""

import datetime as dt
import ipaddress
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.wire import SSL_REQUEST, error_response


def certificate(folder: Path, address: str = "127.0.0.1", *, days: int = 1) -> tuple[Path, Path]:
    """A self-signed one for an address, and its key. With negative days it has expired."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=9))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / f"{address}.pem", folder / f"{address}.key"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return public, private


class TlsProxy:
    """Between clients that want TLS and the server of `upstream`."""

    def __init__(self, upstream: str, certificate: Path, key: Path) -> None:
        self._upstream = urlsplit(upstream)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self.encrypted = 0  # connections

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            if client.recv(8, socket.MSG_WAITALL) != SSL_REQUEST:
                return  # whoever would speak in the clear is not served
            client.sendall(b"S")
            try:
                encrypted = self._context.wrap_socket(client, server_side=True)
            except OSError:  # the client did not trust us
                return
            self.encrypted += 1
            with encrypted, suppress(OSError):
                self._relay(encrypted)

    def _relay(self, client: ssl.SSLSocket) -> None:
        address = (str(self._upstream.hostname), self._upstream.port or 5432)
        with socket.create_connection(address) as server:
            between(client, server)


class TokenServer(TlsProxy):
    """As RDS where it takes IAM tokens: asks for the password in the clear, inside TLS, and lets in whoever's
    `check(user, password)` holds. Its sessions are those of `upstream`'s login.
    """

    def __init__(
        self, upstream: str, certificate: Path, key: Path, check: Callable[[str, str], bool]
    ) -> None:
        super().__init__(upstream, certificate, key)
        self._url, self._check = upstream, check

    def _relay(self, client: ssl.SSLSocket) -> None:
        startup = _read(client, struct.unpack("!i", _read(client, 4))[0] - 4)[4:].split(b"\0")
        user = dict(zip(startup[::2], startup[1::2], strict=False))[b"user"].decode()
        client.sendall(_message(b"R", struct.pack("!i", 3)))
        _read(client, 1)
        password = _read(client, struct.unpack("!i", _read(client, 4))[0] - 4)[:-1].decode()
        if not self._check(user, password):
            client.sendall(error_response("28000", text=f'PAM authentication failed for user "{user}"'))
            return
        with psycopg.connect(self._url, autocommit=True) as session:
            client.sendall(_message(b"R", struct.pack("!i", 0)))
            for name in ("server_version", "client_encoding", "standard_conforming_strings", "is_superuser"):
                value = session.info.parameter_status(name) or ""
                client.sendall(_message(b"S", f"{name}\0{value}\0".encode()))
            client.sendall(_message(b"Z", b"I"))
            with socket.socket(fileno=os.dup(session.fileno())) as server:
                server.setblocking(True)
                between(client, server)


def _message(letter: bytes, body: bytes) -> bytes:
    return letter + struct.pack("!i", len(body) + 4) + body


def _read(client: ssl.SSLSocket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (more := client.recv(count - len(data))):
            raise ConnectionError("the client has gone")
        data += more
    return data


def between(client: ssl.SSLSocket, server: socket.socket) -> None:
    """Passes on what either says until one has gone."""
    back = threading.Thread(target=_pump, args=(server, client), daemon=True)
    back.start()
    _pump(client, server)
    back.join(30)


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return
