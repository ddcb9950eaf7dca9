"""A headless Chromium, driven over its DevTools protocol."""

import contextlib
import json
import os
import shutil
import subprocess
from contextlib import asynccontextmanager

import attrs
import httpx
import trio
from trio_websocket import open_websocket_url

_NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium():
    """Return the program, or None where there is none; CHROME_PATH names one that is not on the path."""
    return os.environ.get("CHROME_PATH") or next(filter(None, map(shutil.which, _NAMES)), None)


@attrs.define(eq=False)
class Page:
    socket: object
    said: list = attrs.field(factory=list)  # what the console heard, and what broke
    _number: int = 0

    async def _ask(self, method, **parameters):
        self._number += 1
        await self.socket.send_message(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(await self.socket.get_message())
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                self.said.append(json.dumps(message["params"]))

    async def begin(self):
        for domain in ("Runtime", "Log", "Page"):
            await self._ask(f"{domain}.enable")

    async def go(self, url):
        await self._ask("Page.navigate", url=url)

    async def value(self, expression):
        answer = await self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression, seconds=30):
        """Wait until the expression is true, and return its value."""
        with trio.move_on_after(seconds):
            while True:
                # While a page is being replaced its context is gone, and expressions fail.
                with contextlib.suppress(AssertionError):
                    if value := await self.value(expression):
                        return value
                await trio.sleep(0.05)
        raise AssertionError(f"never true: {expression}; {await self.value('document.body.innerText')}; {self.said}")

    async def text(self):
        return await self.value("document.body.innerText")

    async def type(self, selector, text):
        await self.value(f"document.querySelector({json.dumps(selector)}).focus()")
        await self._ask("Input.insertText", text=text)

    async def press_enter(self):
        for kind in ("keyDown", "keyUp"):
            await self._ask(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
            )

    async def click(self, selector):
        await self.value(f"document.querySelector({json.dumps(selector)}).click()")


@asynccontextmanager
async def open_page(program, folder):
    """Start a browser with a profile of its own, and open an empty page."""
    arguments = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
    ]
    browser = await trio.lowlevel.open_process(
        [program, *arguments, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with trio.fail_after(60):
            told = folder / "DevToolsActivePort"
            while not (told.exists() and told.read_text().count("\n")):
                assert browser.poll() is None, "the browser did not start"
                await trio.sleep(0.05)
            port = told.read_text().split("\n")[0]
            async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
                target = (await client.put(f"http://127.0.0.1:{port}/json/new?about:blank")).json()
        async with open_websocket_url(target["webSocketDebuggerUrl"], max_message_size=1 << 24) as socket:
            page = Page(socket)
            await page.begin()
            yield page
    finally:
        browser.terminate()
        with trio.CancelScope(shield=True):
            await browser.wait()
