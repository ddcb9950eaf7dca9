"""A person at the terminal hears of each thing once, and of nothing before it is true."""

import attrs
import pytest
import trio

from meshnode.files.acquisitions import AcquisitionProgress
from meshnode.node.audience import inform
from meshnode.node.channels import Channels
from meshnode.node.mesh import NoMesh, NoPeers
from meshnode.node.model_keeper import Intent
from meshnode.node.views import ModelViews, NodeView
from meshnode.supervise.health import HealthBoard


@attrs.define
class Loaded:
    manifest: object
    is_ready: bool


class Recorder:
    def __init__(self):
        self.heard, self.progress = [], []

    def show_progress(self, rows):
        self.progress.append([row["phase"] for row in rows])

    def show_address(self, url, *, has_models):
        self.heard.append((url, has_models))

    def show_model(self, name):
        self.heard.append(name)

    def close(self):
        self.heard.append("closed")


@pytest.fixture
def channels():
    return Channels()


@pytest.fixture
def screen():
    return Recorder()


@pytest.fixture
async def started(catalog, channels, screen, nursery):
    views = ModelViews(catalog, channels.loaded, channels.intent, NoPeers(), 0)
    event = trio.Event()
    nursery.start_soon(
        inform, screen, event, NodeView("http://here", views, channels.progress, HealthBoard(), NoMesh("me", channels))
    )
    await trio.sleep(1)
    return event


async def test_the_address_is_told_once_the_api_answers(started, screen, autojump_clock):
    assert screen.heard == []
    started.set()
    await trio.sleep(5)
    assert screen.heard == [("http://here", False)]


async def test_a_model_on_its_way_counts_as_one(started, screen, channels, autojump_clock):
    channels.intent.set(Intent(("starter",), frozenset()))
    started.set()
    await trio.sleep(1)
    assert screen.heard == [("http://here", True)]


async def test_a_model_is_told_when_it_answers_and_only_the_first_time(
    started, screen, channels, make_entry, autojump_clock
):
    started.set()
    manifest = make_entry("tiny").manifest
    model = Loaded(manifest, is_ready=False)
    channels.loaded.set({manifest.id: model})
    await trio.sleep(1)
    assert len(screen.heard) == 1
    for ready in (True, False, True):  # its worker is lost and comes back
        model.is_ready = ready
        await trio.sleep(1)
    assert screen.heard[1:] == ["tiny"]


async def test_only_what_is_under_way_is_shown(started, screen, channels, autojump_clock):
    rows = [AcquisitionProgress("a", "done", 1, 1), AcquisitionProgress("b", "importing", 1, 2)]
    channels.progress.set((*rows, AcquisitionProgress("c", "failed", error="no")))
    await trio.sleep(1)
    assert screen.progress[-1] == ["importing"]
    channels.progress.set(())
    await trio.sleep(1)
    assert screen.progress[-1] == []


async def test_the_terminal_is_left_tidy(catalog, channels, screen, autojump_clock):
    views = ModelViews(catalog, channels.loaded, channels.intent, NoPeers(), 0)
    with trio.move_on_after(1):
        await inform(
            screen,
            trio.Event(),
            NodeView("http://here", views, channels.progress, HealthBoard(), NoMesh("me", channels)),
        )
    assert screen.heard == ["closed"]
