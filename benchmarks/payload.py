"""What every measurement sends: a payload of 205 bytes of JSON, and the model of it."""

import json
from typing import Any

GROUP = "bench"
DRAIN_TOPIC = "bench.drain"
LATENCY_TOPIC = "bench.latency"

PAYLOAD: dict[str, Any] = {
    "order_id": 1234567,
    "customer": {"id": 99, "name": "Ada Lovelace", "email": "ada@example.org"},
    "total": 119.95,
    "currency": "EUR",
    "items": [{"sku": "A-1001", "quantity": 2}, {"sku": "B-2002", "quantity": 2}],
    "note": "ring",
}

# What plain redis-py is measured with: the same bytes that ours sends.
to_json = json.JSONEncoder(separators=(",", ":")).encode
READY = to_json(PAYLOAD).encode()
