"""Ollama's paths over a real socket: lines of JSON, whole replies, errors in its own shape."""

import datetime
import json

import attrs
import pytest
import trio
from support.api import MODEL, FakeRouter

from meshnode.errors import Overloaded, UnknownModel
from meshnode.types.generation import CallPiece, Delta

HI = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
CALLING = [
    Delta(reasoning="Adding "),
    Delta("Wait."),
    Delta(calls=(CallPiece(0, "call_1", "add", '{"a": 1}'), CallPiece(1, "call_2", "now", "{}"))),
]


def lines(response):
    return [json.loads(line) for line in response.text.splitlines()]


async def test_a_chat_is_a_stream_of_lines_unless_said_otherwise(serve):
    async with serve() as node, node.client() as http:
        streamed = await http.post("/api/chat", json=HI)
        assert streamed.headers["content-type"] == "application/x-ndjson"
        assert streamed.headers["x-meshnode-route"] == "local 0:2"
        *words, last = lines(streamed)
        assert [line["message"] for line in words] == [
            {"role": "assistant", "content": word} for word in ("Hello", ", ", "world")
        ]
        assert {line["done"] for line in words} == {False}
        assert (last["message"]["content"], last["done"], last["done_reason"]) == ("", True, "stop")
        assert (last["prompt_eval_count"], last["eval_count"]) == (7, 3)
        whole = (await http.post("/api/chat", json={**HI, "stream": False})).json()
        assert whole["message"] == {"role": "assistant", "content": "Hello, world"}
        assert set(whole) == set(last)
        assert whole["model"] == "tiny"
        assert datetime.datetime.fromisoformat(whole["created_at"]).tzinfo is not None


async def test_times_are_nanoseconds_and_add_up(serve):
    async with serve(FakeRouter(pace=0.01)) as node, node.client() as http:
        said = (await http.post("/api/chat", json={**HI, "stream": False})).json()
        parts = [said[f"{part}_duration"] for part in ("load", "prompt_eval", "eval")]
        assert all(isinstance(part, int) and part >= 0 for part in parts)
        assert said["total_duration"] == pytest.approx(sum(parts), abs=10)
        assert said["eval_duration"] >= 2 * 10_000_000


async def test_generate_says_its_text_in_response(serve):
    async with serve() as node, node.client() as http:
        *words, last = lines(await http.post("/api/generate", json={"model": "tiny", "prompt": "Once"}))
        assert "".join(line["response"] for line in words) == "Hello, world"
        assert (last["response"], last["done"]) == ("", True)
        whole = (await http.post("/api/generate", json={"model": "tiny", "prompt": "Once", "stream": False})).json()
        assert whole["response"] == "Hello, world"
        assert set(whole) == set(last)


async def test_calls_have_objects_for_arguments_and_thoughts_a_field_of_their_own(serve):
    async with serve(FakeRouter(words=CALLING)) as node, node.client() as http:
        whole = (await http.post("/api/chat", json={**HI, "stream": False})).json()
        assert whole["message"] == {
            "role": "assistant",
            "content": "Wait.",
            "thinking": "Adding ",
            "tool_calls": [
                {"id": "call_1", "function": {"index": 0, "name": "add", "arguments": {"a": 1}}},
                {"id": "call_2", "function": {"index": 1, "name": "now", "arguments": {}}},
            ],
        }
        assert whole["done_reason"] == "stop"
        thought, text, calls, _ = lines(await http.post("/api/chat", json=HI))
        assert thought["message"] == {"role": "assistant", "content": "", "thinking": "Adding "}
        assert text["message"]["content"] == "Wait."
        assert calls["message"]["tool_calls"] == whole["message"]["tool_calls"]
        again = {
            **HI,
            "messages": [*HI["messages"], whole["message"], {"role": "tool", "content": "3", "tool_name": "add"}],
        }
        assert (await http.post("/api/chat", json=again)).status_code == 200
        (sent,) = node.router.requests[-1]
        assert (sent.messages[-1].call_id, sent.messages[-2].reasoning) == ("call_1", "Adding ")


async def test_log_probabilities_come_with_the_text(serve):
    async with serve() as node, node.client() as http:
        whole = (await http.post("/api/chat", json={**HI, "stream": False, "logprobs": True, "top_logprobs": 1})).json()
        assert [entry["token"] for entry in whole["logprobs"]] == ["Hello", ", ", "world"]
        assert whole["logprobs"][0]["top_logprobs"][0]["logprob"] == -0.25
        first, *_ = lines(await http.post("/api/chat", json={**HI, "logprobs": True}))
        assert [entry["token"] for entry in first["logprobs"]] == ["Hello"]


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_a_request_without_anything_to_answer_loads_the_model(serve, path):
    async with serve() as node, node.client() as http:
        said = (await http.post(path, json={"model": "tiny"})).json()
        assert (said["done"], said["done_reason"]) == (True, "load")
        (sent,) = node.router.requests[-1]
        assert (sent.model, sent.max_tokens) == ("tiny", 1)
        refused = await http.post(path, json={"model": "tiny", "keep_alive": 0})
        assert (refused.status_code, "keep_alive" in refused.json()["error"]) == (400, True)
        assert len(node.router.requests) == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [(UnknownModel("there is no model 'x'; there are: tiny"), 404), (Overloaded("full", retry_after=3), 429)],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_is_a_status_and_a_sentence(serve, error, status, stream):
    async with serve(FakeRouter(error=error)) as node, node.client() as http:
        refused = await http.post("/api/chat", json={**HI, "stream": stream})
        assert refused.status_code == status
        assert refused.json() == {"error": str(error)}
        assert refused.headers.get("retry-after") == ("3" if status == 429 else None)


async def test_silence_is_filled_with_what_its_clients_skip(serve):
    router = FakeRouter(queue=trio.Event())
    async with serve(router, heartbeat=0.02) as node, node.client() as http, trio.open_nursery() as nursery:
        nursery.start_soon(_open_later, router.queue)
        streamed = await http.post("/api/generate", json={"model": "tiny", "prompt": "Once"})
        assert streamed.text.startswith("  ")
        assert "".join(line["response"] for line in lines(streamed)) == "Hello, world"


async def _open_later(event):
    await trio.sleep(0.2)
    event.set()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/api/chat", '{"model": "tiny", "messages": 1}', 400),
        ("POST", "/api/chat", "{", 400),
        ("POST", "/api/pull", "{}", 404),
        ("GET", "/api/chat", None, 405),
        ("POST", "/api/show", '{"model": "x"}', 404),
        ("POST", "/api/show", "{}", 400),
    ],
)
async def test_errors_have_ollamas_shape_on_its_paths_and_openais_elsewhere(serve, method, path, body, status):
    async with serve() as node, node.client(**{"Content-Type": "application/json"}) as http:
        refused = await http.request(method, path, content=body)
        assert refused.status_code == status
        assert isinstance(refused.json()["error"], str)
        for ours in ("/api/admin/nothing", "/v1/nothing", "/nothing"):
            assert set((await http.get(ours)).json()["error"]) == {"message", "type", "param", "code"}


async def test_a_key_is_needed(serve):
    async with serve() as node, node.client(Authorization="Bearer wrong") as http:
        refused = await http.get("/api/tags")
        assert (refused.status_code, "a key is needed" in refused.json()["error"]) == (401, True)


async def test_models_are_listed_with_tags(serve):
    known = attrs.evolve(MODEL, nbytes=100, architecture="llama", parameters=134_515_008)
    other = attrs.evolve(MODEL, name="other:1b", id="1" * 64, loaded=False)
    async with serve(models=lambda: (known, other)) as node, node.client() as http:
        first, second = (await http.get("/api/tags")).json()["models"]
        assert first == {
            "name": "tiny:latest", "model": "tiny:latest", "modified_at": "2023-11-14T22:13:20.000000Z", "size": 100,
            "digest": "0" * 64,
            "details": {
                "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"],
                "parameter_size": "134.52M", "quantization_level": "Q4_0",
            },
        }  # fmt: skip
        assert second["name"] == "other:1b"
        (running,) = (await http.get("/api/ps")).json()["models"]
        assert (running["name"], running["context_length"]) == ("tiny:latest", 1024)
        assert datetime.datetime.fromisoformat(running["expires_at"]).year == 9999


@pytest.mark.parametrize("on_gpu", [0, 250], ids=["cpu", "gpu"])
async def test_what_a_loaded_model_holds_of_memory_and_where(serve, on_gpu):
    known = attrs.evolve(MODEL, nbytes=100, memory_bytes=250, gpu_bytes=on_gpu)
    peers = attrs.evolve(MODEL, name="far", id="1" * 64)
    async with serve(models=lambda: (known, peers)) as node, node.client() as http:
        running = (await http.get("/api/ps")).json()["models"]
        assert [(model["size"], model["size_vram"]) for model in running] == [(250, on_gpu), (0, 0)]


async def test_a_model_is_shown_by_any_of_its_names(serve):
    known = attrs.evolve(MODEL, architecture="llama", parameters=9, thinks=True)
    async with serve(models=lambda: (known,)) as node, node.client() as http:
        for name in ("tiny", "tiny:latest", "small", "auto"):
            shown = (await http.post("/api/show", json={"name": name})).json()
            assert shown["capabilities"] == ["completion", "tools", "thinking"]
            assert shown["model_info"]["llama.context_length"] == 1024
            assert shown["model_info"]["general.architecture"] == "llama"


async def test_what_clients_ask_first(serve):
    async with serve() as node, node.client() as http:
        version = (await http.get("/api/version")).json()["version"]
        assert tuple(map(int, version.partition("-")[0].split("."))) >= (0, 6, 4)
        assert "meshnode" in version
        for path in ("/api/tags", "/api/version"):
            looked = await http.head(path)
            assert (looked.status_code, looked.content) == (200, b"")


async def test_a_client_that_leaves_ends_its_generation(serve):
    async with serve(FakeRouter(pace=0.2, words=["x"] * 100)) as node:
        body = json.dumps(HI)
        stream = await node.raw()
        await stream.send_all(node.head("POST", "/api/chat", f"Content-Length: {len(body)}\r\n") + body.encode())
        await stream.receive_some()
        await stream.aclose()
        with trio.fail_after(10):
            await node.router.ended.wait()
