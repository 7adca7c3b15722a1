"""A forward proxy on loopback: CONNECT tunnels, and plain requests passed on; it can ask for a password and counts what it carried."""

import base64
import contextlib
import http.server
import select
import socket
import threading
from typing import Any, Self


class Proxy:
    def __init__(self, password: str = "") -> None:
        self.carried: list[str] = []  # "CONNECT host:port" or "POST http://..."
        self.expected = f"Basic {base64.b64encode(f'user:{password}'.encode()).decode()}" if password else ""
        self._httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self}))
        self._httpd.daemon_threads = True
        self._httpd.block_on_close = False
        self.host = f"127.0.0.1:{self._httpd.server_port}"
        self.url = f"http://{f'user:{password}@' if password else ''}{self.host}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.002}, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self._httpd.shutdown()
        self._httpd.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    fake: Proxy

    def log_message(self, *args: Any) -> None:
        pass

    def _allowed(self) -> bool:
        if self.fake.expected and self.headers.get("Proxy-Authorization") != self.fake.expected:
            self.send_error(407)
            return False
        self.fake.carried.append(f"{self.command} {self.path}")
        return True

    def do_CONNECT(self) -> None:
        if self._allowed():
            host, _colon, port = self.path.rpartition(":")
            with socket.create_connection((host, int(port))) as far:
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                self._pump(far)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._allowed():
            answer = b"carried " + body
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def _pump(self, far: socket.socket) -> None:
        ends = {far: self.connection, self.connection: far}
        with contextlib.suppress(OSError):
            while True:
                for ready in select.select(list(ends), [], [], 5)[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    ends[ready].sendall(data)
