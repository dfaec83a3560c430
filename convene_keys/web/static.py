"""Stylesheet, scripts and icons as they are served: compressed, and kept by browsers for a year."""

import gzip
import hashlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from flask import Flask, Response, make_response, request, send_file

from convene_keys.http.access import Access, access

# Text that is the same for everybody. Pages are never compressed: beside what somebody else can put
# into them, the length of an answer would give away a secret in it letter by letter (BREACH).
PACKED = (".css", ".js", ".svg")


def init_app(app: Flask) -> None:
    # A global, since imported macros see nothing else; looked up, since each icon needs one.
    app.jinja_env.globals["assets"] = _addresses(app)
    folder, plain = Path(app.static_folder or ""), app.view_functions["static"]
    names = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in PACKED
    }

    @access(Access.OPEN)
    def static(filename: str) -> Response:
        packed = filename in names and request.accept_encodings["gzip"] > 0
        response = _send(folder / filename) if packed else make_response(plain(filename=filename))
        if filename in names:
            response.vary.add("Accept-Encoding")
        response.cache_control.immutable = True  # addresses carry the files' version
        return response

    app.view_functions["static"] = static


def _addresses(app: Flask) -> dict[str, str]:
    """The address of each file by its name in the folder.

    One at the top carries a version, which changes whenever any file does: browsers may keep it for
    a year. Those of others, in folders, have it in their names.
    """
    folder, digest = Path(app.static_folder or ""), hashlib.sha256()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        digest.update(path.read_bytes())
    version = digest.hexdigest()[:10]
    return {
        path.relative_to(folder).as_posix(): (
            f"{app.static_url_path}/{path.relative_to(folder).as_posix()}"
            + (f"?v={version}" if path.parent == folder else "")
        )
        for path in files
    }


def _send(path: Path) -> Response:
    changed = path.stat().st_mtime_ns
    response = send_file(
        BytesIO(_packed(path, changed)),
        download_name=path.name,
        conditional=True,
        etag=f"{changed:x}-gzip",
    )
    response.content_encoding = "gzip"
    return response


@lru_cache
def _packed(path: Path, _changed: int) -> bytes:
    return gzip.compress(path.read_bytes(), mtime=0)
