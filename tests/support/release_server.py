"""A publisher on this machine: keys, wheels that are real if small, signed documents, and a server with faults on demand."""

import base64
import datetime
import hashlib
import io
import re
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import attrs
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshnode.update.release import FORMAT, PRODUCT, Artifact, Release, add_signature, draft_release

KEYS = tuple(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
RAW_KEYS = frozenset(key.public_key().public_bytes_raw() for key in KEYS)
LATER = datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC)


def key_text(key):
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def make_wheel(version, files=None, *, requires=(), python=">=3.11", name="meshnode", extra=None):
    """Return the bytes of a wheel; `files` are of the package, `extra` are members as they are."""
    members = {f"meshnode/{path}": text for path, text in (files or {"__init__.py": ""}).items()}
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {python}\n"
    members[f"{info}/METADATA"] = metadata + "".join(f"Requires-Dist: {each}\n" for each in requires)
    members[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members |= extra or {}
    record = []
    for path, text in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        record.append(f"{path},sha256={digest},{len(text.encode())}\n")
    members[f"{info}/RECORD"] = "".join(record) + f"{info}/RECORD,,\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in members.items():
            archive.writestr(zipfile.ZipInfo(path, (2026, 1, 1, 0, 0, 0)), text)
    return buffer.getvalue()


def artifact(wheel, platform="any", url="meshnode.whl"):
    return Artifact(platform, url, len(wheel), blake3(wheel).hexdigest())


def make_release(wheel=b"wheel", **changes):
    values = {
        "format": FORMAT,
        "product": PRODUCT,
        "channel": "stable",
        "version": "9.0.0",
        "sequence": 1,
        "expires": LATER,
        "requires_python": ">=3.11",
        "artifacts": (artifact(wheel),),
    }
    return Release(**values | changes)


def sign_release(release, keys):
    document = draft_release(release)
    for key in keys:
        document, _ = add_signature(document, key)
    return document


def make_document(wheel=b"wheel", keys=KEYS[:2], **changes):
    return sign_release(make_release(wheel, **changes), keys)


@attrs.define(eq=False)
class ReleaseServer:
    """What is published by path, and `faults`, taken one by one by requests for anything but the document."""

    files: dict = attrs.field(factory=dict)
    faults: list = attrs.field(factory=list)
    asked: list = attrs.field(factory=list)  # path, range
    base: str = ""

    @property
    def url(self):
        return f"{self.base}/release.json"

    def publish(self, wheel, **changes):
        self.files |= {"/release.json": make_document(wheel, **changes), "/meshnode.whl": wheel}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_: ReleaseServer

    def log_message(self, *_arguments):
        pass

    def do_GET(self):
        site, path = self.server_, self.path
        site.asked.append((path, self.headers.get("range")))
        data = site.files.get(path)
        fault = site.faults.pop(0) if site.faults and path != "/release.json" else None
        if isinstance(data, int) or data is None or isinstance(fault, int):
            return self.reply(fault or data or 404, b"")
        if isinstance(data, str):  # a redirect
            return self.reply(302, b"", location=data)
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", "")) if fault != "no ranges" else None
        start = int(found[1]) if found else 0
        body = data[start:]
        headers = {"content-range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if found else {}
        if fault == "other bytes":
            body = bytes(len(body))
        if fault == "longer":
            body += b"more"
        if fault == "short":  # and its length says so
            body = body[: len(body) // 2]
        cut = fault in ("cut", "stall")
        return self.reply(
            206 if found else 200, body, sent=len(body) // 2 if cut else None, stall=fault == "stall", **headers
        )

    def reply(self, status, body, sent=None, stall=False, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])
        if stall:
            self.wfile.flush()
            self.rfile.read(1)  # until the client has had enough
        self.close_connection = sent is not None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that leaves in the middle of an answer is what some tests are about."""


@contextmanager
def run_release_server():
    site = ReleaseServer()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_": site}))
    site.base = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
