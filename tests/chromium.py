# SPDX-License-Identifier: MIT
"""A browser without a window, driven over its own pipe: opens a page, drags the mouse, takes pictures."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ALONE = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
ALONE += ["--no-first-run", "--disable-background-networking", "--hide-scrollbars", "--force-device-scale-factor=1"]
PATIENCE = 120  # seconds for an answer


class Browser:
    """A page in headless Chromium. requests: addresses that the page asked for."""

    def __init__(self, size=(1000, 800)):
        self.requests: list[str] = []
        self._numbers = itertools.count(1)
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # its processes may still write
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        def as_three_and_four():
            given, taken = (fcntl.fcntl(one, fcntl.F_DUPFD, 100) for one in (to_browser, from_browser))
            os.dup2(given, 3)
            os.dup2(taken, 4)

        command = [CHROMIUM, *ALONE, f"--user-data-dir={self._folder.name}", f"--window-size={size[0]},{size[1]}"]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, preexec_fn=as_three_and_four, close_fds=False, **silent)
        os.close(to_browser)
        os.close(from_browser)
        self._rest = b""
        self._session = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Network.enable")
        self.ask("Page.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._folder.cleanup()

    def ask(self, method, **params):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self):
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            self._rest += os.read(self._read, 1 << 20)
        message, _, self._rest = self._rest.partition(b"\0")
        told = json.loads(message)
        if told.get("method") == "Network.requestWillBeSent":
            self.requests.append(told["params"]["request"]["url"])
        return told

    def open(self, path):
        self.ask("Page.navigate", url=path.as_uri())
        while self.run("document.readyState") != "complete":
            time.sleep(0.05)

    def run(self, script):
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def drag(self, start, stop):
        """Presses the left button at a place (x, y), moves the mouse to another one, and lets go."""
        self._mouse("mousePressed", start, 1)
        for step in range(1, 9):
            place = [a + (b - a) * step / 8 for a, b in zip(start, stop, strict=True)]
            self._mouse("mouseMoved", place, 1)
        self._mouse("mouseReleased", stop, 0)

    def _mouse(self, kind, place, buttons):
        where = {"x": place[0], "y": place[1], "button": "left", "buttons": buttons, "clickCount": 1}
        self.ask("Input.dispatchMouseEvent", type=kind, **where)

    def picture(self):
        """The page as PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])
