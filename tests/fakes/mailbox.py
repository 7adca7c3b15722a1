"""A mailbox over IMAP4rev1 and POP3, as strict as RFC 3501 and RFC 1939 where our reader could be wrong: states, quoting, UIDs, marks, QUIT."""

import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stored:
    uid: int
    raw: bytes
    seen: bool = False


@dataclass
class Store:
    """`with store.serve("imap") as port`. What was told is in `heard`; `mails` is the folder INBOX."""

    username: str = "bounces"
    password: str = 's3cret mailbox "\\'
    mails: list[Stored] = field(default_factory=list)
    life: int = 7
    heard: list[str] = field(default_factory=list)
    breaks_at: int = 0  # the connection is lost instead of the answer to this FETCH or TOP, counted from 1; once
    tls: ssl.SSLContext | None = None
    starttls: ssl.SSLContext | None = None

    def add(self, raw: bytes) -> None:
        self.mails.append(Stored(max((mail.uid for mail in self.mails), default=40) + 1, re.sub(rb"\r?\n", b"\r\n", raw)))

    def _mail_asked(self) -> None:
        self.breaks_at -= 1
        if self.breaks_at == 0:
            raise EOFError

    @contextmanager
    def serve(self, protocol: str) -> Iterator[int]:
        listening = socket.create_server(("127.0.0.1", 0))
        talk = {"imap": self._imap, "pop3": self._pop}[protocol]

        def run() -> None:
            while True:
                try:
                    sock, _address = listening.accept()
                except OSError:
                    return
                try:
                    with sock if self.tls is None else self.tls.wrap_socket(sock, server_side=True) as conn:
                        talk(_Line(conn))
                except (OSError, EOFError):
                    continue

        threading.Thread(target=run, daemon=True).start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)  # or the thread in `accept` keeps it open
            listening.close()

    # ---- IMAP ----

    def _imap(self, line: "_Line") -> None:
        line.say("* OK ready")
        selected = logged_in = False
        while True:
            tag, _space, rest = line.read().partition(" ")
            self.heard.append(rest)
            word, _space, args = rest.partition(" ")
            word = word.upper()
            if word == "CAPABILITY":
                line.say("* CAPABILITY IMAP4rev1" + (" STARTTLS" if self.starttls else ""))
            elif word == "STARTTLS" and self.starttls and not line.secure:
                line.say(f"{tag} OK begin")
                line.encrypt(self.starttls)
                continue
            elif word == "LOGIN" and not logged_in:
                logged_in = _unquoted(args) == [self.username, self.password] and not (self.starttls and not line.secure)
                if not logged_in:
                    line.say(f"{tag} NO [AUTHENTICATIONFAILED] Authentication failed.")
                    continue
            elif word == "SELECT" and logged_in:
                if _unquoted(args) != ["INBOX"]:
                    line.say(f"{tag} NO [TRYCREATE] Mailbox does not exist.")
                    continue
                selected = True
                line.say(f"* {len(self.mails)} EXISTS", "* 0 RECENT", "* FLAGS (\\Seen)", f"* OK [UIDVALIDITY {self.life}] UIDs valid")
                line.say(f"{tag} OK [READ-WRITE] selected")
                continue
            elif word == "UID" and selected:
                self._uid(line, args)
            elif word == "LOGOUT":
                line.say("* BYE", f"{tag} OK bye")
                return
            else:
                line.say(f"{tag} BAD not now")
                continue
            line.say(f"{tag} OK done")

    def _uid(self, line: "_Line", args: str) -> None:
        if args.upper() == "SEARCH UNSEEN":
            line.say("* SEARCH " + " ".join(str(mail.uid) for mail in self.mails if not mail.seen))
        elif found := re.fullmatch(r"FETCH (\d+) \(BODY\.PEEK\[\]<0\.(\d+)>\)", args):
            self._mail_asked()
            for number, mail in enumerate(self.mails, 1):
                if mail.uid == int(found[1]):
                    raw = mail.raw[: int(found[2])]
                    line.say(f"* {number} FETCH (UID {mail.uid} BODY[]<0> {{{len(raw)}}}", end=b"")
                    line.say_raw(b"\r\n" + raw + b")\r\n")
        elif found := re.fullmatch(r"STORE ([\d,]+) \+FLAGS\.SILENT \(\\Seen\)", args):
            for mail in self.mails:
                mail.seen = mail.seen or str(mail.uid) in found[1].split(",")
        else:
            raise EOFError(args)

    # ---- POP3 ----

    def _pop(self, line: "_Line") -> None:
        line.say("+OK ready")
        user, logged_in, gone = "", False, set[int]()
        while True:
            said = line.read()
            self.heard.append(said)
            word, _space, args = said.partition(" ")
            if word == "CAPA":
                line.say("+OK", "TOP", "UIDL", "USER", *(["STLS"] if self.starttls and not line.secure else []), ".")
            elif word == "STLS" and self.starttls and not line.secure:
                line.say("+OK begin")
                line.encrypt(self.starttls)
            elif word == "USER":
                user = args
                line.say("+OK")
            elif word == "PASS":
                logged_in = (user, args) == (self.username, self.password) and not (self.starttls and not line.secure)
                line.say("+OK" if logged_in else "-ERR [AUTH] no such user or password")
            elif word == "QUIT":
                self.mails = [mail for mail in self.mails if mail.uid not in gone]
                line.say("+OK bye")
                return
            elif word == "UIDL" and not args and logged_in:
                line.say("+OK", *(f"{number} uid-{mail.uid}" for number, mail in enumerate(self.mails, 1)), ".")
            elif word == "TOP" and logged_in:
                self._mail_asked()
                number, lines = map(int, args.split())
                head, _blank, body = self.mails[number - 1].raw.partition(b"\r\n\r\n")
                text = head + b"\r\n\r\n" + b"\r\n".join(body.split(b"\r\n")[:lines])
                line.say("+OK")
                line.say_raw(re.sub(rb"(?m)^\.", b"..", text) + b"\r\n.\r\n")
            elif word == "DELE" and logged_in:
                gone.add(self.mails[int(args) - 1].uid)
                line.say("+OK")
            else:
                line.say("-ERR not now")


class _Line:
    """Lines over a socket that may turn to TLS."""

    def __init__(self, sock: Any) -> None:
        self.sock, self.file = sock, sock.makefile("rb")
        self.secure = isinstance(sock, ssl.SSLSocket)

    def encrypt(self, context: ssl.SSLContext) -> None:
        self.sock = context.wrap_socket(self.sock, server_side=True)
        self.file, self.secure = self.sock.makefile("rb"), True

    def read(self) -> str:
        raw = self.file.readline()
        if not raw.endswith(b"\r\n"):
            raise EOFError
        return raw[:-2].decode()

    def say(self, *lines: str, end: bytes = b"\r\n") -> None:
        self.sock.sendall("\r\n".join(lines).encode() + end)

    def say_raw(self, raw: bytes) -> None:
        self.sock.sendall(raw)


def _unquoted(args: str) -> list[str]:
    """The arguments of a command: atoms and quoted strings, in which only \\ and " are escaped."""
    found = re.findall(r'"((?:[^"\\\r\n]|\\["\\])*)"(?:\s|$)|([^\s"\\(){%*]+)(?:\s|$)', args)
    return [re.sub(r"\\(.)", r"\1", quoted) or atom for quoted, atom in found]
