"""The product as its users have it: started by its own launcher on a free port with a database of its own, and met only from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest
import requests

from flashduty import postgres, run
from tests.fakes.smtp import free_port

TREE = Path(__file__).resolve().parent.parent.parent
SECONDS_TO_START = 60  # a database is made and migrated
SECONDS_TO_STOP = 60
BUSY = 6  # so many times as long as on an idle machine everything may take: what we wait for, other programs do

Found = TypeVar("Found")


def until(look: Callable[[], Found], seconds: float, what: str) -> Found:
    """The first thing `look` finds that is true; the test fails with `what` after BUSY times so many seconds."""
    end = time.monotonic() + BUSY * seconds
    while not (found := look()):
        if time.monotonic() > end:
            pytest.fail(f"not within {BUSY * seconds:.0f} s: {what}")
        time.sleep(0.05)
    return found


class Product:
    """`with Product(folder, DEMO_SMTP="127.0.0.1:1025") as product:`; variables are those of `make run`.

    `demo` is demo.json, `base_url` where it answers, `log` everything it printed.
    """

    def __init__(self, folder: Path, **variables: str) -> None:
        self.data = folder / "data"
        self.log_file = folder / "product.log"
        self.port = free_port()
        ours = ("FLASHDUTY_", "DEMO_", "DJANGO_", "DATABASE_", "PYTEST_", "BASE_URL", "MAKE", "MFLAGS")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.variables = variables
        self.demo: dict[str, str] = {}

    def __enter__(self) -> Self:
        with open(self.log_file, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flashduty.run", "127.0.0.1", str(self.port), str(self.data)],
                cwd=TREE, env=self.environment | self.variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            until(self._ready, SECONDS_TO_START, "the product is ready")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    @property
    def base_url(self) -> str:
        return self.demo["base_url"]

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            pytest.fail(f"the product ended with code {self.process.returncode}:\n{self.log[-4000:]}")
        try:
            self.demo = json.loads((self.data / "demo.json").read_text())
            return requests.get(f"{self.base_url}/readyz", timeout=10).status_code == 200
        except (OSError, ValueError):
            return False

    def _stop(self) -> None:
        """Ctrl-C, and then its data is deleted by its own command."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        subprocess.run([sys.executable, "-m", "flashduty.run", "--remove", str(self.data)], cwd=TREE, env=self.environment, check=False)

    # ---- the ways in

    def manage(self, *arguments: str) -> str:
        """What `manage.py` with these arguments prints, run beside the product as an operator would."""
        server = postgres.status(self.data)
        assert server is not None, "the product's database does not run"
        settings = run.product_settings(self.data) | {
            "BASE_URL": self.base_url, "DATABASE_URL": server.url, "FLASHDUTY_MODE": "demo", "FLASHDUTY_DATA": str(self.data),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=TREE,
            env=self.environment | settings,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    def api(self, path: str, **body: Any) -> Any:
        """`data` of the Open API's answer to the administrator."""
        answer = requests.post(f"{self.base_url}{path}", params={"app_key": self.demo["app_key"]}, json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def signed_in(self) -> requests.Session:
        """A browser's session of the administrator."""
        session = requests.Session()
        page = f"{self.base_url}/admin/login/"
        session.get(page, timeout=60)
        form = {
            "username": self.demo["admin_email"], "password": self.demo["admin_password"], "next": "/sandbox/",
            "csrfmiddlewaretoken": session.cookies["flashduty_csrf"],
        }  # fmt: skip
        answer = session.post(page, form, headers={"Referer": page}, timeout=60, allow_redirects=False)
        assert answer.status_code == 302, "the sign-in was refused"
        return session
