"""A body just under its limit holds hundreds of thousands of empty messages; they are refused by name, before any is read."""

import pytest
from support.api import CHAT

LIMIT = 8 << 20


def full(wrap, piece, size):
    """Return a body of as many pieces as fit."""
    head, tail = wrap
    raw = piece.encode()
    count = (size - len(head) - len(tail)) // (len(raw) + 1)
    return head.encode() + b",".join([raw] * count) + tail.encode()


BODIES = {
    "messages": ("/v1/chat/completions", ('{"model":"tiny","messages":[', "]}"), '{"role":"user","content":""}'),
    "parts": (
        "/v1/chat/completions",
        ('{"model":"tiny","messages":[{"role":"user","content":[', "]}]}"),
        '{"type":"text","text":""}',
    ),
    "items": ("/v1/responses", ('{"model":"tiny","input":[', "]}"), '{"role":"user","content":""}'),
    "blocks": (
        "/v1/messages",
        ('{"model":"tiny","max_tokens":1,"messages":[{"role":"user","content":[', "]}]}"),
        '{"type":"text","text":"a"}',
    ),
    "calls": (
        "/api/chat",
        ('{"model":"tiny","messages":[{"role":"assistant","tool_calls":[', "]}]}"),
        '{"function":{"name":"f"}}',
    ),
    "calls of tools": (
        "/mcp",
        ('{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"chat","arguments":{"a":[', "]}}}"),
        '{"a":[{}]}',
    ),
    "prompts": ("/v1/completions", ('{"model":"tiny","prompt":[', "]}"), '""'),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_full_of_small_things_is_refused_by_name(serve, name):
    path, wrap, piece = BODIES[name]
    async with serve(body_limit_bytes=LIMIT) as node, node.client() as client:
        head = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
        size = LIMIT if name == "messages" else 1 << 20  # one of that size tells of all
        reply = await client.post(path, content=full(wrap, piece, size), headers=head)
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert reply.status_code == 400
    assert "are allowed" in reply.text
