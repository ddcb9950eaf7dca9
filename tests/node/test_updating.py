"""Settings that cannot work are one sentence, and without a checker nobody waits for one."""

from pathlib import Path

import attrs
import pytest
from support.release_server import KEYS, key_text

from meshnode import __version__
from meshnode.config.schema import NodeConfig, NodeSection, UpdatesConfig
from meshnode.errors import ConfigError, UpdateBlocked
from meshnode.flow.lanes import Lanes
from meshnode.node.channels import Channels
from meshnode.node.updating import UpdateRequests, check_updates, updates_builder
from meshnode.observe.metrics import Metrics
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.update.checker import UpdateChecker, UpdateState

GOOD = UpdatesConfig(enabled=True, url="https://example.com/release.json", keys=tuple(map(key_text, KEYS)))


def config(updates=GOOD, **node):
    return NodeConfig(updates=updates, node=NodeSection(data_dir=Path("/nowhere"), **node))


def builder(settings):
    return updates_builder(settings, Channels(), Lanes(), HealthBoard(), Metrics(), lambda: None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": None}, "updates.url is not set"),
        ({"keys": ()}, r"updates\.keys has 0 keys and updates\.threshold is 2"),
        ({"keys": GOOD.keys[:1]}, r"updates\.keys has 1 keys"),
        ({"threshold": 4}, r"has 3 keys and updates\.threshold is 4"),
    ],
)
def test_enabled_without_what_it_takes_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        check_updates(config(attrs.evolve(GOOD, **changes)))
    check_updates(config(attrs.evolve(GOOD, enabled=False, **changes)))


def test_there_is_a_checker_where_updates_are_on_and_the_node_is_not_offline():
    assert builder(NodeConfig()) is None
    assert builder(config(offline=True)) is None
    assert isinstance(builder(config())(Pulse()), UpdateChecker)


@pytest.mark.parametrize(
    ("settings", "words"), [(NodeConfig(), "updates are off"), (config(offline=True), "this node is offline")]
)
async def test_without_a_checker_it_is_said_why(settings, words):
    channels = Channels()
    requests = UpdateRequests(settings, channels.updates, channels.update_state)
    assert words in requests.status()["problem"]
    for ask in (requests.check, requests.apply):
        with pytest.raises(UpdateBlocked, match=words):
            await ask()


def test_the_status_is_what_the_checker_found():
    channels = Channels()
    channels.update_state.set(UpdateState(failed={"2.0": "it ended with status 1"}))
    said = UpdateRequests(config(), channels.updates, channels.update_state).status()
    assert (said["running"], said["installation"], said["problem"]) == (__version__, __version__, None)
    assert said["failed"] == {"2.0": "it ended with status 1"}
