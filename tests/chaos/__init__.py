"""Faults on real servers, real worker processes and real connections; a checker that knows nothing of the inside.

In the short form, part of `make test`, each attack is made on one server; in the long form (`make chaos`) on each.
"""

import os
from itertools import cycle, product

import pytest

IS_LONG = bool(os.environ.get("CHAOS_LONG"))
SERVERS = ("redis", "valkey")


def on(server: str) -> pytest.MarkDecorator:
    """Make the attack on this server; in the long form on each."""
    return pytest.mark.parametrize("server", SERVERS if IS_LONG else (server,), indirect=True)


def on_each(name: str, *values: str) -> pytest.MarkDecorator:
    """Make the attack once for each value, on one server and the other in turn; in the long form each on each."""
    pairs = product(values, SERVERS) if IS_LONG else zip(values, cycle(SERVERS), strict=False)
    return pytest.mark.parametrize((name, "server"), list(pairs), indirect=["server"])


with_heartbeats = pytest.mark.parametrize(
    "field", [0.4, 2.0] if IS_LONG else [0.4], indirect=True, ids="heartbeat-{}".format
)
"""Make the attack with a short heartbeat; in the long form with the default one, too."""
