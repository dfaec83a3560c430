"""Calls a WSGI application in this one process: `processor.py MODULE:NAME PATH [HEADER: VALUE]…`.

With GET, or with POST of the JSON in `BENCH_BODY`. For each number of calls on stdin it prints the
processor time of one of them, in microseconds, all of the process's threads and its work for the
system included.
"""

import gc
import io
import os
import sys
import time
from importlib import import_module
from typing import Any
from wsgiref.util import setup_testing_defaults


def main(where: str, address: str, *headers: str) -> None:
    module, _, name = where.partition(":")
    application = getattr(import_module(module), name)
    path, _, query = address.partition("?")
    environ: dict[str, Any] = {"PATH_INFO": path, "QUERY_STRING": query}
    environ |= {"HTTP_HOST": "127.0.0.1", "REMOTE_ADDR": "127.0.0.1"}
    body = os.environ.get("BENCH_BODY", "").encode()
    if body:
        environ |= {"REQUEST_METHOD": "POST", "CONTENT_TYPE": "application/json"}
        environ["CONTENT_LENGTH"] = str(len(body))
    setup_testing_defaults(environ)
    for header in headers:
        key, _, value = header.partition(": ")
        environ[f"HTTP_{key.upper().replace('-', '_')}"] = value

    def start_response(status: str, *_: object) -> None:
        assert status == "200 OK", status  # noqa: S101

    # As the product's workers do: looking through all that stays would be counted now and then.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        calls, start = int(line), time.process_time()
        for _ in range(calls):
            answer = application(environ | {"wsgi.input": io.BytesIO(body)}, start_response)
            assert b"".join(answer).count(b'"vendor_name"') == 10  # noqa: S101
            if hasattr(answer, "close"):
                answer.close()
        sys.stdout.write(f"{(time.process_time() - start) / calls * 1e6}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
