"""Keys that leaked: what reporters found in public, and the key that its holder revokes."""

import hashlib
import json

from flask import Blueprint, Flask, Response, current_app, request

from convene_keys import limits
from convene_keys.config import Settings
from convene_keys.errors import Malformed
from convene_keys.http.access import Access, access, origin, settings
from convene_keys.http.answers import Answer
from convene_keys.http.extensions import csrf
from convene_keys.http.key_app import KeyApp, KeyRequest
from convene_keys.http.request_body import raw_json
from convene_keys.leaks import reports as leaks_reports
from convene_keys.leaks.signatures import PublicKeys, is_signed
from convene_keys.operations import runner, table

BODY_MAX = 8 * 1024 * 1024  # 10,000 findings of 800 bytes

reports = Blueprint("reports", __name__)


def init_app(app: Flask, key_app: KeyApp) -> None:
    configured: Settings = app.config["SETTINGS"]
    key_app.add(table.ROOT + table.SELF_REVOKE, "burning.burn", burn, ["POST"])
    if configured.leak_report_keys_url is None:
        return  # then there is nothing at that address
    app.extensions["leak_reporters"] = PublicKeys(configured.leak_report_keys_url)
    app.register_blueprint(reports)
    csrf.exempt(reports)  # a report is signed


def burn(request: KeyRequest) -> Answer:
    runner.self_revoke(request.caller)
    return _json({"status": "revoked"})


@reports.post("/api/v1/leaks", provide_automatic_options=False)
@access(Access.PUBLIC)
def report() -> Response:
    """In the form of GitHub's secret scanning partner program, the answer's feedback included."""
    network = origin().network
    limits.current().check_network(network, "")
    try:
        body = _signed_body()
    except Malformed:
        limits.current().count_failure(network)
        raise
    findings = leaks_reports.read(body)
    real = leaks_reports.report(findings, origin(), settings().key_peppers)
    answer = _json(
        [
            {
                "token_hash": hashlib.sha256(token.encode()).hexdigest(),
                "token_type": kind,
                "label": "true_positive" if token in real else "false_positive",
            }
            for token, kind in dict.fromkeys((one.token, one.type) for one in findings)
        ]
    )
    return answer.as_response()


def _signed_body() -> bytes:
    """The body, once its signature is known to be a reporter's. Raises `Malformed`."""
    identifier = request.headers.get("Github-Public-Key-Identifier")
    signature = request.headers.get("Github-Public-Key-Signature")
    if not identifier or not signature:
        raise Malformed("The report is not signed.", code="signature_missing")
    reporters: PublicKeys = current_app.extensions["leak_reporters"]
    public_key = reporters.find(identifier)
    if public_key is None:  # and the body stays unread
        raise Malformed("No reporter has this key.", code="signature_key_unknown")
    body = raw_json(request, BODY_MAX)
    if not is_signed(body, signature, public_key):
        raise Malformed("The signature is not a reporter's.", code="signature_invalid")
    return body


def _json(told: object) -> Answer:
    return Answer(json.dumps(told).encode())
