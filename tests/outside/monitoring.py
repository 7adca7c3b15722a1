"""A monitored thing, Debian's Prometheus that scrapes it and Debian's Alertmanager behind it, on ports and in a folder of their own."""

import shutil
import subprocess
from pathlib import Path
from typing import Self

import requests

from tests.fakes.server import Reply, Server
from tests.fakes.smtp import free_port
from tests.outside.product import until

PROGRAMS = ("prometheus", "prometheus-alertmanager")

# As docs/alertmanager.md tells people to write it, but with everything as fast as it goes.
ALERTMANAGER = """\
route:
  receiver: flashduty
  group_by: [alertname, instance]
  group_wait: 0s
  group_interval: 1s
  repeat_interval: 4h
receivers:
  - name: flashduty
    webhook_configs:
      - url: "{url}"
        send_resolved: true
"""
PROMETHEUS = """\
global:
  scrape_interval: 1s
  evaluation_interval: 1s
rule_files: ["{folder}/rules.yml"]
alerting:
  alertmanagers:
    - static_configs: [targets: ["{alertmanager}"]]
scrape_configs:
  - job_name: checkout
    static_configs: [targets: ["{exporter}"]]
"""
RULES = """\
groups:
  - name: checkout
    rules:
      - alert: CheckoutQueueFull
        expr: checkout_queue_length > 100
        labels: {severity: critical, team: payments}
        annotations:
          summary: "Checkout queue is full ({{ $value }} orders wait)"
          description: "Orders are not being taken from the queue."
          runbook_url: "https://runbooks.example.com/checkout"
"""


def missing() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Monitoring:
    """`with Monitoring(folder, push_url) as monitoring:`; `monitoring.queue = 150` is what makes the alert fire."""

    def __init__(self, folder: Path, push_url: str) -> None:
        self.folder = folder
        self.push_url = push_url
        self.queue = 0
        self.processes: list[subprocess.Popen] = []

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self.exporter = Server(
            lambda _seen: Reply(200, f"checkout_queue_length {self.queue}\n", {"Content-Type": "text/plain; version=0.0.4"})
        )
        self.exporter.__enter__()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.exporter.__exit__()

    def _start(self) -> None:
        alertmanager, prometheus = (f"127.0.0.1:{free_port()}" for _ in PROGRAMS)
        (self.folder / "alertmanager.yml").write_text(ALERTMANAGER.format(url=self.push_url))
        (self.folder / "rules.yml").write_text(RULES)
        (self.folder / "prometheus.yml").write_text(
            PROMETHEUS.format(folder=self.folder, alertmanager=alertmanager, exporter=self.exporter.host)
        )
        self._run(
            "prometheus-alertmanager", f"--config.file={self.folder}/alertmanager.yml", f"--storage.path={self.folder}/alertmanager",
            f"--web.listen-address={alertmanager}", f"--web.external-url=http://{alertmanager}/", "--cluster.listen-address=",
        )  # fmt: skip
        self._run(
            "prometheus", f"--config.file={self.folder}/prometheus.yml", f"--storage.tsdb.path={self.folder}/tsdb",
            f"--web.listen-address={prometheus}", f"--web.external-url=http://{prometheus}/", "--rules.alert.resend-delay=1s",
        )  # fmt: skip
        self.prometheus = f"http://{prometheus}"
        for name, url in (("Alertmanager", f"http://{alertmanager}/-/ready"), ("Prometheus", f"{self.prometheus}/-/ready")):
            until(lambda url=url: self._answers(url), 30, f"{name} is ready; its log is {self.folder}")  # type: ignore[misc]
        until(lambda: self.measured() == [self.queue], 15, "Prometheus has scraped the queue")

    def _run(self, program: str, *arguments: str) -> None:
        with open(self.folder / f"{program}.log", "wb") as log:
            self.processes.append(subprocess.Popen([program, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    @staticmethod
    def _answers(url: str) -> bool:
        try:
            return requests.get(url, timeout=10).status_code == 200
        except requests.RequestException:
            return False

    def measured(self) -> list[int]:
        """The length of the queue as Prometheus knows it, at most one value."""
        answer = requests.get(f"{self.prometheus}/api/v1/query", {"query": "checkout_queue_length"}, timeout=30).json()
        return [int(float(series["value"][1])) for series in answer["data"]["result"]]
