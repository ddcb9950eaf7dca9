"""Health and metrics."""

import msgspec
from quart import Response

from meshnode.api.ports import ApiDependencies
from meshnode.observe.metrics import CONTENT_TYPE

__all__ = ["health", "metrics", "ready"]


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status=status, content_type="application/json")


def health() -> Response:
    """Say that the process answers."""
    return _json({"status": "ok"})


def ready(dependencies: ApiDependencies) -> Response:
    """Say 200 when everything can be used, else 503 with the names of what cannot."""
    missing = dependencies.unready()
    if missing:
        return _json({"status": "not ready", "not_ready": list(missing)}, 503)
    return _json({"status": "ready", "not_ready": []})


def metrics(dependencies: ApiDependencies) -> Response:
    """Return the Prometheus exposition."""
    return Response(dependencies.metrics.render(), content_type=CONTENT_TYPE)
