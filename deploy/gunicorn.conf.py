"""How gunicorn serves Convene Keys. Where it listens is given on its command line, with --bind."""

import gc
import os
import select
import socket
import struct
import sys
from contextlib import suppress
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.workers import gthread

from convene_keys import limits, logging
from convene_keys.audit import seals
from convene_keys.mail import outbox

wsgi_app = "wsgi:app"
workers = 2
threads = 4
max_requests = 10_000  # a worker starts afresh now and then, not both at the same time
max_requests_jitter = 1_000
graceful_timeout = 30  # seconds to wait for what is under way at a stop, and for a client always
if os.path.isdir("/dev/shm"):  # noqa: S108  a heartbeat on a slow disk can look like a hang
    worker_tmp_dir = "/dev/shm"  # noqa: S108


SOON = 1  # milliseconds in which a client asks again that has nothing else to do


def asks_again(client: socket.socket) -> bool:
    poller = select.poll()
    poller.register(client, select.POLLIN)
    return bool(poller.poll(SOON))


class Worker(gthread.ThreadWorker):
    """gunicorn's own worker with threads, which clients that neither read nor send don't hold up.

    What comes byte by byte still takes a thread each: to keep that off is up to a proxy in front.
    """

    at_work = 0  # connections that a thread has, or is to have; the main thread alone counts

    def init_process(self) -> None:
        for listener in self.sockets:  # the connections that it accepts take after it
            # Nobody is here before they say something: then it is known who has time for them.
            with suppress(OSError, AttributeError):  # not for a socket file, nor on macOS
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
            # As much as any Linux allows. All but the longest lists fit, so that no thread waits.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212_992)
            patience = struct.pack("ll", self.cfg.graceful_timeout, 0)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
        super().init_process()

    def accept(self, listener: Any) -> None:
        """Leave a client to another worker, or for later, while all threads are at work."""
        if self.at_work < self.cfg.threads:
            super().accept(listener)
        else:
            self.worker_connections = 0

    def enqueue_req(self, conn: Any) -> None:
        self.at_work += 1
        super().enqueue_req(conn)

    def handle(self, conn: Any) -> Any:
        if not (conn.initialized or conn.wait_for_data(0)):
            return gthread._DEFER  # no thread waits for the first byte
        while True:
            goes_on = super().handle(conn)
            # To stay with a client that asks again at once is cheaper than to hand it on.
            nobody_waits = self.worker_connections and self.at_work <= self.cfg.threads
            if not (goes_on is True and self.alive and nobody_waits and asks_again(conn.sock)):
                return goes_on

    def handle_request(self, req: Any, conn: Any) -> Any:
        conn.sock.settimeout(self.cfg.graceful_timeout)  # for each piece as a whole, both ways
        return super().handle_request(req, conn)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Close at once: gunicorn would wait 2 s for the client to close, and accept nobody then."""
        self.at_work -= 1
        if self.alive and not self.worker_connections:
            # Who was left waiting comes before who goes on, or has sent more requests already.
            self.worker_connections = self.cfg.worker_connections
            for listener in self.sockets:
                super().accept(listener)
        if fs.cancelled() or fs.exception() or fs.result() is not False:
            super().finish_request(conn, fs)
            return
        self.nr_conns -= 1
        with suppress(OSError):
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
            conn.sock.recv(65_536)  # what nobody read would cut off the end of the answer
        conn.close()


worker_class = Worker


class AccessLog(Logger):
    """Knows only what the line below has. gunicorn's own collects every header each time, first."""

    def exception(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(sys.exception(), TimeoutError | BlockingIOError):
            self.info("A client neither read nor sent for too long: its connection was closed")
        else:
            super().exception(msg, *args, **kwargs)

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
logconfig_dict = logging.CONFIG

# Whom to believe about addresses and https is up to TRUSTED_PROXIES alone.
forwarded_allow_ips = ""
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
control_socket_disable = True


def post_worker_init(worker: Any) -> None:
    # What is here now stays: looking through all of it would stop the worker 0.2 s, again and again.
    gc.collect()
    gc.freeze()
    worker.stops = [room.start(worker.wsgi) for room in (seals, outbox, limits)]


def worker_exit(_server: object, worker: Any) -> None:
    for stop in getattr(worker, "stops", ()):  # none when the worker could not even start
        stop()
