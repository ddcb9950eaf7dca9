"""Rows that no honest stage sends, to stages that compute with a real model: whoever made them is named and left out."""

import pytest
import torch
import trio
from support.batch_executor import BatchExecutor
from support.router_mesh import open_routers, six_blocks

from meshnode.types.evidence import Misdeed
from meshnode.wire.stage_messages import StageStepMessage

AFTER = 6  # tokens that are honest
NAN, INFINITE = b"\xc0\x7f", b"\x80\x7f"  # bfloat16


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return six_blocks(tmp_path_factory.mktemp("six"))


@pytest.fixture(autouse=True)
def one_thread():
    """Rows of a tiny model are not worth waking others for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("change", [
    pytest.param(lambda body: body[:-2] + NAN, id="one number that is none"),
    pytest.param(lambda body: INFINITE + body[2:], id="one that is infinite"),
    pytest.param(lambda body: body[:-1], id="half a number"),
])  # fmt: skip
async def test_who_sends_rows_that_cannot_be_computed_with_is_named_and_replaced(model, autojump_clock, change):
    async with open_routers(model) as mesh:
        await mesh.add("a", 0, 2, executor=BatchExecutor)
        await mesh.add("evil", 2, 4, executor=BatchExecutor)
        await mesh.add("c", 4, 6, executor=BatchExecutor)
        await mesh.add("spare", 2, 4, pace=1e-2, executor=BatchExecutor)
        honest = await mesh.nodes["a"].ask(count=12)
        assert (honest.error, honest.finished.recoveries) == (None, 0)
        assert "evil 2:4" in honest.started[0].route

        steps = []

        def tamper(own, peer, message, body):
            if own == "evil" and isinstance(message, StageStepMessage):
                steps.append(message)
                body = change(body) if len(steps) > AFTER else body
            return [(0.0, message, body)]

        mesh.network.tamper = tamper
        answer = await mesh.nodes["a"].ask(count=12)
        assert (answer.error, answer.text) == (None, honest.text)
        assert answer.finished.recoveries == 1
        assert "spare 2:4" in answer.finished.route
        assert await accused(mesh) == {("evil", Misdeed.WRONG_ROWS)}


async def accused(mesh):
    """Return what the nodes hold against each other."""
    found = set()
    for node in mesh.nodes.values():
        with trio.move_on_after(0.1), node.resources.mesh.evidence.serve() as letters:
            async for letter in letters:
                found.add((letter.question.peer, letter.question.misdeed))
    return found
