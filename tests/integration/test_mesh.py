"""Real nodes on loopback with the real model: they find each other, answer together, and lose one without losing the answer."""

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import attrs
import openai
import pytest
from support.real_mesh import CRASHING, Mesh, ask, command, eventually
from support.surfaces import ASKED, chat, told_by_all, vectors
from support.tiny_gguf import write_tiny_llama

pytestmark = [pytest.mark.processes, pytest.mark.starter]

STORY = {
    "model": "starter",
    "messages": [{"role": "user", "content": "Tell me a long story about a lighthouse."}],
    "temperature": 0,
    "max_tokens": 32,
}
BODIES = {"greedy": STORY, "seeded": STORY | {"temperature": 0.8, "seed": 7}}
NAME = "smollm2-135m-instruct"
HOLDERS = {"a": "0:10", "b": "10:20", "c": "20:30", "a2": "0:10", "b2": "10:20"}
NODES = ("asker", *HOLDERS)
# Prompts shorter than a page: nothing of them is kept, so that every interface says 0 for what was cached.
SAID = {name: attrs.evolve(asked, sentences=1) for name, asked in ASKED.items()}
REASONS = {
    "ended": "stop",
    "cut": "length",
    "stopped": "stop",
    "formed": "stop",
    "offered": "length",
    "called": "tool_calls",
}
TEXTS = ["A cat.", "The sea, the sea, the open sea."]


@pytest.fixture(scope="module")
def started(tmp_path_factory, starter_wheel):
    """A node for each third of the model, spares for two thirds, and one that holds nothing and whom the others begin with."""
    with Mesh(tmp_path_factory.mktemp("mesh"), starter_wheel) as mesh:
        mesh.traces = tmp_path_factory.mktemp("traces")
        options = {"program": CRASHING, "BENCH_TRACES": str(mesh.traces)}
        mesh.start("asker", **options)
        for name, blocks in HOLDERS.items():
            mesh.begin(name, blocks=blocks, bootstrap="asker", **options)
        mesh.begin("alone", "--model", "starter", MESHNODE_NETWORK_ENABLED="false")
        for name in (*HOLDERS, "alone"):
            mesh.nodes[name].__enter__()
        alone = mesh.nodes["alone"]
        mesh.undisturbed = {name: ask(alone, body) for name, body in BODIES.items()}
        mesh.told = {name: chat(alone.http, asked, stream=False) for name, asked in SAID.items()}
        mesh.vectors = vectors(alone.http, TEXTS)
        mesh.end("alone")
        yield mesh


@pytest.fixture
def mesh(started):
    """The mesh with everybody there, whatever an earlier test did."""
    for name in NODES:
        if name not in started.nodes:
            started.restart(name)
    for name in NODES:
        eventually(lambda name=name: started.links(name) >= {*NODES} - {name}, f"{name} has links to all others")
    return started


def holder_of(blocks):
    """Choose by what a node of the route holds; not by its place, since two spares share their blocks where much is asked for."""
    return lambda names: next(name for name in names if HOLDERS[name] == blocks)


def strike(mesh, chosen, number, pieces=12):
    """Return what signals a node of the route, once, after some pieces of an answer."""
    struck, lock = [], threading.Lock()

    def meanwhile(answer):
        if answer.pieces >= pieces and not struck:
            with lock:
                if not struck:
                    struck.append(chosen(mesh.names(answer.route)))
                    mesh.signal(struck[0], number)

    return meanwhile, struck


def test_every_node_answers_with_the_text_of_one_that_holds_all(mesh):
    alone = mesh.undisturbed["greedy"]
    assert alone.route == "local 0:30"
    assert alone.finish_reason == "length"
    for name in ("asker", "a", "b", "c"):
        answer = ask(mesh.nodes[name], STORY)
        assert answer.outcome == alone.outcome, name
        assert [stage.split()[1] for stage in answer.route.split(" > ")] == ["0:10", "10:20", "20:30"]
        assert {HOLDERS[each] for each in mesh.names(answer.route)} == {"0:10", "10:20", "20:30"}
        assert answer.recovered == 0
    seeded = ask(mesh.nodes["b"], BODIES["seeded"])
    assert seeded.outcome == mesh.undisturbed["seeded"].outcome != alone.outcome


def test_a_token_costs_no_stream_and_no_link(mesh):
    def told(kind):
        """Return how many of these all nodes and workers have written down, those apart by which they announce their shards."""
        lines = [line for file in mesh.traces.iterdir() for line in file.read_text().splitlines()]
        return sum(line.startswith(kind) and "/dht/" not in line for line in lines)

    ask(mesh.nodes["a"], STORY)  # the first answer over a route has its workers connected
    counts, handed = [], told("handed")
    answer = ask(mesh.nodes["a"], STORY, meanwhile=lambda _: counts.append(told("opened")))
    assert told("handed") - handed > 30, "tokens do not go round between the workers, who are connected"
    assert answer.outcome == mesh.undisturbed["greedy"].outcome
    assert len(counts) > 20
    assert len(set(counts)) == 1
    assert counts[0] >= len(NODES)  # what counts them works: each has a link to the asker at least


@pytest.mark.parametrize("place", ["asker", "a"], ids=["delegated", "split"])
def test_every_interface_says_what_one_node_says_all_at_once(mesh, place):
    http = mesh.nodes[place].http
    with ThreadPoolExecutor(len(SAID)) as pool:
        for name, told in zip(SAID, pool.map(lambda asked: told_by_all(http, asked), SAID.values()), strict=True):
            assert told == dict.fromkeys(told, mesh.told[name]), name
            assert {each.cached_tokens for each in told.values()} - {None} == {0}, name
    assert {name: told.reason for name, told in mesh.told.items()} == REASONS
    assert vectors(http, TEXTS) == mesh.vectors


@pytest.mark.parametrize("place", ["asker", "a"], ids=["delegated", "split"])
def test_what_was_read_before_is_not_read_again_and_changes_no_answer(mesh, place):
    http, long = mesh.nodes[place].http, ASKED["cut"]
    told = [chat(http, long, stream) for stream in (False, True, False, True)]
    assert told == [told[0]] * len(told)
    assert told[0].prompt_tokens > 256
    # Who has read it gets it again; once elsewhere at most, where a node is seen to be busy.
    assert {each.cached_tokens for each in told} <= {0, 256}
    assert [each.cached_tokens for each in told].count(256) >= 2


def test_the_openai_sdk_streams_from_a_node_that_holds_nothing(mesh):
    node = mesh.nodes["asker"]
    key = node.http.headers["Authorization"].removeprefix("Bearer ")
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key=key, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [NAME, "starter"]
        stream = client.chat.completions.create(**STORY, stream=True)
        assert "".join(event.choices[0].delta.content or "" for event in stream) == mesh.undisturbed["greedy"].text
        whole = client.chat.completions.create(**STORY)
        assert whole.choices[0].message.content == mesh.undisturbed["greedy"].text


def test_status_and_peers_show_the_mesh(mesh):
    folder = mesh.folder("asker")
    status = json.loads(command("status", "--json", "--data-dir", folder))
    assert status["peer_id"] == mesh.peer_id("asker")
    assert status["listen_addresses"]
    for address in status["listen_addresses"]:
        assert address.startswith("/ip4/127.0.0.1/tcp/")
        assert address.endswith(f"/p2p/{status['peer_id']}")

    def measured():
        rows = json.loads(command("peers", "--json", "--data-dir", folder))["peers"]
        return all(row["round_trip_ms"] for row in rows if row["stages"]) and {row["peer"]: row for row in rows}

    peers = eventually(measured, "a round trip to every peer has been measured")
    assert {peer: row["stages"][0]["blocks"] for peer, row in peers.items() if row["stages"]} == {
        mesh.peer_id(name): blocks for name, blocks in HOLDERS.items()
    }
    rows = [peers[mesh.peer_id(name)] for name in HOLDERS]
    assert all(row["state"] == "alive" and row["round_trip_ms"] > 0 for row in rows)
    assert len({row["stages"][0]["drift_class"] for row in rows}) == 1
    assert {row["stages"][0]["model"] for row in rows} == {NAME}
    table = command("peers", "--data-dir", folder)
    assert all(f"{NAME} {blocks}" in table for blocks in HOLDERS.values())


def together(mesh, asked, meanwhile=None):
    """Return the answers to requests made at the same time: (name of a node, name of a body) pairs."""
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(lambda each: ask(mesh.nodes[each[0]], BODIES[each[1]], meanwhile=meanwhile), asked))


def check_losses(mesh, asked, answers, lost):
    """Whoever was asked for what, it came whole; those that had `lost` on their route say that they went on without it.

    But for one whose last token the workers had, ahead of its reader, when the node was lost.
    """
    assert [answer.outcome for answer in answers] == [mesh.undisturbed[body].outcome for _, body in asked]
    hit = [answer for answer in answers if lost in mesh.names(answer.route)]
    assert any(answer.recovered for answer in hit)
    for answer in filter(lambda each: each.recovered, hit):
        assert lost not in mesh.names(answer.last_route)


def bury(mesh, name, number):
    """Clear away what was killed; what was frozen thaws and comes back, which the next test waits for."""
    if number == signal.SIGSTOP:
        mesh.signal(name, signal.SIGCONT)
    else:
        mesh.end(name)


@pytest.mark.parametrize(
    ("blocks", "number"),
    [("0:10", signal.SIGKILL), ("0:10", signal.SIGSTOP), ("10:20", signal.SIGSTOP)],  # the next test kills a stage
    ids=["coordinator-killed", "coordinator-frozen", "stage-frozen"],
)
def test_a_node_that_is_lost_costs_a_pause_and_not_a_letter(mesh, blocks, number):
    meanwhile, struck = strike(mesh, holder_of(blocks), number)
    asked = [("asker", "greedy"), ("c", "seeded")]
    try:
        check_losses(mesh, asked, together(mesh, asked, meanwhile), struck[0])
    finally:
        bury(mesh, struck[0], number)


def test_many_answers_at_once_lose_a_node_and_no_letter(mesh):
    meanwhile, struck = strike(mesh, holder_of("10:20"), signal.SIGKILL)  # who is asked stays
    asked = [(name, body) for name in ("asker", "a", "a2", "c") for body in BODIES]
    try:
        check_losses(mesh, asked, together(mesh, asked, meanwhile), struck[0])
    finally:
        bury(mesh, struck[0], signal.SIGKILL)


def test_a_client_that_leaves_leaves_no_cache_behind(mesh):
    def leave(answer):
        return all(mesh.metric(name, "meshnode_engine_cache_bytes") for name in mesh.names(answer.route))

    answer = ask(mesh.nodes["asker"], STORY | {"max_tokens": 4000}, meanwhile=leave)
    assert answer.finish_reason is None
    for name in HOLDERS:
        eventually(lambda name=name: not mesh.metric(name, "meshnode_engine_cache_bytes"), f"{name} holds nothing")
        assert not mesh.metric(name, "meshnode_inference_active_sessions")


@contextmanager
def guests(mesh, **plans):
    """Start further nodes side by side; they begin with the asker, and leave with the context."""
    try:
        for name, plan in plans.items():
            mesh.begin(name, *plan.pop("arguments", ()), bootstrap="asker", **plan)
        for name in plans:
            mesh.nodes[name].__enter__()
        yield
    finally:
        for name in plans:
            mesh.end(name)


def meets_all(mesh, name):
    eventually(lambda: mesh.links(name) >= set(NODES), f"{name} has links to all")


def test_a_node_of_another_network_is_refused(mesh):
    with guests(mesh, foreign={"MESHNODE_NETWORK_NETWORK_ID": "another"}):
        foreign = mesh.peer_id("foreign")
        refused = {"event": "peer not admitted", "peer": foreign[:12]}.items()
        eventually(lambda: any(refused <= line.items() for line in mesh.nodes["asker"].log), "the asker refuses it")
        assert not [peer for peer in mesh.status("foreign")["peers"] if peer["connected"] or peer["stages"]]
        for name in NODES:
            assert foreign not in {peer["peer"] for peer in mesh.status(name)["peers"] if peer["connected"]}


def test_an_invitation_leads_into_the_mesh_and_is_not_needed_twice(mesh):
    code = json.loads(command("invite", "--json", "--data-dir", mesh.folder("b")))["code"]
    careful = {"MESHNODE_INFERENCE_PRIVACY": "pool_and_lan"}  # this machine is as near as can be
    mesh.start("guest", **careful)  # of the same network, but it knows nobody
    try:
        assert mesh.status("guest")["peers"] == []
        settings = {"MESHNODE_NETWORK_NETWORK_ID": mesh.network_id}
        said = json.loads(command("join", code, "--json", "--data-dir", mesh.folder("guest"), **settings))
        assert said["connected"] == mesh.peer_id("b")
        meets_all(mesh, "guest")  # b has introduced it
        assert ask(mesh.nodes["guest"], STORY).outcome == mesh.undisturbed["greedy"].outcome
        mesh.end("guest")
        (mesh.folder("guest") / "config.toml").unlink()  # what it knows now is in its store only
        mesh.restart("guest")
        meets_all(mesh, "guest")
    finally:
        mesh.end("guest")


def test_an_invitation_can_be_taken_before_the_first_start(mesh):
    code = command("invite", "--data-dir", mesh.folder("c")).strip()
    assert "saved" in command("join", code, "--data-dir", mesh.folder("newcomer"))
    mesh.start("newcomer", MESHNODE_NETWORK_NETWORK_ID=None)
    try:
        meets_all(mesh, "newcomer")
    finally:
        mesh.end("newcomer")


def test_a_request_goes_no_further_than_the_settings_of_its_node_allow(mesh):
    plans = {
        "private": {"blocks": "0:1", "MESHNODE_INFERENCE_PRIVACY": "this_node_only"},
        "thrower": {"blocks": "14:15", "MESHNODE_INFERENCE_BOOMERANG": "true"},
    }
    with guests(mesh, **plans):
        for name in plans:
            meets_all(mesh, name)
        refused, thrown = together(mesh, [(name, "greedy") for name in plans])
        assert refused.status == 503
        assert "blocks 1:30 of 30" in refused.error["message"]
        assert thrown.outcome == mesh.undisturbed["greedy"].outcome
        stages = list(
            zip(mesh.names(thrown.route), (stage.split()[1] for stage in thrown.route.split(" > ")), strict=True)
        )
        assert stages[0] == ("thrower", "embedding")
        assert stages[-1] == ("thrower", "head")


def test_other_weights_under_the_same_name_are_not_used(mesh, tmp_path):
    weights = write_tiny_llama(tmp_path / "other.gguf", name="SmolLM2 135M Instruct", blocks=30, feed_forward=64)
    (mesh.folder("impostor") / "config.toml").write_text(f'[models]\naliases = {{ starter = "{NAME}" }}\n')
    with guests(mesh, impostor={"arguments": ("--model", str(weights))}):
        impostor = mesh.peer_id("impostor")

        def heard(name):
            return [row["stages"] for row in mesh.status(name)["peers"] if row["peer"] == impostor and row["stages"]]

        for name in ("asker", "a"):
            (stages,) = eventually(lambda name=name: heard(name), f"{name} hears of the other weights")
            assert [(stage["model"], stage["blocks"]) for stage in stages] == [(NAME, "0:30")]
            answer = ask(mesh.nodes[name], STORY)
            assert answer.outcome == mesh.undisturbed["greedy"].outcome
            assert "impostor" not in mesh.names(answer.route)


@pytest.mark.parametrize("whose", ["asker", "coordinator", "stage"])
def test_a_crash_in_libp2p_restarts_the_network_and_not_the_node(mesh, whose):
    chosen = {"asker": lambda _: "asker", "coordinator": holder_of("0:10"), "stage": holder_of("10:20")}[whose]
    where = {name: mesh.status(name)["listen_addresses"] for name in NODES}
    meanwhile, struck = strike(mesh, chosen, signal.SIGUSR1)
    answer = ask(mesh.nodes["asker"], STORY, meanwhile=meanwhile)
    node = mesh.nodes[struck[0]]
    assert node.process.poll() is None

    def restarted():
        network = next(row for row in mesh.status(struck[0])["subsystems"] if row["name"] == "NetworkManager")
        return network["restarts"] >= 1 and network

    network = eventually(restarted, f"the network of {struck[0]} restarts")
    assert "injected into libp2p" in network["last_error"]
    assert answer.outcome == mesh.undisturbed["greedy"].outcome
    addresses = eventually(lambda: mesh.status(struck[0])["listen_addresses"], f"{struck[0]} listens again")
    assert addresses == where[struck[0]]  # where others, and invitations, look for it
