"""A hub on this machine: the routes that models are fetched through, a redirect to another origin, and faults on demand."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import attrs

__all__ = ["HubServer", "run_hub"]


@attrs.define(eq=False)
class HubServer:
    """What the hub has, and what has been asked of it. `faults` are taken one by one, by requests for bytes of files."""

    repositories: dict[str, dict[str, bytes]] = attrs.field(factory=dict)  # OWNER/REPO -> path -> bytes
    past: dict[str, dict[str, bytes]] = attrs.field(factory=dict)  # commit -> path -> bytes
    token: str | None = None  # needed when set
    faults: list[str] = attrs.field(factory=list)
    lookup_faults: list[int | str] = attrs.field(factory=list)  # statuses, or "no gzip", "no UTF-8"
    endpoint: str = ""
    storage: str = ""
    sent_bytes: int = 0  # of files
    ranges: list[tuple[str, int, int]] = attrs.field(factory=list)
    seen: list[tuple[str, str, str | None]] = attrs.field(factory=list)  # server, path, authorization
    trending: list[dict[str, object]] = attrs.field(factory=list)
    _lock: threading.Lock = attrs.field(factory=threading.Lock)
    _signature: int = 0

    def commit(self, repository: str) -> str:
        files = self.repositories[repository]
        return hashlib.sha1(b"".join(path.encode() + files[path] for path in sorted(files))).hexdigest()

    def push(self, repository: str, **files: bytes) -> str:
        """Make another commit, and return the one before it, which stays."""
        before, old = self.commit(repository), self.repositories[repository]
        self.past[before] = old
        self.repositories[repository] = old | files
        return before

    def at(self, repository: str, revision: str) -> dict[str, bytes] | None:
        files = self.repositories.get(repository)
        is_newest = files is not None and revision in ("main", self.commit(repository))
        return files if is_newest else self.past.get(revision)

    def take_fault(self) -> str | None:
        with self._lock:
            return self.faults.pop(0) if self.faults else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_arguments) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Front(_Handler):
    def do_GET(self) -> None:
        hub, path = self.hub, urlsplit(self.path)
        hub.seen.append(("front", self.path, self.headers.get("authorization")))
        if hub.token is not None and self.headers.get("authorization") != f"Bearer {hub.token}":
            return self.reply(401)
        if path.path == "/api/models":
            if hub.lookup_faults:
                return self._fail(hub.lookup_faults.pop(0))
            return self.reply(200, json.dumps(hub.trending).encode())
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path.path):
            return self._describe(found[1], unquote(found[2]))
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path.path):
            return self._redirect(found[1], found[2], unquote(found[3]))
        return self.reply(404)

    def _fail(self, fault: int | str) -> None:
        if fault == "no gzip":
            return self.reply(200, b"nonsense", content_encoding="gzip")
        if fault == "no UTF-8":
            return self.reply(200, b'{"sha": "\xff", "siblings": []}')
        return self.reply(int(fault), retry_after="0")

    def _describe(self, name: str, revision: str) -> None:
        if self.hub.lookup_faults:
            return self._fail(self.hub.lookup_faults.pop(0))
        files = self.hub.at(name, revision)
        if files is None:
            return self.reply(404, x_error_code="RepoNotFound")
        siblings = [
            {"rfilename": path, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            for path, data in files.items()
        ]
        for each in siblings:
            if each["rfilename"].endswith((".gguf", ".safetensors")):
                digest = hashlib.sha256(files[each["rfilename"]]).hexdigest()
                each["lfs"] = {"sha256": digest, "size": each["size"], "pointerSize": 134}
        commit = revision if revision in self.hub.past else self.hub.commit(name)
        return self.reply(200, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode())

    def _redirect(self, name: str, commit: str, path: str) -> None:
        hub = self.hub
        files = hub.at(name, commit)
        if files is None or path not in files:
            return self.reply(404)
        fault = hub.take_fault()
        if fault is not None and fault.isdecimal():
            return self.reply(int(fault), retry_after="0")
        tag = "0" * 64 if fault == "changed" else hashlib.sha256(files[path]).hexdigest()
        where = f"{hub.storage}/{name}/{path}?commit={commit}&fault={fault or ''}"
        return self.reply(302, location=where, x_linked_etag=f'"{tag}"', x_repo_commit=commit)


class _Storage(_Handler):
    def do_GET(self) -> None:
        hub, address = self.hub, urlsplit(self.path)
        hub.seen.append(("storage", self.path, self.headers.get("authorization")))
        owner, name, path = unquote(address.path).removeprefix("/").split("/", 2)
        query = parse_qs(address.query)
        files = hub.past.get(query["commit"][0], hub.repositories[f"{owner}/{name}"])
        data, fault = files[path], query.get("fault", [""])[0]
        if fault == "expired":
            return self.reply(403, b"<Error><Code>AccessDenied</Code></Error>")
        if fault == "ranges ignored":
            return self.reply(200, data)
        first, last = (int(number) for number in re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["range"]).groups())
        piece = data[first : last + 1]
        hub.ranges.append((path, first, last + 1))
        if fault == "other bytes":
            piece = bytes(len(piece))
        size = len(data) + (fault == "other size")
        self.send_response(206)
        self.send_header("content-range", f"bytes {first}-{first + len(piece) - 1}/{size}")
        self.send_header("content-length", str(len(piece)))
        self.end_headers()
        sent = len(piece) * 2 // 3 if fault in ("cut", "stall") else len(piece)
        hub.sent_bytes += sent
        self.wfile.write(piece[:sent])
        if fault == "stall":
            self.wfile.flush()
            self.rfile.read(1)  # until the client has had enough
        self.close_connection = fault in ("cut", "stall")
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """A client that leaves in the middle of an answer is what some tests are about."""


@contextmanager
def run_hub() -> Iterator[HubServer]:
    """Run a hub, and beside it what it redirects to."""
    hub = HubServer()
    front = _Server(("127.0.0.1", 0), type("Front", (_Front,), {"hub": hub}))
    storage = _Server(("127.0.0.1", 0), type("Storage", (_Storage,), {"hub": hub}))
    threads = [threading.Thread(target=each.serve_forever, kwargs={"poll_interval": 0.05}) for each in (front, storage)]
    hub.endpoint = f"http://127.0.0.1:{front.server_port}"
    hub.storage = f"http://127.0.0.1:{storage.server_port}"
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for each in (front, storage):
            each.shutdown()
            each.server_close()
        for thread in threads:
            thread.join()
