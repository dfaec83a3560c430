"""All that a server imports. Each server of a test run is a fork of a process that has done so."""

import gc

import gunicorn.app.wsgiapp
import gunicorn.workers.gthread  # noqa: F401
import sqlalchemy.dialects.sqlite.pysqlite  # noqa: F401

from convene_keys import create_app
from tests import compiled
from tests.databases import environ

compiled.once()  # each worker makes an application of its own
create_app(environ("postgresql+psycopg://nobody@127.0.0.1/nothing"))  # never asked
gc.collect()
gc.freeze()  # workers look through what is theirs, and share the rest
