"""What anybody may ask: whether the node is healthy, and, on its own machine, its metrics."""

from quart import Response
from quart_trio import QuartTrio

from meshnode.api.operations import Operation, describes
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import json_reply
from meshnode.observe.metrics import CONTENT_TYPE

__all__ = ["OPEN_PATHS", "add_public_routes"]

OPEN_PATHS = frozenset({"/health", "/health/ready"})
"""What needs no key."""


def add_public_routes(app: QuartTrio, dependencies: ApiDependencies) -> None:
    """Add the routes."""

    @app.get("/health")
    @describes(Operation("Say that the node is there."))
    async def health() -> Response:
        return json_reply({"status": "ok"})

    @app.get("/health/ready")
    @describes(Operation("Say whether everything is ready; 503 until it is."))
    async def ready() -> Response:
        missing = dependencies.unready()
        if missing:
            return json_reply({"status": "not ready", "not_ready": list(missing)}, 503)
        return json_reply({"status": "ready", "not_ready": []})

    @app.get("/metrics")
    @describes(Operation("Give metrics to Prometheus.", answers=(CONTENT_TYPE,)))
    async def metrics() -> Response:
        return Response(dependencies.metrics.render(), content_type=CONTENT_TYPE)
