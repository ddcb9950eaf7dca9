"""Fixtures shared by all tests."""

import structlog

# structlog's default renders tracebacks with rich, which takes a second for each of the many crashes the tests provoke.
structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])
