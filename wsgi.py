"""What gunicorn and `flask --app wsgi` start."""

import os
import sys

from convene_keys import create_app, logging
from convene_keys.config import ConfigError

logging.configure()
try:
    app = create_app(commands=os.environ.get("FLASK_RUN_FROM_CLI") == "true")
except ConfigError as error:
    sys.exit(str(error))
