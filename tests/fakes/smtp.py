"""A mail server that is really there (aiosmtpd in a thread), and one that answers line by line what a test tells it."""

import email
import email.policy
import socket
import ssl
import threading
from email.message import EmailMessage
from typing import Any, Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP as Protocol
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword, Session


class _Controller(Controller):
    """On a port of the kernel's choice, bound before it is known: one that was found free may be another's by then."""

    def _create_server(self) -> Any:
        listening = socket.create_server((self.hostname, 0))
        self.port = listening.getsockname()[1]
        return self.loop.create_server(self._factory_invoker, sock=listening, ssl=self.ssl_context)


class Mailbox:
    """`with Mailbox() as server`: `server.mails` are the messages it took, `server.envelopes` who they were for.

    Set `refuse = {"RCPT": "550 5.1.1 no such user"}` (MAIL, RCPT or DATA) and it answers with that.
    """

    def __init__(
        self, *, login: tuple[str, str] | None = None, starttls: ssl.SSLContext | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.mails: list[EmailMessage] = []
        self.envelopes: list[Envelope] = []
        self.sessions: list[Session] = []
        self.refuse: dict[str, str] = {}
        self._login = login
        options: dict[str, Any] = {"ssl_context": tls} if tls else {"tls_context": starttls, "require_starttls": True} if starttls else {}
        if login:
            options |= {"authenticator": self._authenticate, "auth_required": True, "auth_require_tls": bool(starttls)}
        self._controller = _Controller(self, hostname="127.0.0.1", port=0, ready_timeout=60, **options)

    def __enter__(self) -> Self:
        self._controller.start()
        self.port = self._controller.port
        self.host = f"127.0.0.1:{self.port}"
        return self

    def __exit__(self, *args: object) -> None:
        self._controller.stop()

    def _authenticate(self, server: Protocol, session: Session, envelope: Envelope, mechanism: str, given: Any) -> AuthResult:
        assert isinstance(given, LoginPassword)
        good = (given.login.decode(), given.password.decode()) == self._login
        return AuthResult(success=good, handled=good)

    async def handle_MAIL(self, server: Protocol, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        if "MAIL" not in self.refuse:
            envelope.mail_from = address
        return self.refuse.get("MAIL", "250 OK")

    async def handle_RCPT(self, server: Protocol, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        if "RCPT" not in self.refuse:
            envelope.rcpt_tos.append(address)
        return self.refuse.get("RCPT", "250 OK")

    async def handle_DATA(self, server: Protocol, session: Session, envelope: Envelope) -> str:
        if "DATA" in self.refuse:
            return self.refuse["DATA"]
        content = envelope.content if isinstance(envelope.content, bytes) else (envelope.content or "").encode()
        self.mails.append(email.message_from_bytes(content, policy=email.policy.default))  # type: ignore[arg-type]
        self.envelopes.append(envelope)
        self.sessions.append(session)
        return "250 OK"


class Script:
    """A server that speaks a script: (what a line must begin with, the answer). "HANG" says nothing, "CLOSE" hangs up, b"" after DATA's text.

    The greeting is the answer to "". It serves one connection after the other.
    """

    def __init__(self, *lines: tuple[str, str]) -> None:
        self.lines = dict(lines)
        self.heard: list[str] = []
        self.stopping = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.stopping.set()
        self._socket.close()

    def _serve(self) -> None:
        while not self.stopping.is_set():
            try:
                connection, _address = self._socket.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as stream:
                try:
                    self._talk(connection, stream)
                except OSError:
                    continue

    def _talk(self, connection: socket.socket, stream: Any) -> None:
        if not self._say(connection, stream, self.lines.get("", "220 fake")):
            return
        in_text = False
        for raw in stream:
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            if in_text and line != ".":
                continue
            self.heard.append(line)
            known = {
                "EHLO": "250 fake",
                "MAIL": "250 ok",
                "RCPT": "250 ok",
                "DATA": "354 go on",
                ".": "250 taken",
                "RSET": "250 ok",
                "QUIT": "221 bye",
            }
            word = line.split()[0].upper()
            in_text = word == "DATA" and not self.lines.get("DATA")
            if not self._say(connection, stream, self.lines.get(word) or known.get(word, "500 what")):
                return

    def _say(self, connection: socket.socket, stream: Any, answer: str) -> bool:
        if answer == "HANG":
            self.stopping.wait(30)
            return False
        if answer == "CLOSE":
            return False
        stream.write(answer.encode() + b"\r\n")
        stream.flush()
        return True


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
