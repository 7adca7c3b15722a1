"""A real Chromium, driven by its own driver over the W3C WebDriver protocol: plain HTTP and JSON, so no library is needed."""

import base64
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import requests

from tests.fakes.smtp import free_port

PROGRAMS = ("chromium", "chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's own name for a reference to an element


class Moved(AssertionError):
    """What was asked about is not there any more: the page has just been drawn anew, or another one is being opened."""


MOVED = frozenset(
    {"stale element reference", "no such element", "detached shadow root", "element click intercepted", "element not interactable"}
)
GOING = ("navigat", "unloaded", "context was destroyed")  # what the driver says where it says "unknown error" or "javascript error"


class Browser:
    """`with Browser(folder, width=390) as browser:`; a window of its own, without cookies. Failures of the protocol raise AssertionError."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 800) -> None:
        self.folder = folder
        self.size = (width, height)
        self.port = free_port()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "driver.log", "wb") as log:
            self.driver = subprocess.Popen(["chromedriver", f"--port={self.port}"], stdout=log, stderr=log)
        self.http = requests.Session()
        self.session = f"http://127.0.0.1:{self.port}"
        try:
            for _turn in range(600):
                try:
                    if self._call("GET", "/status")["ready"]:
                        break
                except requests.ConnectionError:
                    assert self.driver.poll() is None, (self.folder / "driver.log").read_text()
                    time.sleep(0.1)  # it is another program: nothing here can say when it listens
            arguments = [
                "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars",
                f"--window-size={self.size[0]},{self.size[1]}", f"--user-data-dir={self.folder / 'profile'}",
            ]  # fmt: skip
            wanted = {
                "browserName": "chrome",
                "goog:chromeOptions": {"args": arguments},
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self.session += f"/session/{made['sessionId']}"
            # A headless window is never narrower than 500 px; a phone is emulated.
            self.cdp(
                "Emulation.setDeviceMetricsOverride",
                width=self.size[0],
                height=self.size[1],
                deviceScaleFactor=1,
                mobile=self.size[0] < 500,
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if "/session/" in self.session:
                self._call("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait(60)
            self.http.close()

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body or {}) if method == "POST" else None
        answer = self.http.request(method, self.session + path, data=data, headers={"Content-Type": "application/json"}, timeout=300)
        value = answer.json()["value"]
        if answer.status_code != 200 and (value["error"] in MOVED or any(word in value["message"].lower() for word in GOING)):
            raise Moved(f"{path}: {value}")
        assert answer.status_code == 200, f"{path}: {value}"
        return value

    def cdp(self, command: str, **parameters: Any) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    # ---- what a person does

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What the page's own world answers to a function body."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, css: str, text: str = "") -> str | None:
        """A reference to the first element that is seen, matches, and has this text in it."""
        script = (
            """return [...document.querySelectorAll(arguments[0])].find(e => e.checkVisibility() && e.innerText.includes(arguments[1]))"""
        )
        found = self.run(script, css, text)
        return str(found[ELEMENT]) if found else None

    def click(self, css: str, text: str = "") -> None:
        """As a person does it who sees the page being drawn anew under the finger: once more. What stays in the way fails."""
        for turn in range(100):
            element = self.find(css, text)
            assert element is not None, f"there is no {css} with {text!r} at {self.url}"
            try:
                self._call("POST", f"/element/{element}/click")
            except Moved:
                if turn == 99:
                    raise
                time.sleep(0.05)
            else:
                return

    def type(self, css: str, text: str) -> None:
        element = self.find(css)
        assert element is not None, f"there is no {css} at {self.url}"
        self._call("POST", f"/element/{element}/clear")
        self._call("POST", f"/element/{element}/value", {"text": text})

    # ---- what a person sees

    @property
    def url(self) -> str:
        return str(self._call("GET", "/url"))

    @property
    def text(self) -> str:
        return str(self.run("return document.body.innerText"))

    def sees(self, css: str, text: str = "") -> Callable[[], bool]:
        """For `until`: whether such an element is seen by now."""

        def seen() -> bool:
            try:
                return self.find(css, text) is not None
            except Moved:
                return False

        return seen

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(self.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def complaints(self) -> list[str]:
        """What the browser's console says: errors of scripts, refused styles, things that are not there."""
        lines = self._call("POST", "/se/log", {"type": "browser"})
        return [line["message"] for line in lines if line["level"] in ("SEVERE", "WARNING")]

    def picture(self, name: str) -> Path:
        path = self.folder / f"{name}.png"
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))
        return path
