"""The yardstick: a Flask view that answers ten bookings and asks nobody who is calling."""

from typing import Any

from flask import Flask, jsonify

BOOKING: dict[str, Any] = {
    "id": 123,
    "status": "pending",
    "paid": False,
    "market_date_id": 1,
    "date": "2026-12-05",
    "market_id": 1,
    "market_name": "Old Harbour Market",
    "vendor_id": 1,
    "vendor_name": "Green Acre Farm",
    "stall": "A3",
    "amount": 4500,
    "currency": "EUR",
    "reason": "",
    "created_at": "2026-11-24T09:02:00.000Z",
    "decided_at": None,
}
BODY = {"data": [BOOKING] * 10, "next_cursor": None}

app = Flask(__name__)


@app.get("/bookings")
def bookings() -> Any:
    return jsonify(BODY)
