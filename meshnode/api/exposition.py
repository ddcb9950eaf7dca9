"""What anybody may ask: who this is, whether it is healthy, and its metrics."""

from quart import Response
from quart_trio import QuartTrio

from meshnode import __version__
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import json_reply
from meshnode.observe.metrics import CONTENT_TYPE

__all__ = ["add_public_routes"]


def add_public_routes(app: QuartTrio, dependencies: ApiDependencies) -> None:
    """Add the routes."""

    @app.get("/")
    async def root() -> Response:
        return json_reply({"name": "meshnode", "version": __version__, "api": "/v1", "health": "/health"})

    @app.get("/health")
    async def health() -> Response:
        return json_reply({"status": "ok"})

    @app.get("/health/ready")
    async def ready() -> Response:
        missing = dependencies.unready()
        if missing:
            return json_reply({"status": "not ready", "not_ready": list(missing)}, 503)
        return json_reply({"status": "ready", "not_ready": []})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(dependencies.metrics.render(), content_type=CONTENT_TYPE)
