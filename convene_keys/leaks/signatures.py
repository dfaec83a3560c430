"""Who may report leaked keys: reporters' public keys, and whether one of them signed a report.

The form is that of GitHub's secret scanning partner program ("Implement signature verification").
"""

import base64
import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from typing import Annotated
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pydantic import BaseModel, Field

from convene_keys import clock

FRESH_FOR = timedelta(hours=1)
ASKED_EVERY = timedelta(minutes=1)  # at the most, whoever comes with whatever identifier
TIMEOUT = 5.0  # seconds
ANSWER_MAX = 256 * 1024

log = logging.getLogger(__name__)


class _PublicKey(BaseModel):
    key_identifier: str = Field(min_length=1, max_length=200)
    key: str = Field(max_length=2_000)
    is_current: bool


class _Answer(BaseModel):
    public_keys: Annotated[list[_PublicKey], Field(min_length=1, max_length=100)]


class PublicKeys:
    """The public keys that `url` tells, kept in this process.

    When it can't be asked, the last ones that it told stay good, however old: who has a public
    key's other half can only end keys that it holds.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._known: dict[str, str] = {}
        self._fetched_at = self._asked_at = datetime.min.replace(tzinfo=UTC)
        self._lock = threading.Lock()

    def find(self, identifier: str) -> str | None:
        """The public key that goes by `identifier` now, in PEM; None when no current one does."""
        # Who comes with a known one does not wait while another asks.
        if self._is_due(identifier) and self._lock.acquire(blocking=identifier not in self._known):
            try:
                if self._is_due(identifier):
                    self.refresh()
            finally:
                self._lock.release()
        return self._known.get(identifier)

    def refresh(self) -> str | None:
        """Ask for the keys anew; what went wrong, or None. Then the ones known before stay."""
        try:
            told = _Answer.model_validate_json(_fetch(self._url)).public_keys
        except (OSError, ValueError, HTTPException) as error:
            self._asked_at = clock.now()
            log.warning("leak reporters' public keys can't be had (%s)", type(error).__name__)
            return type(error).__name__
        self._known = {one.key_identifier: one.key for one in told if one.is_current}
        self._fetched_at = self._asked_at = clock.now()
        return None

    def __len__(self) -> int:
        return len(self._known)

    def _is_due(self, identifier: str) -> bool:
        # abs: a clock that was set back must not stop the asking.
        now = clock.now()
        if abs(now - self._asked_at) < ASKED_EVERY:
            return False
        return identifier not in self._known or abs(now - self._fetched_at) >= FRESH_FOR


def is_signed(body: bytes, signature: str, public_key: str) -> bool:
    """Whether `signature` is the holder's of this public key over these very bytes.

    It is ECDSA on P-256 over SHA-256, in base64 of DER; `public_key` is in PEM.
    """
    # 6 MiB that only those pay who take reports.
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(public_key.encode())
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            return False
        key.verify(base64.b64decode(signature, validate=True), body, ec.ECDSA(SHA256()))
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def _fetch(url: str) -> bytes:
    """What is at `url`. Raises `OSError`, `HTTPException`, or `ValueError` for too much of it."""
    end = time.monotonic() + TIMEOUT
    request = Request(url, headers={"Accept": "application/json", "User-Agent": "convene-keys"})  # noqa: S310  the setting is http or https
    body = b""
    with build_opener(_NoRedirects).open(request, timeout=TIMEOUT) as answer:
        while part := answer.read1(65_536):
            body += part
            if len(body) > ANSWER_MAX:
                raise ValueError("the answer is too large")
            if time.monotonic() > end:
                raise TimeoutError
    return body
