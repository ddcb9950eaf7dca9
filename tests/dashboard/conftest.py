"""A node's API with the page in front."""

import io
from contextlib import asynccontextmanager

import pytest
from support.api import KEY
from support.api import serve as serve_api

from meshnode.dashboard.routes import Dashboard
from meshnode.observe.logging import configure_logging

__all__ = ["serve_api"]


@pytest.fixture
def dashboard():
    return Dashboard(KEY)


@pytest.fixture
def serve(serve_api, dashboard):
    @asynccontextmanager
    async def start(*arguments, **changes):
        async with serve_api(*arguments, pages=dashboard.add_to, **changes) as node:
            yield node

    return start


@pytest.fixture
def log():
    """Everything that is logged, down to debug."""
    stream = io.StringIO()
    configure_logging("debug", json=True, stream=stream)
    yield stream
    configure_logging("error", json=True)
