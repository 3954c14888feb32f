"""A page opened in a headless Chromium, which is asked over its DevTools protocol."""

import asyncio
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60  # seconds; a busy machine takes several to start a browser


class Browser:
    """One tab. `complaints` collects what the page does wrong: errors of any kind, and requests for anything but itself."""

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._folder, self._loop = folder, loop
        self._numbers = itertools.count(1)
        self._page = ""
        self.complaints: list[str] = []

    def _wait(self, task: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(task, PATIENCE))

    async def _connect(self) -> None:
        file = self._folder / "DevToolsActivePort"
        while not file.exists() or "\n" not in file.read_text():
            await asyncio.sleep(0.05)
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{file.read_text().split()[0]}/json") as answer:
            (tab,) = [found for found in await answer.json() if found["type"] == "page"]
        self._socket = await self._session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)

    async def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while (message := await self._socket.receive_json()).get("id") != number:
            self._heard(message)
        assert "error" not in message, (method, message)
        result: dict[str, Any] = message["result"]
        return result

    def _heard(self, event: dict[str, Any]) -> None:
        match event:
            case {"method": "Runtime.exceptionThrown", "params": params}:
                self.complaints.append(json.dumps(params["exceptionDetails"]))
            case {"method": "Runtime.consoleAPICalled", "params": {"type": "error" | "warning" | "assert"} as params}:
                self.complaints.append(json.dumps(params["args"]))
            case {"method": "Log.entryAdded", "params": {"entry": entry}}:
                self.complaints.append(entry["text"])
            case {"method": "Network.requestWillBeSent", "params": {"request": {"url": url}}}:
                if url != self._page and not url.startswith("data:"):
                    self.complaints.append(f"asked for {url}")

    def open(self, page: Path) -> None:
        """Load the page, in a window 1000 pixels wide."""
        self._wait(self._connect())
        for domain in ("Runtime", "Log", "Network", "Page"):
            self._wait(self._ask(f"{domain}.enable"))
        self._page = page.as_uri()
        self._wait(
            self._ask("Emulation.setDeviceMetricsOverride", width=1000, height=800, deviceScaleFactor=1, mobile=False)
        )
        self._wait(self._ask("Page.navigate", url=self._page))
        self.until("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self._wait(self._ask("Runtime.evaluate", expression=expression, returnByValue=True))
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until the expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.value(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.05)

    def press(self, *keys: str) -> None:
        """Press keys one after the other: names such as Tab, or a character."""
        texts, codes = (
            {"Enter": "\r", "Space": " "},
            {"Enter": 13, "Escape": 27, "Space": 32, "ArrowRight": 39, "Tab": 9},
        )
        for name in keys:
            key = {"key": texts.get(name, name) if name == "Space" else name, "code": name}
            code = {"windowsVirtualKeyCode": codes[name]} if name in codes else {}
            text = texts.get(name, name if len(name) == 1 else "")
            down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
            self._wait(self._ask("Input.dispatchKeyEvent", **down, **key, **code))
            self._wait(self._ask("Input.dispatchKeyEvent", type="keyUp", **key, **code))

    def close(self) -> None:
        """End the conversation."""
        self._wait(self._socket.close())
        self._wait(self._session.close())


@contextmanager
def browsing(page: Path, folder: Path) -> Iterator[Browser]:
    """A browser that shows `page`, with its profile in `folder`."""
    assert CHROMIUM is not None
    # a sandbox cannot be had as root; the page is ours
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [CHROMIUM, *options, f"--user-data-dir={folder}", "about:blank"], stderr=log, stdout=log
        )
    loop = asyncio.new_event_loop()
    try:
        browser = Browser(folder, loop)
        browser.open(page)
        yield browser
        browser.close()
    finally:
        process.terminate()
        process.wait()
        loop.close()
