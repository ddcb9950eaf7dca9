"""The page is served to anybody, whole and locked down; a ticket buys the key, once."""

import re
from importlib.resources import files

import pytest
from support.api import CHAT, KEY

from meshnode.dashboard.routes import CONTENT_SECURITY_POLICY

FILES = {"/": "text/html", "/dashboard.js": "text/javascript", "/dashboard.css": "text/css", "/favicon.svg": "image/svg+xml", "/favicon.ico": "image/svg+xml"}  # fmt: skip
STRANGER = {"Authorization": ""}


@pytest.mark.parametrize(("path", "kind"), FILES.items())
async def test_everybody_may_have_the_page_under_a_strict_policy(serve, path, kind):
    async with serve() as node, node.client(**STRANGER) as client:
        reply = await client.get(path)
        head = await client.head(path)
    assert reply.status_code == head.status_code == 200
    assert reply.headers["content-type"].partition(";")[0] == kind
    assert reply.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-frame-options"] == "DENY"
    assert KEY not in reply.text
    assert head.content == b""
    assert head.headers["content-length"] == str(len(reply.content))


def test_the_policy_allows_nothing_from_elsewhere_and_nothing_inline():
    rules = dict(rule.split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    assert {value for name, value in rules.items() if name.endswith("-src")} == {"'none'", "'self'"}
    assert "unsafe" not in CONTENT_SECURITY_POLICY


def test_the_files_need_nothing_from_elsewhere_and_hold_nothing_inline():
    static = files("meshnode.dashboard") / "static"
    page = (static / "index.html").read_text()
    assert not re.findall(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|javascript:", page)
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) <= FILES.keys()
    script = (static / "dashboard.js").read_text()
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://", script)
    assert not re.findall(r"url\(|@import|https?://", (static / "dashboard.css").read_text())


async def test_the_rest_needs_the_key_still(serve):
    async with serve() as node, node.client(**STRANGER) as client:
        for path in ("/api/admin/status", "/v1/models", "/dashboard", "/dashboard.js/x"):
            assert (await client.get(path)).status_code == 401
        assert (await client.post("/")).status_code == 405


async def test_a_ticket_is_exchanged_for_the_key_once(serve, dashboard):
    async with serve() as node, node.client(**STRANGER) as client:
        ticket = dashboard.tickets.issue()
        reply = await client.post("/dashboard/ticket", content=ticket)
        assert (reply.status_code, reply.text) == (200, KEY)
        assert reply.headers["cache-control"] == "no-store"
        again = await client.post("/dashboard/ticket", content=ticket)
        assert (again.status_code, again.text) == (403, "")


@pytest.mark.parametrize("content", [b"", b"guess", b"\xff", b"x" * 100_000])
async def test_anything_else_is_not(serve, dashboard, content):
    dashboard.tickets.issue()
    async with serve() as node, node.client(**STRANGER) as client:
        assert (await client.post("/dashboard/ticket", content=content)).status_code == 403


async def test_another_page_cannot_spend_a_ticket(serve, dashboard):
    async with serve() as node, node.client(**STRANGER, Origin="http://evil.example") as client:
        reply = await client.post("/dashboard/ticket", content=dashboard.tickets.issue())
    assert reply.status_code == 403
    assert KEY not in reply.text


async def test_neither_key_nor_ticket_is_logged(serve, dashboard, log):
    ticket = dashboard.tickets.issue()
    async with serve() as node, node.client() as client:
        for path in FILES:
            await client.get(path)
        await client.post("/dashboard/ticket", content=ticket)
        await client.post("/dashboard/ticket", content=ticket)
        await client.get("/api/admin/status")
        await client.post("/v1/chat/completions", json=CHAT)
        await client.get("/nothing")
    assert '"path": "/dashboard/ticket"' in log.getvalue()
    assert KEY not in log.getvalue()
    assert ticket not in log.getvalue()


def test_a_dashboard_does_not_show_its_key(dashboard):
    assert KEY not in repr(dashboard)
