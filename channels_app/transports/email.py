"""E-mail over SMTP: text and HTML, one recipient a message, one thread an incident.

Every message has an id of its own, the same for each attempt of a delivery, so that a mailbox that saw it twice can show it once. The thread
hangs together by References to a root id that is computed from incident and recipient and belongs to no message: whichever mail comes first,
the others join it, and a page after a reopening is not taken for a copy of the first."""

import hashlib
import re
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from email.utils import parseaddr
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.core.mail import EmailMultiAlternatives
from django.core.mail.backends.smtp import EmailBackend
from django.core.validators import validate_email
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import http, transport
from channels_app.transport import DeliveryError, Http, Message, Receipt, Transport

KEEP_SECONDS = 30  # an idle connection is used again; most servers hold one for five minutes
GREYLISTED = 60.0  # what 450, 451 and 452 ask for (providers: retry after a minute or more)


class Settings(transport.Settings):
    host = forms.CharField(
        label=gettext_lazy("SMTP server"),
        max_length=253,
        help_text=gettext_lazy(
            "The mail relay's name. A relay in a private network must be among the channel's allowed private addresses, as host:port."
        ),
    )
    port = forms.IntegerField(
        label=gettext_lazy("port"), initial=587, min_value=1, max_value=65535, help_text=gettext_lazy("587 with STARTTLS, 465 with TLS, 25 without.")
    )  # fmt: skip
    security = forms.ChoiceField(
        label=gettext_lazy("security"),
        choices=[("starttls", "STARTTLS"), ("tls", "TLS"), ("none", gettext_lazy("none"))],
        initial="starttls",
    )
    username = forms.CharField(label=gettext_lazy("user name"), required=False, max_length=200)
    password = forms.CharField(label=gettext_lazy("password"), required=False, max_length=500, strip=False)
    from_email = forms.CharField(
        label=gettext_lazy("sender"), max_length=320, help_text=gettext_lazy("Such as: On-call <oncall@example.com>. The server must accept it.")
    )  # fmt: skip
    reply_to = forms.EmailField(label=gettext_lazy("answers to"), required=False)

    def clean_host(self) -> str:
        host = str(self.cleaned_data["host"]).strip()
        if not re.fullmatch(r"[A-Za-z0-9._:-]+", host):
            raise ValidationError(_("Enter only the name or address of the server, without smtp:// and without a port."))
        return host

    def clean_from_email(self) -> str:
        sender = str(self.cleaned_data["from_email"]).strip()
        validate_email(parseaddr(sender)[1])
        return sender

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        if data.get("username") and not data.get("password"):
            raise ValidationError({"password": _("A user name needs a password.")})
        return data


class Email(Transport):
    kind = "email"
    label = gettext_lazy("E-mail")
    family = "email"
    reach = "email"
    person = True
    format = "html"
    concurrency = 8
    secret = frozenset({"password"})
    Settings = Settings

    def __init__(self, settings: Mapping[str, Any], http: Http, callback_url: str = "") -> None:
        super().__init__(settings, http, callback_url)
        self._idle: list[tuple[float, _Backend]] = []
        self._lock = threading.Lock()

    def send(self, message: Message, address: str) -> Receipt:
        """`sent` means that the relay took it; what bounces later is not known here."""
        try:
            validate_email(address)
        except ValidationError:
            raise DeliveryError(_("“%(address)s” is not an e-mail address.") % {"address": address}, permanent=True) from None
        mail = self.compose(message, address)
        with http.deadline(http.TOTAL_SECONDS):
            kept = self._take()
            try:
                if kept is not None and self._try_kept(kept, mail):
                    backend = kept
                else:
                    backend = _Backend(self.settings, self.http)
                    self._hand_over(backend, mail)
            except (smtplib.SMTPException, OSError, UnicodeError, ValueError) as error:
                raise self._explain(error) from None
        with self._lock:
            self._idle.append((time.monotonic(), backend))
        return Receipt(message_id=mail.extra_headers["Message-ID"])

    def compose(self, message: Message, address: str) -> EmailMultiAlternatives:
        """The mail itself. The subject stays the same for the whole incident as far as the text's author keeps it so: Gmail threads by it."""
        domain = parseaddr(self.settings["from_email"])[1].rpartition("@")[2]
        headers = {
            "Message-ID": f"<{message.delivery_id}@{domain}>",
            "Auto-Submitted": "auto-generated",  # RFC 3834: no holiday replies
            "X-Auto-Response-Suppress": "All",  # the same for Exchange
            "List-Id": f"<incidents.{domain}>",
        }
        if message.incident_id:
            headers["X-Flashduty-Incident"] = message.incident_id
            if len(message.incidents) <= 1:
                root = hashlib.sha256(f"{message.incident_id} {address.lower()}".encode()).hexdigest()[:32]
                headers["In-Reply-To"] = headers["References"] = f"<incident-{root}@{domain}>"
        if message.severity == "Critical" and message.event not in ("acknowledged", "closed"):
            headers |= {"Importance": "high", "X-Priority": "1"}
        reply_to = self.settings.get("reply_to")
        mail = EmailMultiAlternatives(
            subject=" ".join((message.subject or message.title).split())[:200],
            body=message.text,
            from_email=self.settings["from_email"],
            to=[address],
            reply_to=[reply_to] if reply_to else None,
            headers=headers,
        )
        if message.html:
            mail.attach_alternative(message.html, "text/html")
        return mail

    def _take(self) -> "_Backend | None":
        with self._lock:
            while self._idle:
                since, backend = self._idle.pop()
                if time.monotonic() - since < KEEP_SECONDS:
                    return backend
                backend.drop()
        return None

    def _try_kept(self, backend: "_Backend", mail: EmailMultiAlternatives) -> bool:
        """Whether the kept connection took the mail. False where it had been closed meanwhile, and the mail was not out yet."""
        try:
            self._hand_over(backend, mail)
        except (smtplib.SMTPServerDisconnected, smtplib.SMTPSenderRefused, OSError) as error:
            gone = not isinstance(error, smtplib.SMTPSenderRefused) or error.smtp_code == 421
            if self._left or not gone or isinstance(error, TimeoutError):
                raise
            return False
        return True

    def _hand_over(self, backend: "_Backend", mail: EmailMultiAlternatives) -> None:
        _stage.left = False
        try:
            backend.open()
            backend.send_messages([mail])
        except BaseException:
            backend.drop()
            raise

    @property
    def _left(self) -> bool:
        return _stage.left

    def _explain(self, error: Exception) -> DeliveryError:
        """What an SMTP failure means for this mail, by RFC 5321's codes: 4xx may be tried again, 5xx not, and after the text nobody knows."""
        host = f"{self.settings['host']}:{self.settings['port']}"
        if isinstance(error, smtplib.SMTPRecipientsRefused):
            code, said = next(iter(error.recipients.values()))
            return self._refused(_("%(host)s refused the recipient: %(said)s"), code, said)
        if isinstance(error, smtplib.SMTPAuthenticationError):
            return self._refused(_("%(host)s refused the user name or password: %(said)s"), error.smtp_code, error.smtp_error, config=True)
        if isinstance(error, smtplib.SMTPSenderRefused):
            return self._refused(_("%(host)s refused the sender: %(said)s"), error.smtp_code, error.smtp_error, config=True)
        if isinstance(error, smtplib.SMTPDataError):
            return self._refused(_("%(host)s refused the message: %(said)s"), error.smtp_code, error.smtp_error)
        if isinstance(error, smtplib.SMTPResponseException):
            return self._refused(_("%(host)s would not begin: %(said)s"), error.smtp_code, error.smtp_error, config=True)
        if isinstance(error, smtplib.SMTPNotSupportedError):
            text = _("%(host)s cannot do what the settings ask for: %(said)s.")
            return DeliveryError(text % {"host": host, "said": error}, permanent=True, config=True)
        if self._left:
            text = _("%(host)s did not confirm the message after it had been handed over; it may have been received.")
            return DeliveryError(text % {"host": host}, permanent=False, left=True)
        if isinstance(error, ssl.SSLError):
            return DeliveryError(http.tls_failure(host, error), permanent=False)
        if isinstance(error, (TimeoutError, smtplib.SMTPServerDisconnected, ConnectionError, OSError)):
            text = (
                _("%(host)s did not answer in time; the message was not handed over.")
                if isinstance(error, TimeoutError) or "timed out" in str(error)
                else _("%(host)s broke the connection off; the message was not handed over.")
            )
            return DeliveryError(text % {"host": host}, permanent=False)
        return DeliveryError(_("The message cannot be written as an e-mail: a header or address is not allowed."), permanent=True)

    def _refused(self, text: str, code: int, said: bytes | str, *, config: bool = False) -> DeliveryError:
        words = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
        words = self.http.clean(f"{code} {' '.join(words.split())}"[:300])
        permanent = code >= 500 or code < 0
        return DeliveryError(
            text % {"host": f"{self.settings['host']}:{self.settings['port']}", "said": words},
            permanent=permanent,
            config=config and permanent,
            retry_after=GREYLISTED if code in (450, 451, 452) else None,
        )


class _Stage(threading.local):
    left = False  # the text of the mail of this thread has begun to leave


_stage = _Stage()


class _Smtp(smtplib.SMTP):
    door: Http

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return self.door.connect(host, port)

    def send(self, s: Any) -> None:
        if isinstance(s, bytes):  # commands are str; the text after DATA is the only bytes that smtplib sends
            _stage.left = True
        super().send(s)


class _SmtpTls(smtplib.SMTP_SSL, _Smtp):
    """TLS from the first byte, over the socket that _Smtp gets."""


class _Backend(EmailBackend):
    """Django's backend with our socket, our authorities, and a greeting that needs no name server."""

    def __init__(self, settings: Mapping[str, Any], door: Http) -> None:
        security = settings.get("security") or "none"
        super().__init__(
            host=settings["host"],
            port=int(settings["port"]),
            username=settings.get("username") or "",
            password=settings.get("password") or "",
            use_tls=security == "starttls",
            use_ssl=security == "tls",
        )
        self.door = door

    def open(self) -> bool:
        if self.connection:
            return False
        name = socket.gethostname()
        greeting = name if "." in name and name.isascii() else "[127.0.0.1]"
        if self.use_ssl:
            kind = type("SmtpTls", (_SmtpTls,), {"door": self.door})
            connection = kind(self.host, self.port, local_hostname=greeting, context=self.door.ssl_context())
        else:
            kind = type("Smtp", (_Smtp,), {"door": self.door})
            connection = kind(self.host, self.port, local_hostname=greeting)
        self.connection = connection
        if self.use_tls:
            connection.starttls(context=self.door.ssl_context())
        if self.username:
            connection.login(self.username, self.password)
        return True

    def drop(self) -> None:
        """Let go of the connection without a word: QUIT would wait for an answer."""
        if self.connection:
            self.connection.close()
        self.connection = None
