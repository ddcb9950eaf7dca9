"""The page in a real browser: it lets itself in, shows the node, chats, and treats all text as text."""

import pytest
import trio
from support.api import KEY, FakeRouter
from support.chromium import find_chromium, open_page

from meshnode.errors import WorkerLost

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.processes,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]
STATUS = {
    "node": "here",
    "version": "9.9",
    "uptime": 125.0,
    "subsystems": [{"name": "ApiServer", "state": "running", "restarts": 0}],
    "models": [{"name": "tiny", "quantization": "Q4_0", "context_length": 1024, "loaded": True, "detail": ""}],
    "acquisitions": [{"reference": "other", "phase": "importing", "done_bytes": 1, "total_bytes": 4, "error": None}],
    "conditions": [{"subsystem": "ModelKeeper", "text": "<b>odd</b> trouble"}],
}
OPENED = "!document.getElementById('opened').hidden"


@pytest.fixture
async def page(tmp_path):
    async with open_page(CHROMIUM, tmp_path) as page:
        yield page
        assert not [line for line in page.said if "Content Security Policy" in line or "exceptionThrown" in line]


@pytest.fixture
def visit(serve, page):
    def start(router=None, status=STATUS):
        return serve(router, status=lambda: status)

    return start


async def test_the_key_in_the_address_opens_the_page_and_leaves_the_address(visit, page, log):
    async with visit() as node:
        await page.go(f"{node.url}/#key={KEY}")
        await page.until(OPENED)
        assert await page.value("location.href") == f"{node.url}/"
        assert await page.value("sessionStorage.getItem('meshnode.key')") == KEY
        await page.go(f"{node.url}/?again")  # the tab remembers
        await page.until(OPENED)
    assert KEY not in log.getvalue()


async def test_a_ticket_in_the_address_opens_the_page_once(visit, page, dashboard):
    ticket = dashboard.tickets.issue
    async with visit() as node:
        address = f"{node.url}/#ticket={ticket()}"
        await page.go(address)
        await page.until(OPENED)
        assert await page.value("location.href") == f"{node.url}/"
        await page.value("sessionStorage.clear()")
        await page.go("about:blank")
        await page.go(address)
        await page.until("!document.getElementById('unlock').hidden")


async def test_the_form_takes_the_key_and_says_when_it_is_wrong(visit, page):
    async with visit() as node:
        await page.go(f"{node.url}/#key=wrong")
        await page.until("document.getElementById('unlock-problem').textContent.includes('not accept')")
        assert await page.value("sessionStorage.getItem('meshnode.key')") is None
        await page.type("#key", KEY)
        await page.press_enter()
        await page.until(OPENED)


async def test_it_shows_the_node_and_how_to_reach_it(visit, page):
    async with visit() as node:
        await page.go(f"{node.url}/#key={KEY}")
        await page.until(OPENED)
        text = await page.text()
    for words in (
        "here",
        "9.9",
        "2 min",
        "tiny",
        "Q4_0",
        "loaded",
        "other: importing, 25 %",
        "ApiServer",
        "<b>odd</b> trouble",
        f"{node.url}/v1",
    ):
        assert words in text
    assert KEY not in text


async def test_it_refreshes_and_says_when_the_node_is_gone(visit, page):
    status = STATUS | {"models": []}
    async with visit(status=status) as node:
        await page.go(f"{node.url}/#key={KEY}")
        await page.until("!document.getElementById('no-models').hidden && document.getElementById('send').disabled")
        status["models"] = STATUS["models"]
        await page.until("document.getElementById('model').value === 'tiny'")
    await page.until("document.getElementById('summary').textContent.includes('does not answer')")


async def ask(page, question="Hi"):
    await page.until(OPENED)
    await page.type("#question", question)
    await page.press_enter()


async def test_an_answer_streams_in_as_text(visit, page):
    router = FakeRouter(words=["<img src=x onerror=alert(1)>", " ü ", "end"], queue=trio.Event())
    async with visit(router) as node:
        await page.go(f"{node.url}/#key={KEY}")
        await ask(page)
        await page.until("!document.getElementById('stop').hidden")
        router.queue.set()
        await page.until("document.querySelector('.assistant').textContent === '<img src=x onerror=alert(1)> ü end'")
        assert await page.value("document.querySelectorAll('img').length") == 0
        await page.until("document.getElementById('stop').hidden")
        await ask(page, "And now?")
        await page.until("document.querySelectorAll('.assistant').length === 2")
        await page.until("document.getElementById('stop').hidden")
    first, second = (requests[0] for requests in router.requests)
    assert [message.content for message in first.messages] == ["Hi"]
    assert [message.role for message in second.messages] == ["user", "assistant", "user"]


async def test_stop_ends_the_request(visit, page):
    router = FakeRouter(words=["word "] * 10_000, pace=0.01)
    async with visit(router) as node:
        await page.go(f"{node.url}/#key={KEY}")
        await ask(page)
        await page.until("document.querySelector('.assistant')?.textContent.includes('word')")
        await page.click("#stop")
        with trio.fail_after(20):
            await router.ended.wait()
        await page.until("document.body.innerText.includes('stopped; the question is forgotten')")


async def test_an_answer_that_breaks_off_says_so(visit, page):
    router = FakeRouter(error=WorkerLost("the worker is gone"), fail_after=2)
    async with visit(router) as node:
        await page.go(f"{node.url}/#key={KEY}")
        await ask(page)
        await page.until("document.body.innerText.includes('the worker is gone; the question is forgotten')")
