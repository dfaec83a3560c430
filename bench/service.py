"""How soon the service answers once it is started, and how long a page's change waits for keys."""

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles

from bench.call import POSTGRESQL, SQLITE
from bench.report import Figure
from bench.servers import (
    BOOKINGS,
    EMAIL,
    Installation,
    Visitor,
    create_database,
    install,
    loaded,
    serving_product,
)

STARTS, ROUNDS, SECONDS = 5, 5, 4
KEY = "/admin/api_keys/2"


def measure(folder: Path, postgres: str) -> list[Figure]:
    databases = {
        SQLITE: f"sqlite:///{folder}/service.db",
        POSTGRESQL: create_database(postgres, "service"),
    }
    return [figure for name, url in databases.items() for figure in _measured(name, install(url))]


def _measured(name: str, made: Installation) -> Iterator[Figure]:
    starting = []
    for _ in range(STARTS):
        with serving_product(made) as server:
            starting.append(server.starting)
    yield Figure(f"{name}: from a start to the first answer", starting, "s", 1.2)
    alone, beside = [], []
    made.flask("keys", "create", "--organization=1", "--name=Renamed", "--created-by=" + EMAIL)
    with serving_product(made) as server, Visitor(server.port) as member:
        member.sign_in()
        for _ in range(ROUNDS):
            alone.append(_slowest(member))
            with loaded(server.port, BOOKINGS, f"-HAuthorization: Bearer {made.key}"):
                beside.append(_slowest(member))
    what = f"{name}: the slowest 1 % of changes by a page"
    yield Figure(f"{what}, nobody else there", alone, "ms")
    bar = 50 if name == SQLITE else None
    yield Figure(f"{what}, while keys call as fast as they can", beside, "ms", bar)


def _slowest(member: Visitor) -> float:
    """The slowest 1 % of renaming a key, in ms: a change by a page that asks for no password."""
    token, took, end = member.csrf_token(KEY), [], time.monotonic() + SECONDS
    while (began := time.monotonic()) < end:
        member.post(f"{KEY}/rename", csrf_token=token, name=f"Renamed {len(took)}")
        took.append((time.monotonic() - began) * 1_000)
        time.sleep(0.01)
    return quantiles(took, n=100)[98]
