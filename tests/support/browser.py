"""Headless Chromium over the DevTools protocol through two pipes (--remote-debugging-pipe)."""

import base64
import io
import itertools
import json
import os
import select
import shutil
import subprocess
from pathlib import Path

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A context with one page; ``events`` are the browser's reports."""

    def __init__(self, profile: Path):
        self.profile = profile
        self.events: list[dict] = []
        self.ids = itertools.count(1)
        self.session: str | None = None

    def __enter__(self) -> "Browser":
        theirs_in, self.ours_out = os.pipe()
        self.ours_in, theirs_out = os.pipe()
        self.received = b""
        options = "--headless --no-sandbox --disable-gpu --hide-scrollbars --remote-debugging-pipe"
        # The protocol's pipes are the browser's descriptors 3 and 4.
        shell = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$0" {options} --user-data-dir={self.profile} about:blank'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, find_browser()], pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Runtime", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours_out)
        os.close(self.ours_in)

    def call(self, method: str, **parameters: object) -> dict:
        """A command and its result; events in between are kept."""
        number = next(self.ids)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.ours_out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, path: Path, width: int, scheme: str) -> None:
        """Show a file in a window of this width and colour scheme ("light", "dark")."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self._receive()

    def evaluate(self, expression: str) -> object:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"]["value"]

    def screenshot(self) -> Image.Image:
        """The whole page."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return Image.open(io.BytesIO(base64.b64decode(answer["data"]))).convert("RGB")

    def complaints(self) -> list[dict]:
        """Messages of the console: errors, warnings, blocked requests."""
        return [e for e in self.events if e.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled")]

    def requests(self) -> list[str]:
        """Addresses that the page requested."""
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def _receive(self) -> dict:
        while b"\0" not in self.received:
            assert select.select([self.ours_in], [], [], PATIENCE)[0], f"the browser is silent for {PATIENCE} s"
            content = os.read(self.ours_in, 1 << 20)
            assert content, "the browser has gone"
            self.received += content
        message, _, self.received = self.received.partition(b"\0")
        answer = json.loads(message)
        if "id" not in answer:
            self.events.append(answer)
        return answer
