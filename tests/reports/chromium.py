"""A headless Chromium on two pipes: pages opened, answered with real input, and what they log and fetch."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """The path of a Chromium, None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One page of a Chromium; a context manager. `logged` are console messages and uncaught errors,
    `fetched` the addresses that were asked for besides the page itself and what lies inside it."""

    def __init__(self, width=1200, height=900):
        self.logged, self.fetched, self._number = [], [], 0
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-extensions", "--disable-background-networking", "--disable-sync",
            "--disable-component-update", "--remote-debugging-pipe",
        ]  # fmt: skip
        script = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, find(), *flags, f"--user-data-dir={self._profile.name}", "about:blank"],
            pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._session = None
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._session = None
        self.call("Browser.close")
        self._process.wait(30)
        os.close(self._read)
        os.close(self._write)
        self._profile.cleanup()

    def call(self, method, **params):
        """The result of one command of the DevTools protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            told = self._message()
            if told.get("id") == self._number:
                if "error" in told:
                    raise AssertionError(f"{method}: {told['error']}")
                return told["result"]

    def _message(self):
        while b"\0" not in self._buffer:
            some = os.read(self._read, 1 << 20)
            if not some:
                raise AssertionError("the browser is gone")
            self._buffer += some
        text, _, self._buffer = self._buffer.partition(b"\0")
        told = json.loads(text)
        params = told.get("params", {})
        match told.get("method"):
            case "Runtime.consoleAPICalled":
                self.logged.append(str([arg.get("value") for arg in params["args"]]))
            case "Runtime.exceptionThrown":
                self.logged.append(str(params["exceptionDetails"]))
            case "Log.entryAdded":
                self.logged.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                self.fetched.append(params["request"]["url"])
        return told

    def open(self, path: Path, ready="document.readyState === 'complete'"):
        """Show the file `path` and wait until `ready` holds there."""
        address = Path(path).absolute().as_uri()
        self.call("Page.navigate", url=address)
        self.wait(f"location.href === {json.dumps(address)} && {ready}")
        self.fetched = [url for url in self.fetched if url != address and not url.startswith("data:")]

    def wait(self, condition):
        """Until the JavaScript `condition` holds, a minute at most."""
        end = time.monotonic() + 60
        while not self.eval(f"Boolean({condition})"):
            assert time.monotonic() < end, f"never came true: {condition}"
            time.sleep(0.05)

    def eval(self, code):
        """The value of a JavaScript expression, awaited."""
        told = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def mouse(self, kind, x, y):
        """A "mouseMoved", or a click ("click"), at a place of the window in pixels."""
        if kind == "click":
            for step in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=step, x=x, y=y, button="left", clickCount=1)
        else:
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y)

    def type(self, selector, text):
        """Put the keyboard's focus on an element, empty it and type."""
        self.eval(f"(e => {{ e.focus(); e.select(); }})(document.querySelector({json.dumps(selector)}))")
        self.call("Input.insertText", text=text)

    def media(self, kind="", dark=False):
        """Show the page as for "print" or the screen, dark or light."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media=kind, features=scheme)

    def screenshot(self, path: Path, whole=False):
        """A PNG of the window, or of the whole page."""
        told = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(told["data"]))
