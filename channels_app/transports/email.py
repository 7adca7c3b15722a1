"""E-mail over SMTP: text and HTML, one recipient a message, one thread an incident.

Every message has an id of its own, the same for each attempt of a delivery, so that a mailbox that saw it twice can show it once. The thread
hangs together by References to a root id that is computed from incident and recipient and belongs to no message: whichever mail comes first,
the others join it, and a page after a reopening is not taken for a copy of the first.

What the relay took and another server then refused comes back as a report: into a mailbox that is read here, or posted to the callback by the
mail server itself, Mailgun or SendGrid. bounces.py reads what it says."""

import base64
import hashlib
import hmac
import json
import re
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from email.utils import parseaddr
from typing import Any
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from django import forms
from django.core.exceptions import ValidationError
from django.core.mail import EmailMultiAlternatives
from django.core.mail.backends.smtp import EmailBackend
from django.core.validators import validate_email
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import bounces, http, transport
from channels_app.transport import Callback, DeliveryError, Heard, Http, Message, Receipt, Transport, Update

KEEP_SECONDS = 30  # an idle connection is used again; most servers hold one for five minutes
GREYLISTED = 60.0  # what 450, 451 and 452 ask for (providers: retry after a minute or more)
RETRIED = 26 * 3600.0  # how old a signed report may be: Mailgun tries for eight hours, SendGrid for a day


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
        label=gettext_lazy("sender"),
        max_length=320,
        help_text=gettext_lazy(
            "Such as: On-call <oncall@example.com>. The server must accept it. So that mails do not end up as spam, publish SPF, DKIM and DMARC for "
            "its domain (manage.py doctor says what is missing), and ask the administrators of your company's mail to let this address in."
        ),
    )
    reply_to = forms.EmailField(label=gettext_lazy("answers to"), required=False)
    dkim_selector = forms.CharField(
        label=gettext_lazy("DKIM selector"),
        required=False,
        max_length=63,
        help_text=gettext_lazy(
            "The name before ._domainkey of the key your relay signs with (s= in the DKIM-Signature header of a mail it sent): manage.py doctor "
            "then checks the key as well."
        ),
    )
    envelope_from = forms.CharField(
        label=gettext_lazy("returned mail goes to"),
        required=False,
        max_length=254,
        help_text=gettext_lazy(
            "The address that mail servers report to (Return-Path), such as bounces@example.com; empty: the sender. With bounces+{id}@example.com each "
            "mail has an address of its own there, for servers whose reports do not name the mail."
        ),
    )
    bounce_protocol = forms.ChoiceField(
        label=gettext_lazy("mailbox for returned mail"),
        choices=[("", gettext_lazy("none is read")), ("imap", "IMAP"), ("pop3", "POP3")],
        required=False,
        help_text=gettext_lazy(
            "Read about every 30 seconds. Give this channel a mailbox that has no other purpose: with IMAP what was read is marked as read and nothing is deleted; "
            "POP3 knows no marks, so with it what was read is DELETED."
        ),
    )
    bounce_host = forms.CharField(label=gettext_lazy("mailbox: server"), required=False, max_length=253)
    bounce_port = forms.IntegerField(
        label=gettext_lazy("mailbox: port"),
        required=False,
        min_value=1,
        max_value=65535,
        help_text=gettext_lazy("Empty: the usual one (IMAP 993 with TLS, else 143; POP3 995 with TLS, else 110)."),
    )
    bounce_security = forms.ChoiceField(
        label=gettext_lazy("mailbox: security"),
        choices=[("tls", "TLS"), ("starttls", "STARTTLS"), ("none", gettext_lazy("none"))],
        required=False,
        initial="tls",
    )
    bounce_username = forms.CharField(label=gettext_lazy("mailbox: user name"), required=False, max_length=200)
    bounce_password = forms.CharField(label=gettext_lazy("mailbox: password"), required=False, max_length=500, strip=False)
    bounce_folder = forms.CharField(
        label=gettext_lazy("mailbox: folder"), required=False, max_length=200, help_text=gettext_lazy("Of IMAP; empty: INBOX.")
    )
    bounce_token = forms.CharField(
        label=gettext_lazy("password for posted reports"),
        required=False,
        min_length=16,
        max_length=200,
        help_text=gettext_lazy(
            "For a mail server that posts returned mail to the callback address, with this as the password of HTTP Basic or as a bearer token. "
            "At least 16 characters."
        ),
    )
    bounce_key = forms.CharField(
        label=gettext_lazy("key of the mail service's webhooks"),
        required=False,
        max_length=500,
        help_text=gettext_lazy("Mailgun: the HTTP webhook signing key. SendGrid: the verification key of the signed event webhook."),
    )

    def clean_host(self) -> str:
        host = str(self.cleaned_data["host"]).strip()
        if not re.fullmatch(r"[A-Za-z0-9._:-]+", host):
            raise ValidationError(_("Enter only the name or address of the server, without smtp:// and without a port."))
        return host

    def clean_from_email(self) -> str:
        sender = str(self.cleaned_data["from_email"]).strip()
        validate_email(parseaddr(sender)[1])
        return sender

    def clean_envelope_from(self) -> str:
        address = str(self.cleaned_data["envelope_from"]).strip()
        if address:
            validate_email(address.replace("{id}", "0" * 32))
        return address

    def clean_dkim_selector(self) -> str:
        selector = str(self.cleaned_data["dkim_selector"]).strip()
        if "_domainkey" in selector or (selector and not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", selector)):
            raise ValidationError(_("Enter only the selector, such as mail or s1: without ._domainkey and without the domain."))
        return selector

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        if data.get("username") and not data.get("password"):
            raise ValidationError({"password": _("A user name needs a password.")})
        imap = ("bounce_username", "bounce_password", "bounce_folder") if data.get("bounce_protocol") == "imap" else ()
        for name in ("username", "password", *imap):
            if not str(data.get(name) or "").isascii():
                self.add_error(name, _("Only ASCII letters, digits and signs can be sent to the server here."))
        if data.get("bounce_protocol"):
            missing = [
                name for name in ("bounce_host", "bounce_username", "bounce_password") if not data.get(name) and name not in self.errors
            ]
            if missing:
                raise ValidationError(dict.fromkeys(missing, _("The mailbox for returned mail needs it.")))
        return data


class Email(Transport):
    kind = "email"
    label = gettext_lazy("E-mail")
    family = "email"
    reach = "email"
    person = True
    format = "html"
    concurrency = 8
    secret = frozenset({"password", "bounce_password", "bounce_token", "bounce_key"})
    unsent = frozenset({"bounce_token", "bounce_key"})
    Settings = Settings
    asks_each = False  # the mailbox is read as a whole
    unique_ids = True

    def __init__(self, settings: Mapping[str, Any], http: Http, callback_url: str = "") -> None:
        super().__init__(settings, http, callback_url)
        self.listens = bool(self.settings.get("bounce_protocol"))
        self._idle: list[tuple[float, _Backend]] = []
        self._lock = threading.Lock()

    def send(self, message: Message, address: str) -> Receipt:
        """`sent` means that the relay took it; what bounces later is heard by `poll` and `receive`."""
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
        domain = self._domain
        key = message.idempotency_key or message.delivery_id
        envelope = str(self.settings.get("envelope_from") or "").replace("{id}", key.replace("-", ""))
        headers = {
            "From": self.settings["from_email"],
            "Message-ID": f"<{key}@{domain}>",
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
            from_email=envelope or self.settings["from_email"],  # of the envelope: what stands in the mail is the header above
            to=[address],
            reply_to=[reply_to] if reply_to else None,
            headers=headers,
        )
        if message.html:
            mail.attach_alternative(message.html, "text/html")
        return mail

    @property
    def _domain(self) -> str:
        return parseaddr(self.settings["from_email"])[1].rpartition("@")[2]

    # ---- what comes back ----

    def poll(self, message_ids: Sequence[str]) -> Sequence[Update]:
        """What the mailbox for returned mail says, of whatever mail of ours; looked into every 30 seconds, however often it is asked."""
        if not self.settings.get("bounce_protocol"):
            return ()
        return [update for raw in bounces.collect(self._mailbox, self.http) for update in self._about_ours(raw)]

    @property
    def _mailbox(self) -> bounces.Place:
        return bounces.Place(
            protocol=self.settings["bounce_protocol"],
            host=str(self.settings.get("bounce_host") or "").strip(),
            port=int(self.settings.get("bounce_port") or 0),
            security=self.settings.get("bounce_security") or "tls",
            username=str(self.settings.get("bounce_username") or ""),
            password=str(self.settings.get("bounce_password") or ""),
            folder=str(self.settings.get("bounce_folder") or "INBOX"),
        )

    def receive(self, callback: Callback) -> Heard:
        """A report that was posted: a mail as the server wrote it, with the password of the settings; or the JSON of Mailgun (signature over
        `timestamp` and `token`, HMAC-SHA256) or SendGrid (over the time and the body, ECDSA), as their manuals say."""
        if callback.method != "POST":
            raise ValueError("a report is posted")
        if signature := callback.headers.get("x-twilio-email-event-webhook-signature"):
            return Heard(tuple(self._sendgrid(callback, signature)))
        if callback.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
            return Heard(tuple(self._mailgun(callback)))
        scheme, _space, given = callback.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode("utf-8", "replace").partition(":")[2]
            except ValueError:
                given = ""
        token = str(self.settings.get("bounce_token") or "")
        if not token or not hmac.compare_digest(given.strip().encode(), token.encode()):
            raise PermissionError("not the password for posted reports")
        return Heard(tuple(self._about_ours(callback.body)))

    def _about_ours(self, raw: bytes) -> list[Update]:
        updates = bounces.read(raw)
        if updates and not any(self._is_ours(update.message_id) for update in updates):
            own = self._of_return_path(raw)
            updates = [Update(own, update.state, update.reason) for update in updates]
        return [update for update in updates if self._is_ours(update.message_id)]

    def _is_ours(self, message_id: str) -> bool:
        return bool(re.fullmatch(rf"<[\w-]{{1,64}}@{re.escape(self._domain)}>", message_id, re.IGNORECASE))

    def _of_return_path(self, raw: bytes) -> str:
        """The mail that a report is about, by the address it came back to."""
        before, mark, after = str(self.settings.get("envelope_from") or "").lower().partition("{id}")
        for address in bounces.returned_to(raw) if mark else ():
            if found := re.fullmatch(rf"{re.escape(before)}([0-9a-f]{{32}}){re.escape(after)}", address):
                return f"<{UUID(found[1])}@{self._domain}>"
        return ""

    def _mailgun(self, callback: Callback) -> list[Update]:
        said = _json(callback.body)
        if not isinstance(said, dict) or not isinstance(said.get("signature"), dict):
            raise PermissionError("no signature of Mailgun's")
        stamp, token, given = (str(said["signature"].get(name, "")) for name in ("timestamp", "token", "signature"))
        key = str(self.settings.get("bounce_key") or "")
        right = hmac.new(key.encode(), f"{stamp}{token}".encode(), hashlib.sha256).hexdigest()
        if not key or not hmac.compare_digest(right.encode(), given.lower().encode()) or not _is_fresh(stamp, callback):
            raise PermissionError("not signed with the webhook signing key, or too old")
        event = _mapping(said.get("event-data"))
        named = str(_mapping(_mapping(event.get("message")).get("headers")).get("message-id") or "").strip("<>")
        if not self._is_ours(f"<{named}>"):
            return []
        if event.get("event") == "delivered":
            return [Update(f"<{named}>", "delivered")]
        if event.get("event") != "failed" or event.get("severity") != "permanent":
            return []
        status = _mapping(event.get("delivery-status"))
        words = str(status.get("message") or status.get("description") or event.get("reason") or "")
        suppressed = event.get("reason") == "suppress-bounce"  # Mailgun has it on a list, because it bounced before
        code = "5.1.1" if suppressed else bounces.code_in(str(status.get("enhanced-code") or ""), words)
        return [_returned(f"<{named}>", code, words, "Mailgun")]

    def _sendgrid(self, callback: Callback, signature: str) -> list[Update]:
        stamp = callback.headers.get("x-twilio-email-event-webhook-timestamp", "")
        try:
            key = load_der_public_key(base64.b64decode("".join(str(self.settings.get("bounce_key") or "").split())))
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise ValueError("not a key of SendGrid's")
            key.verify(base64.b64decode(signature), stamp.encode() + callback.body, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, ValueError, TypeError):
            raise PermissionError("not signed with the verification key") from None
        if not _is_fresh(stamp, callback):
            raise PermissionError("too old")
        events = _json(callback.body)
        updates = []
        for event in map(_mapping, events if isinstance(events, list) else ()):
            named = f"<{str(event.get('smtp-id') or '').strip('<>')}>"
            if not self._is_ours(named):
                continue
            if event.get("event") == "delivered":
                updates.append(Update(named, "delivered"))
            elif event.get("event") in ("bounce", "dropped"):
                words = str(event.get("reason") or "")
                suppressed = event["event"] == "dropped" and words.lower() in ("bounced address", "invalid")
                code = "5.1.1" if suppressed else bounces.code_in(str(event.get("status") or ""), words)
                # "blocked" is what SendGrid calls a refusal that says nothing of the mailbox.
                updates.append(
                    _returned(named, "5.7.0" if event.get("type") == "blocked" and bounces.is_gone(code) else code, words, "SendGrid")
                )
        return updates

    # ---- connections ----

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


def _is_fresh(stamp: str, callback: Callback) -> bool:
    try:
        age = callback.received_at.timestamp() - float(stamp)
    except ValueError:
        return False
    return -300 < age < RETRIED


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _returned(message_id: str, code: str, words: str, service: str) -> Update:
    code = code if re.fullmatch(r"[45]\.\d{1,3}\.\d{1,3}", code) else ""
    return Update(message_id, "bounced" if bounces.is_gone(code) else "failed", bounces.reason(service, code, words))


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
