"""What gunicorn and `flask --app wsgi` start."""

import sys

from convene_keys import create_app, logs
from convene_keys.config import ConfigError

logs.configure()
try:
    app = create_app()
except ConfigError as error:
    sys.exit(str(error))
