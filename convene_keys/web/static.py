"""Stylesheet, scripts and icons as they are served: compressed, and kept by browsers for a year."""

import gzip
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from flask import Flask, Response, make_response, request, send_file

from convene_keys.http.access import Access, access

# Text that is the same for everybody. Pages are never compressed: beside what somebody else can put
# into them, the length of an answer would give away a secret in it letter by letter (BREACH).
PACKED = (".css", ".js", ".svg")


def init_app(app: Flask) -> None:
    folder, plain = Path(app.static_folder or ""), app.view_functions["static"]
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    packable = {name for name, path in files.items() if path.suffix in PACKED}
    # A global, since imported macros see nothing else; looked up, since each icon needs one.
    app.jinja_env.globals["assets"] = _addresses(f"{app.static_url_path}/", files)

    @access(Access.OPEN)
    def static(filename: str) -> Response:
        packed = filename in packable and request.accept_encodings["gzip"] > 0
        response = _send(folder / filename) if packed else make_response(plain(filename=filename))
        if filename in packable:
            response.vary.add("Accept-Encoding")
        response.cache_control.immutable = True  # addresses carry the files' version
        return response

    app.view_functions["static"] = static


def _addresses(prefix: str, files: Mapping[str, Path]) -> dict[str, str]:
    """The address of each file by its name in the folder.

    One at the top carries a version, which changes whenever any file does: browsers may keep it for
    a year. Those of others, in folders, have it in their names.
    """
    digest = hashlib.sha256()
    for path in files.values():
        digest.update(path.read_bytes())
    version = f"?v={digest.hexdigest()[:10]}"
    return {name: prefix + name + ("" if "/" in name else version) for name in files}


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
