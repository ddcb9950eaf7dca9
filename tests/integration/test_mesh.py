"""Real nodes on loopback with the real model: they find each other, answer together, and lose one without losing the answer."""

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from support.real_mesh import CRASHING, Mesh, ask, command, eventually
from support.tiny_gguf import write_tiny_llama

pytestmark = [pytest.mark.processes, pytest.mark.starter]

STORY = {
    "model": "starter",
    "messages": [{"role": "user", "content": "Tell me a long story about a lighthouse."}],
    "temperature": 0,
    "max_tokens": 48,
}
BODIES = {"greedy": STORY, "seeded": STORY | {"temperature": 0.8, "seed": 7}}
NAME = "smollm2-135m-instruct"
HOLDERS = {"a": "0:10", "b": "10:20", "c": "20:30", "a2": "0:10", "b2": "10:20", "c2": "20:30"}
NODES = ("asker", *HOLDERS)


@pytest.fixture(scope="module")
def started(tmp_path_factory, starter_wheel):
    """Two nodes for each third of the model, and one that holds nothing and is whom the others begin with."""
    with Mesh(tmp_path_factory.mktemp("mesh"), starter_wheel) as mesh:
        mesh.start("asker", program=CRASHING)
        for name, blocks in HOLDERS.items():
            mesh.begin(name, blocks=blocks, bootstrap="asker", program=CRASHING)
        mesh.begin("alone", "--model", "starter", MESHNODE_NETWORK_ENABLED="false")
        for name in (*HOLDERS, "alone"):
            mesh.nodes[name].__enter__()
        mesh.undisturbed = {name: ask(mesh.nodes["alone"], body) for name, body in BODIES.items()}
        mesh.end("alone")
        yield mesh


@pytest.fixture
def mesh(started):
    """The mesh with everybody there, whatever an earlier test did."""
    for name in NODES:
        if name not in started.nodes:
            started.restart(name)
    for name in NODES:
        eventually(lambda name=name: started.links(name) >= {*NODES} - {name}, f"{name} has links to all")
    return started


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


def test_the_openai_sdk_streams_from_a_node_that_holds_nothing(mesh):
    node = mesh.nodes["asker"]
    key = node.http.headers["Authorization"].removeprefix("Bearer ")
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key=key, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [NAME]
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
    peers = {row["peer"]: row for row in json.loads(command("peers", "--json", "--data-dir", folder))["peers"]}
    assert {peer: row["stages"][0]["blocks"] for peer, row in peers.items() if row["stages"]} == {
        mesh.peer_id(name): blocks for name, blocks in HOLDERS.items()
    }
    rows = [peers[mesh.peer_id(name)] for name in HOLDERS]
    assert all(row["state"] == "alive" and row["round_trip_ms"] > 0 for row in rows)
    assert len({row["stages"][0]["drift_class"] for row in rows}) == 1
    assert {row["stages"][0]["model"] for row in rows} == {NAME}
    table = command("peers", "--data-dir", folder)
    assert all(f"{NAME} {blocks}" in table for blocks in HOLDERS.values())


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(("number", "place"), [(signal.SIGKILL, 1), (signal.SIGSTOP, 2)], ids=["killed", "frozen"])
def test_a_stage_that_is_lost_costs_a_pause_and_not_a_letter(mesh, number, place, body):
    meanwhile, struck = strike(mesh, lambda names: names[place], number)
    try:
        answer = ask(mesh.nodes["c" if place == 1 else "asker"], BODIES[body], meanwhile=meanwhile)
        assert struck
        assert answer.outcome == mesh.undisturbed[body].outcome
        assert answer.recovered >= 1
        assert struck[0] not in mesh.names(answer.last_route)
    finally:
        if number == signal.SIGSTOP:
            mesh.signal(struck[0], signal.SIGCONT)  # it comes back to the mesh, which the next test sees
        else:
            mesh.end(struck[0])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_coordinator_that_is_lost_costs_whom_it_worked_for_a_pause(mesh, number):
    meanwhile, struck = strike(mesh, lambda names: names[0], number)
    try:
        answer = ask(mesh.nodes["asker"], STORY, meanwhile=meanwhile)
        assert struck
        assert answer.outcome == mesh.undisturbed["greedy"].outcome
        assert answer.recovered >= 1
        assert struck[0] not in mesh.names(answer.last_route)
    finally:
        if number == signal.SIGSTOP:
            mesh.signal(struck[0], signal.SIGCONT)
        else:
            mesh.end(struck[0])


def test_many_answers_at_once_lose_a_node_and_no_letter(mesh):
    meanwhile, struck = strike(mesh, lambda names: names[-1], signal.SIGKILL)
    with ThreadPoolExecutor(6) as pool:
        asked = ["a", "a2", "asker", "asker", "b", "c"]
        answers = list(pool.map(lambda name: ask(mesh.nodes[name], STORY, meanwhile=meanwhile), asked))
    mesh.end(struck[0])
    assert [answer.outcome for answer in answers] == [mesh.undisturbed["greedy"].outcome] * len(asked)
    lost = [answer for answer in answers if struck[0] in mesh.names(answer.route)]
    assert all(answer.recovered for answer in lost)
    assert lost


def test_a_client_that_leaves_leaves_no_cache_behind(mesh):
    def leave(answer):
        return all(mesh.metric(name, "meshnode_engine_cache_bytes") for name in mesh.names(answer.route))

    answer = ask(mesh.nodes["asker"], STORY | {"max_tokens": 4000}, meanwhile=leave)
    assert answer.finish_reason is None
    for name in HOLDERS:
        eventually(lambda name=name: not mesh.metric(name, "meshnode_engine_cache_bytes"), f"{name} holds nothing")
        assert not mesh.metric(name, "meshnode_inference_active_sessions")


def test_a_node_of_another_network_is_refused(mesh):
    mesh.start("foreign", bootstrap="asker", MESHNODE_NETWORK_NETWORK_ID="another")
    try:
        foreign = mesh.peer_id("foreign")
        eventually(
            lambda: [
                line
                for line in mesh.nodes["asker"].log
                if line["event"] == "peer not admitted" and line["peer"] == foreign[:12]
            ],
            "the asker refuses it",
        )
        assert not [peer for peer in mesh.status("foreign")["peers"] if peer["connected"] or peer["stages"]]
        for name in NODES:
            assert foreign not in {peer["peer"] for peer in mesh.status(name)["peers"] if peer["connected"]}
    finally:
        mesh.end("foreign")


def test_an_invitation_leads_into_the_mesh_and_is_not_needed_twice(mesh):
    code = json.loads(command("invite", "--json", "--data-dir", mesh.folder("b")))["code"]
    mesh.start("guest")
    try:
        assert mesh.status("guest")["peers"] == []
        settings = {"MESHNODE_NETWORK_NETWORK_ID": mesh.network_id}
        said = json.loads(command("join", code, "--json", "--data-dir", mesh.folder("guest"), **settings))
        assert said["connected"] == mesh.peer_id("b")
        eventually(lambda: mesh.links("guest") >= set(NODES), "the guest meets all")  # b has introduced it
        assert ask(mesh.nodes["guest"], STORY).outcome == mesh.undisturbed["greedy"].outcome
        mesh.end("guest")
        (mesh.folder("guest") / "config.toml").unlink()  # what it knows now is in its store only
        mesh.restart("guest")
        eventually(lambda: mesh.links("guest") >= set(NODES), "the guest finds all again")
        command("join", code, "--data-dir", mesh.folder("newcomer"))  # before it has ever run, so its settings lead it
        mesh.start("newcomer", MESHNODE_NETWORK_NETWORK_ID=None)
        eventually(lambda: mesh.links("newcomer") >= set(NODES), "the newcomer meets all")
        mesh.end("newcomer")
    finally:
        mesh.end("guest")


def test_a_request_that_must_stay_here_does(mesh):
    mesh.start("private", blocks="0:10", bootstrap="asker", MESHNODE_INFERENCE_PRIVACY="this_node_only")
    try:
        eventually(lambda: mesh.links("private") >= set(NODES), "it meets all")
        answer = ask(mesh.nodes["private"], STORY)
        assert answer.status == 503
        assert "blocks 10:30 of 30" in answer.error["message"]
    finally:
        mesh.end("private")


def test_what_is_shared_with_the_local_network_stays_on_it(mesh):
    mesh.start("careful", bootstrap="asker", MESHNODE_INFERENCE_PRIVACY="pool_and_lan")
    try:
        eventually(lambda: mesh.links("careful") >= set(NODES), "it meets all")
        assert ask(mesh.nodes["careful"], STORY).outcome == mesh.undisturbed["greedy"].outcome
    finally:
        mesh.end("careful")


def test_a_boomerang_begins_and_ends_where_it_was_asked(mesh):
    mesh.start("thrower", blocks="0:1", bootstrap="asker", MESHNODE_INFERENCE_BOOMERANG="true")
    try:
        eventually(lambda: mesh.links("thrower") >= set(NODES), "it meets all")
        answer = ask(mesh.nodes["thrower"], STORY)
        names = mesh.names(answer.route)
        assert names[0] == names[-1] == "thrower"
        assert "thrower" not in names[1:-1]
        assert answer.outcome == mesh.undisturbed["greedy"].outcome
    finally:
        mesh.end("thrower")


def test_other_weights_under_the_same_name_are_not_used(mesh, tmp_path):
    weights = write_tiny_llama(tmp_path / "other.gguf", name="SmolLM2 135M Instruct", blocks=30, feed_forward=64)
    aliases = f'[models]\naliases = {{ starter = "{NAME}" }}\n'
    (mesh.folder("impostor") / "config.toml").write_text(aliases)
    mesh.start("impostor", "--model", str(weights), bootstrap="asker")
    try:
        impostor = mesh.peer_id("impostor")
        for name in ("asker", "a"):
            rows = eventually(
                lambda name=name: [
                    row for row in mesh.status(name)["peers"] if row["peer"] == impostor and row["stages"]
                ],
                f"{name} hears of the other weights",
            )
            assert rows[0]["stages"][0]["model"] == NAME
            answer = ask(mesh.nodes[name], STORY)
            assert answer.outcome == mesh.undisturbed["greedy"].outcome
            assert "impostor" not in mesh.names(answer.route)
    finally:
        mesh.end("impostor")


@pytest.mark.parametrize("whose", ["asker", "coordinator", "stage"])
def test_a_crash_in_libp2p_restarts_the_network_and_not_the_node(mesh, whose):
    def chosen(names):
        return "asker" if whose == "asker" else names[0 if whose == "coordinator" else 1]

    meanwhile, struck = strike(mesh, chosen, signal.SIGUSR1)
    answer = ask(mesh.nodes["asker"], STORY, meanwhile=meanwhile)
    node = mesh.nodes[struck[0]]
    assert node.process.poll() is None
    subsystems = {row["name"]: row for row in mesh.status(struck[0])["subsystems"]}
    assert subsystems["NetworkManager"]["restarts"] >= 1
    assert "injected into libp2p" in subsystems["NetworkManager"]["last_error"]
    assert answer.outcome == mesh.undisturbed["greedy"].outcome
