"""A node that is only its HTTP answers, on loopback."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from meshnode.cli.main import root

KEY = "right-key"


class FakeNode:
    """Answers by (method, path): a JSON value, a (status, value) pair, or a list of raw stream pieces."""

    def __init__(self, data_dir):
        self.data_dir = data_dir
        self.answers = {("GET", "/api/admin/status"): {"version": "1", "models": []}}
        self.requests = []
        node = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                node.requests.append((self.command, self.path, body))
                if self.headers["Authorization"] != f"Bearer {KEY}":
                    return self.say(401, {"error": {"message": "no"}})
                answer = node.answers.get((self.command, self.path), (404, {"error": {"message": f"no {self.path}"}}))
                if callable(answer):
                    answer = answer(body)
                if isinstance(answer, list):
                    return self.stream(answer)
                status, value = answer if isinstance(answer, tuple) else (200, answer)
                return self.say(status, value)

            do_GET = do_POST = do_DELETE = handle_any

            def say(self, status, value):
                data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def stream(self, pieces):
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for piece in pieces:
                    if piece is None:  # cut: no terminating chunk
                        self.close_connection = True
                        return
                    data = piece.encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.write(b"0\r\n\r\n")

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]

    def announce(self):
        (self.data_dir / "api_key").write_text(KEY + "\n")
        runtime = {"host": "127.0.0.1", "port": self.port, "pid": 1}
        (self.data_dir / "runtime.json").write_text(json.dumps(runtime))


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch, tmp_path):
    import os

    for name in [name for name in os.environ if name.startswith("MESHNODE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MESHNODE_DATA_DIR", str(tmp_path))


@pytest.fixture
def node(tmp_path):
    fake = FakeNode(tmp_path)
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.announce()
    yield fake
    fake.server.shutdown()
    thread.join()
    fake.server.server_close()


@pytest.fixture
def invoke():
    def call(*arguments, **options):
        return CliRunner().invoke(root, list(arguments), **options)

    return call


def event(text=None, **extra):
    choice = {"delta": {"content": text}, **extra} if text is not None else {"delta": {}, **extra}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


@pytest.fixture
def sse():
    return event
