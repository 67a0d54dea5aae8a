"""A headless Chromium driven over the DevTools protocol, through pipes: no library is needed."""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

FLAGS = (
    "--headless",
    "--no-sandbox",  # as root, in containers
    "--enable-unsafe-swiftshader",  # WebGL without a GPU
    "--remote-debugging-pipe",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
)


def chromium():
    """The browser's path, or None where it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One browser process; use it as a context manager."""

    def __init__(self):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        flags = [*FLAGS, f"--user-data-dir={self._profile.name}"]
        # Chromium reads commands at 3 and answers at 4.
        script = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, chromium(), *flags],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer = b""
        self._last = 0
        self.events = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(20)
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    def send(self, method, session=None, timeout=60, **params):
        """Send a command, and wait for its result; events that come before it are kept."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + timeout
        while True:
            answer = self._receive(end, method)
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _receive(self, end, method):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, end - time.monotonic()))
            assert ready, f"the browser did not answer {method} in time"
            read = os.read(self._in, 1 << 20)
            assert read, "the browser has ended"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path, width=1200, height=800, before=""):
        """Open a file as a page; `before` is a script that runs first."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        page.resize(width, height)
        if before:
            page.send("Page.addScriptToEvaluateOnNewDocument", source=before)
        page.send("Page.navigate", url=Path(path).absolute().as_uri())
        return page


class Page:
    """One tab."""

    def __init__(self, browser, session, target):
        self.browser, self.session, self.target = browser, session, target

    def send(self, method, **params):
        return self.browser.send(method, session=self.session, **params)

    def close(self):
        self.browser.send("Target.closeTarget", targetId=self.target)

    def resize(self, width, height):
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def run(self, expression):
        """The value of a JavaScript expression; a promise is waited for."""
        done = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, expression, timeout=60):
        """Wait until an expression is true; returns the seconds that took."""
        start = time.monotonic()
        while not self.run(expression):
            assert time.monotonic() < start + timeout, f"{expression} did not become true"
            time.sleep(0.02)
        return time.monotonic() - start

    def ready(self):
        """Wait until the page has drawn all or has failed; returns its state."""
        self.wait("['ready', 'error'].includes(document.documentElement?.dataset.state)")
        return self.run("document.documentElement.dataset.state")

    def key(self, key):
        """Press a key and let it go."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key)
        self.settle()

    def click(self, x, y):
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def drag(self, start, end, button="left"):
        held = {"left": 1, "right": 2}[button]
        move = {"type": "mouseMoved", "button": button, "buttons": held}
        press = {"button": button, "buttons": held, "clickCount": 1}
        points = [
            [a + (b - a) * step / 4 for a, b in zip(start, end, strict=True)] for step in range(5)
        ]
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=start[0], y=start[1])
        self.send("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], **press)
        for x, y in points:
            self.send("Input.dispatchMouseEvent", x=x, y=y, **move)
        self.send("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], **press)
        self.settle()

    def settle(self):
        """Wait for two frames."""
        self.run("new Promise((f) => requestAnimationFrame(() => requestAnimationFrame(f)))")

    def pixels(self):
        """What is to be seen, (H, W, 3)."""
        from PIL import Image

        self.settle()
        shot = base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))

    def said(self, *methods):
        """The events of these methods so far, of this page."""
        self.run("0")  # all that was said before this answer has come
        return [
            event["params"]
            for event in self.browser.events
            if event.get("sessionId") == self.session and event["method"] in methods
        ]

    def problems(self):
        """Console errors and warnings, exceptions and entries of the browser's log."""
        errors = [
            each
            for each in self.said("Runtime.consoleAPICalled")
            if each["type"] in ("error", "warning", "assert")
        ]
        return errors + self.said("Runtime.exceptionThrown", "Log.entryAdded")

    def requests(self):
        """Addresses that were asked for, but for the page itself and data within it."""
        urls = [each["request"]["url"] for each in self.said("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith(("data:", "blob:", "file:"))]
