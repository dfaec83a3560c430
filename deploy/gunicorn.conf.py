"""How gunicorn serves Convene Keys. Where it listens is given on its command line, with --bind."""

import os
from typing import Any

from gunicorn.glogging import Logger

from convene_keys import logs, postman, sealer

wsgi_app = "wsgi:app"
worker_class = "gthread"
workers = 2
threads = 4
max_requests = 10_000  # a worker starts afresh now and then, not both at the same time
max_requests_jitter = 1_000
graceful_timeout = 30
if os.path.isdir("/dev/shm"):  # noqa: S108  a heartbeat on a slow disk can look like a hang
    worker_tmp_dir = "/dev/shm"  # noqa: S108


class AccessLog(Logger):
    """Knows only what the line below has. gunicorn's own collects every header each time, first."""

    def atoms(self, resp: Any, req: Any, environ: dict[str, Any], request_time: Any) -> Any:
        return {
            "h": environ.get("REMOTE_ADDR", "-"),
            "t": self.now(),
            "m": environ["REQUEST_METHOD"],
            "U": environ["PATH_INFO"],
            "H": environ["SERVER_PROTOCOL"],
            "s": str(resp.status).split(None, 1)[0],
            "B": resp.sent,
            "M": int(request_time.total_seconds() * 1_000),
            "a": environ.get("HTTP_USER_AGENT", "-"),
        }


# %(U)s is the path alone: what stands behind a ? is nobody's business in a log.
accesslog = "-"
logger_class = AccessLog
access_log_format = '%(h)s %(t)s "%(m)s %(U)s %(H)s" %(s)s %(B)s %(M)sms "%(a)s"'
logconfig_dict = logs.CONFIG

# Whom to believe about addresses and https is up to TRUSTED_PROXIES alone.
forwarded_allow_ips = ""
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
control_socket_disable = True


def post_worker_init(worker: Any) -> None:
    worker.stops = [sealer.start(worker.wsgi), postman.start(worker.wsgi)]


def worker_exit(_server: object, worker: Any) -> None:
    for stop in getattr(worker, "stops", ()):  # none when the worker could not even start
        stop()
