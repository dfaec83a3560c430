"""The other yardstick: Django REST framework that verifies an API key and records nothing."""

import os
import sys
from pathlib import Path
from typing import Any

import django
from bare import BODY
from django.conf import settings

DATABASE = Path(os.environ["BENCH_FOLDER"]) / "drf.db"

settings.configure(
    SECRET_KEY="only for a benchmark, on a database made for it",  # noqa: S106
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    USE_TZ=True,
    INSTALLED_APPS=["rest_framework", "rest_framework_api_key"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": DATABASE,
            "CONN_MAX_AGE": None,
            "OPTIONS": {"init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL"},
        }
    },
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "DEFAULT_PERMISSION_CLASSES": ["rest_framework_api_key.permissions.HasAPIKey"],
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "UNAUTHENTICATED_USER": None,
    },
)
django.setup()

from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.urls import path
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_api_key.models import APIKey


class Bookings(APIView):
    def get(self, _request: Any) -> Response:
        return Response(BODY)


urlpatterns = [path("bookings", Bookings.as_view())]

if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    _, key = APIKey.objects.create_key(name="bench")
    sys.stdout.write(key)
else:
    application = get_wsgi_application()
