"""Who gets in: hosts, origins, keys and rates, on virtual time."""

import pytest
from support.api import KEY
from werkzeug.datastructures import Headers

from meshnode.api.exposition import OPEN_PATHS
from meshnode.api.guards import Guards
from meshnode.flow.buckets import KeyedBuckets

HOME = "127.0.0.1:8800"


def guards(rate=1000.0, burst=1000.0):
    return Guards(KEY, frozenset({"node.example"}), KeyedBuckets(rate, burst), OPEN_PATHS | {"/"})


def ask(guard, path="/v1/models", client="127.0.0.1", **headers):
    given = {"Host": HOME, "Authorization": f"Bearer {KEY}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    failure = guard.refusal(path=path, headers=Headers(given), client=client)
    return 200 if failure is None else failure.status


@pytest.mark.parametrize(
    "host", [HOME, "localhost", "LOCALHOST:8800", "a.localhost", "[::1]:8800", "10.0.0.7", "node.example", "Node.Example:1"]
)  # fmt: skip
async def test_our_names_and_plain_addresses_are_answered(host):
    assert ask(guards(), Host=host) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "[::1", "a b", "ÿ", "notlocalhost"]
)  # fmt: skip
async def test_a_name_that_may_be_rebound_is_refused_and_so_is_nonsense(host):
    assert ask(guards(), Host=host) == 403


@pytest.mark.parametrize("origin", [f"http://{HOME}", f"https://{HOME}", f"HTTP://{HOME}"])
async def test_our_own_pages_may_ask(origin):
    assert ask(guards(), Origin=origin) == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9", "http://[", "", HOME, f"file://{HOME}", f"chrome-extension://{HOME}"]
)  # fmt: skip
async def test_other_pages_may_not_even_with_the_key(origin):
    assert ask(guards(), Origin=origin) == 403


@pytest.mark.parametrize("given", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER  {KEY} "])
async def test_the_key_opens_whatever_the_case_of_its_scheme(given):
    assert ask(guards(), Authorization=given) == 200


@pytest.mark.parametrize(
    "given", ["", KEY, f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer ", "Bearer ÿ"]
)
async def test_anything_but_the_key_does_not(given):
    assert ask(guards(), Authorization=given) == 401


@pytest.mark.parametrize("path", ["/", "/health", "/health/ready", "/metrics"])
async def test_the_public_pages_need_no_key_on_this_machine(path):
    assert ask(guards(), path, Authorization="") == 200


async def test_metrics_are_for_this_machine_alone_and_a_proxy_on_it_is_somebody_else():
    assert ask(guards(), "/metrics", client="10.0.0.7", Authorization="") == 401
    assert ask(guards(), "/metrics", client="unknown", Authorization="") == 401
    for header in ("Forwarded", "Via", "X_Forwarded_For", "X_Real_Ip"):
        assert ask(guards(), "/metrics", Authorization="", **{header: "8.8.8.8"}) == 401
    assert ask(guards(), "/metrics", client="::1", Authorization="") == 200


async def test_too_many_requests_wait_for_the_bucket_to_fill(autojump_clock):
    guard = guards(rate=0.5, burst=2)
    assert [ask(guard) for _ in range(3)] == [200, 200, 429]
    failure = guard.refusal(
        path="/", headers=Headers({"Host": HOME, "Authorization": f"Bearer {KEY}"}), client="127.0.0.1"
    )
    assert failure.retry_after == pytest.approx(2)
    autojump_clock.jump(2)
    assert [ask(guard) for _ in range(2)] == [200, 429]
    assert ask(guard, client="10.0.0.7") == 200, "another address has its own"


async def test_strangers_are_limited_and_do_not_use_up_what_the_user_may_do(autojump_clock):
    guard = guards(rate=0.5, burst=2)
    assert [ask(guard, Authorization="Bearer guess") for _ in range(3)] == [401, 401, 429]
    assert ask(guard, "/health", Authorization="") == 429, "a page that loads /health for ever is a stranger too"
    assert [ask(guard) for _ in range(2)] == [200, 200]


async def test_a_guard_does_not_show_its_key():
    assert KEY not in repr(guards())
