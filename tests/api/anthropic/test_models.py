"""Models in pages, for whoever names a version of Anthropic's; errors there have its shape."""

import anthropic
import attrs
import pytest
from support.api import KEY, MODEL

MODELS = tuple(attrs.evolve(MODEL, name=f"model-{index}", id=f"{index:064}", aliases=()) for index in range(5))
NAMES = [model.name for model in MODELS]
VERSION = {"anthropic-version": "2023-06-01"}


async def page(http, **query):
    answer = await http.get("/v1/models", params=query)
    assert answer.status_code == 200
    return answer.json()


async def test_pages_go_both_ways_and_say_whether_there_is_more(serve):
    async with serve(models=lambda: MODELS) as node, node.client(**VERSION) as http:
        first = await page(http, limit=2)
        assert [row["id"] for row in first["data"]] == NAMES[:2]
        assert (first["has_more"], first["first_id"], first["last_id"]) == (True, NAMES[0], NAMES[1])
        last = await page(http, limit=3, after_id=NAMES[1])
        assert ([row["id"] for row in last["data"]], last["has_more"]) == (NAMES[2:], False)
        before = await page(http, limit=2, before_id=NAMES[3])
        assert ([row["id"] for row in before["data"]], before["has_more"]) == (NAMES[1:3], True)
        beyond = await page(http, after_id=NAMES[-1])
        assert beyond == {"data": [], "has_more": False, "first_id": None, "last_id": None}
        assert (await page(http, **{"lifecycle[]": "retired"}))["data"] == []
        assert len((await page(http, lifecycle=["active", "retired"]))["data"]) == 5


async def test_the_sdk_walks_through_all_pages(serve):
    async with (
        serve(models=lambda: MODELS) as node,
        anthropic.AsyncAnthropic(base_url=node.url, api_key=KEY, max_retries=0) as client,
    ):
        assert [model.id async for model in client.models.list(limit=2)] == NAMES
        assert [model.id async for model in client.models.list(limit=2, before_id=NAMES[4])][:2] == NAMES[2:4]
        assert [model.id async for model in client.models.list(lifecycle=["deprecated"])] == []
        assert [model.id async for model in client.beta.models.list()] == NAMES
        one = await client.models.retrieve(NAMES[1])
        assert (one.lifecycle, one.max_input_tokens, one.created_at.year) == ("active", 1024, 2023)
        assert one.capabilities.structured_outputs.supported
        assert not one.capabilities.thinking.supported
        with pytest.raises(anthropic.NotFoundError) as caught:
            await client.models.retrieve("nobody")
        assert caught.value.type == "not_found_error"


async def test_a_model_that_is_not_loaded_has_no_known_capabilities(serve):
    far = attrs.evolve(MODEL, loaded=False)
    async with serve(models=lambda: (far,)) as node, node.client(**VERSION) as http:
        assert (await http.get("/v1/models/tiny")).json()["capabilities"] is None


WRONG = {
    "limit": ({"limit": "0"}, "limit: '0'"),
    "limit of letters": ({"limit": "many"}, "limit: 'many'"),
    "stranger": ({"after_id": "x"}, "after_id: 'x' is none of the models"),
    "both ways": ({"after_id": NAMES[0], "before_id": NAMES[2]}, "before_id: "),
    "lifecycle": ({"lifecycle": "young"}, "lifecycle: 'young'"),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_what_makes_no_page_is_refused_by_name(serve, wrong):
    query, said = WRONG[wrong]
    async with serve(models=lambda: MODELS) as node, node.client(**VERSION) as http:
        answer = await http.get("/v1/models", params=query)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert answer.json()["error"]["message"].startswith(said)


async def test_errors_have_the_shape_of_whoever_asks(serve):
    async with serve() as node, node.client() as http:
        for path in ("/v1/models/nobody", "/v1/nothing"):
            theirs = await http.get(path, headers=VERSION)
            assert (theirs.status_code, theirs.json()["type"]) == (404, "error")
            assert theirs.json()["error"]["type"] == "not_found_error"
            assert theirs.json()["request_id"] == theirs.headers["request-id"]
            openai = await http.get(path)
            assert openai.status_code == 404
            assert set(openai.json()) == {"error"}
        stranger = {**VERSION, "Authorization": "Bearer wrong"}
        refused = await http.get("/v1/models", headers=stranger)
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        assert (await http.get("/api/tags", headers=stranger)).json().keys() == {"error"}


ASK = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("version", ["2023-01-01", "2024-10-22", "latest", "2023-06-01, 2023-06-01"])
async def test_a_version_that_nobody_speaks_is_refused(serve, version):
    async with serve() as node, node.client(**{"anthropic-version": version}) as http:
        count = {key: ASK[key] for key in ("model", "messages")}
        for answer in (
            await http.post("/v1/messages", json=ASK),
            await http.post("/v1/messages/count_tokens", json=count),
            await http.get("/v1/models"),
            await http.get("/v1/models/tiny"),
        ):
            assert answer.status_code == 400
            assert answer.json()["error"]["message"].startswith(f"anthropic-version: '{version}' is not a version")
        assert node.router.requests == []


async def test_versions_known_none_and_later_are_answered_and_a_later_one_is_told(serve):
    async with serve() as node, node.client() as http:
        for version in (None, "2023-06-01", "2026-10-21", "2031-01-01"):
            headers = {"anthropic-version": version} if version else {}
            answer = await http.post("/v1/messages", json=ASK, headers=headers)
            assert answer.status_code == 200
            assert ("x-meshnode-warning" in answer.headers) == (version == "2031-01-01")
