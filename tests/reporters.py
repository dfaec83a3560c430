"""A leak reporter as GitHub is one: it signs what it sends, and a server tells its public keys."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

# What GitHub's documentation shows ("Secret scanning partner program", Sample HTTP POST), and the
# public keys of that time.
SAMPLE = (
    b'[{"source":"commit","token":"some_token","type":"some_type",'
    b'"url":"https://example.com/base-repo-url/"}]'
)
SAMPLE_IDENTIFIER = "bcb53661c06b4728e59d897fb6165d5c9cda0fd9cdf9d09ead458168deb7518c"
SAMPLE_SIGNATURE = "MEQCIQDaMKqrGnE27S0kgMrEK0eYBmyG0LeZismAEz/BgZyt7AIfXt9fErtRS4XaeSt/AO1RtBY66YcAdjxji410VQV4xg=="
SAMPLE_KEY = """-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEYAGMWO8XgCamYKMJS6jc/qgvSlAd
AjPuDPRcXU22YxgBrz+zoN19MzuRyW87qEt9/AmtoNP5GrobzUvQSyJFVw==
-----END PUBLIC KEY-----
"""


class Reporter:
    """Who has a private key, and an identifier by which its public key goes."""

    def __init__(self, identifier: str, curve: ec.EllipticCurve | None = None) -> None:
        self.identifier = identifier
        self.private = ec.generate_private_key(curve or ec.SECP256R1())
        self.current = True

    @property
    def public(self) -> dict[str, Any]:
        pem = self.private.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        return public_key(self.identifier, pem.decode(), self.current)

    def sign(self, body: bytes, algorithm: hashes.HashAlgorithm | None = None) -> bytes:
        return self.private.sign(body, ec.ECDSA(algorithm or hashes.SHA256()))

    def headers(self, body: bytes) -> dict[str, str]:
        return signed(self.identifier, base64.b64encode(self.sign(body)).decode())


def signed(identifier: str, signature: str) -> dict[str, str]:
    return {
        "Github-Public-Key-Identifier": identifier,
        "Github-Public-Key-Signature": signature,
    }


def public_key(identifier: str, key: str, is_current: bool = True) -> dict[str, Any]:
    return {"key_identifier": identifier, "key": key, "is_current": is_current}


class KeyServer:
    """A real server on loopback, which may be slow, redirect, or tell nonsense."""

    def __init__(self, *reporters: Reporter) -> None:
        self.asked = 0
        self.status, self.headers, self.pause = 200, {"Content-Type": "application/json"}, 0.0
        self.tell(*(one.public for one in reporters))
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                half = len(outer.body) // 2
                for part in (outer.body[:half], outer.body[half:]):
                    try:
                        self.wfile.write(part)
                        self.wfile.flush()
                    except OSError:  # who asked has had enough
                        return
                    time.sleep(outer.pause)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/meta/public_keys"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def tell(self, *public_keys: dict[str, Any]) -> None:
        self.body = json.dumps({"public_keys": public_keys, "more": "to come"}).encode()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.stop()

    def stop(self) -> None:
        """Be down from now on."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
