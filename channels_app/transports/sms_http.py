"""SMS through any gateway with an HTTP interface (Kannel, Jasmin, SMSEagle, a company's own): a request by template, an answer judged by rule.

Templates hold placeholders in braces, each put in as the place needs it: percent-encoded in an address, a query or a form, as part of a
string in JSON (the template is parsed first, so a text can never become structure), and never read again for further placeholders.
A receipt is the gateway's call to `callback_url`, whose unguessable key is the token that authenticates it.

Source for the preset: Kannel 1.4 User's Guide, "Using the HTTP interface to send SMS messages" (sendsms) and "Delivery reports"."""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote

import re2
from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import http, sms, transport
from channels_app.transport import Callback, DeliveryError, Heard, Message, Receipt, Transport, Update

NAMES = ("to", "text", "id", "from", "user", "password", "coding", "callback")
_PLACE = re.compile(r"\{([^{}]*)\}")
_PATTERN = 500  # characters of a regular expression
_OPTIONS = re2.Options()
_OPTIONS.max_mem, _OPTIONS.log_errors = 1 << 20, False

# What an operator of Kannel would otherwise have to look up; filled in where the settings are empty.
KANNEL = {
    "method": "query",
    "template": "username={user}&password={password}&from={from}&to={to}&text={text}&charset=UTF-8&coding={coding}&dlr-mask=19&dlr-url={callback}",
    "success_status": "202",
    "success_rule": "regex",
    "success_value": "^[03]:",  # 0: Accepted for delivery; 3: Queued for later delivery
    "receipt_query": "id={id}&status=%d&reason=%A",
    "delivered_words": "1",
    "failed_words": "2, 16",
}


class Settings(transport.Settings):
    preset = forms.ChoiceField(
        label=gettext_lazy("gateway"),
        choices=[("", gettext_lazy("another one, described below")), ("kannel", "Kannel (sendsms)")],
        required=False,
        help_text=gettext_lazy(
            "With Kannel, address, user name and password suffice; whatever is left empty below is filled in when saved."
        ),
    )
    url = forms.CharField(
        label=gettext_lazy("address"),
        max_length=1000,
        help_text=gettext_lazy(
            "Without its query, such as http://10.0.0.5:13013/cgi-bin/sendsms. A gateway in a private network must be among the channel's "
            "allowed private addresses. Placeholders may stand in the path."
        ),
    )
    method = forms.ChoiceField(
        label=gettext_lazy("request"),
        required=False,
        choices=[("query", "GET"), ("form", gettext_lazy("POST, form")), ("json", "POST, JSON")],
    )
    template = forms.CharField(
        label=gettext_lazy("template"),
        required=False,
        max_length=4000,
        strip=False,
        widget=forms.Textarea(attrs={"rows": 4}),
        help_text=gettext_lazy(
            "The query, the form (to={to}&text={text}) or the JSON body with {to} {text} {id} {from} {user} {password} {coding} {callback}. "
            "Values are encoded by us; write no quotes around them in a query. {id}: our message id; {coding}: 0 if the text fits the GSM "
            "alphabet, else 2; {callback}: the address for delivery receipts."
        ),
    )
    user = forms.CharField(label=gettext_lazy("user name"), required=False, max_length=200)
    password = forms.CharField(
        label=gettext_lazy("password or key"),
        required=False,
        max_length=500,
        strip=False,
        help_text=gettext_lazy(
            "Goes where the template says {password}: written into the template itself, everybody who sees it would read it."
        ),
    )
    basic_auth = forms.BooleanField(label=gettext_lazy("send user name and password as HTTP Basic authentication"), required=False)
    sender = forms.CharField(
        label=gettext_lazy("sender"), required=False, max_length=30, help_text=gettext_lazy("The number or name that {from} stands for.")
    )  # fmt: skip
    number_format = forms.ChoiceField(
        label=gettext_lazy("phone numbers"),
        required=False,
        choices=[("plus", "+8613800000000"), ("digits", "8613800000000"), ("zeros", "008613800000000")],
        help_text=gettext_lazy("How the gateway wants them in {to}."),
    )
    headers = transport.HeadersField(
        reserved=("host", "content-length", "transfer-encoding", "connection"), label=gettext_lazy("headers"), required=False, initial=dict,
        help_text=gettext_lazy('A JSON object, such as {"X-Api-Key": "…"}.')
    )  # fmt: skip
    most_parts = forms.IntegerField(
        label=gettext_lazy("most parts of a message"),
        required=False,
        min_value=1,
        max_value=20,
        help_text=gettext_lazy("A longer text is shortened, the link to the rest kept; the gateway must allow as many. Default: 6."),
    )
    success_status = forms.CharField(
        label=gettext_lazy("status of success"),
        required=False,
        max_length=100,
        help_text=gettext_lazy("HTTP statuses that mean accepted, such as 200, 202 or 200-299. Default: 200-299."),
    )
    success_rule = forms.ChoiceField(
        label=gettext_lazy("and the answer"),
        required=False,
        choices=[
            ("", gettext_lazy("may say anything")),
            ("contains", gettext_lazy("contains the text")),
            ("regex", gettext_lazy("matches the regular expression (RE2)")),
            ("json", gettext_lazy("is JSON where a path equals a value")),
        ],
        help_text=gettext_lazy("Many gateways refuse with status 200: say here how success reads."),
    )
    success_value = forms.CharField(
        label=gettext_lazy("text, expression, or path = value"),
        required=False,
        max_length=_PATTERN,
        help_text=gettext_lazy('For JSON: messages.0.status = "0"; the value is compared as text if it has no quotes.'),
    )
    final_pattern = forms.CharField(
        label=gettext_lazy("refusals that no other try can help"),
        required=False,
        max_length=_PATTERN,
        help_text=gettext_lazy(
            "A regular expression (RE2) on a refusing answer, such as: invalid number|blacklist. The fallback then starts at once."
        ),
    )
    message_id = forms.CharField(
        label=gettext_lazy("message id in the answer"),
        required=False,
        max_length=_PATTERN,
        help_text=gettext_lazy(
            "A JSON path beginning with $. ($.messages.0.id) or a regular expression with one group (ID: (\\S+)). Receipts are matched by "
            "it. Empty: our own id, which the template sends as {id} or in {callback}."
        ),
    )
    receipt_query = forms.CharField(
        label=gettext_lazy("query of the receipt address"),
        required=False,
        max_length=500,
        help_text=gettext_lazy("What {callback} has after its ?, in the gateway's own notation; Kannel: id={id}&status=%d&reason=%A."),
    )
    receipt_id = forms.CharField(
        label=gettext_lazy("receipt: field of the id"), required=False, max_length=100,
        help_text=gettext_lazy("Name in query or form, or path in JSON. Default: id."),
    )  # fmt: skip
    receipt_status = forms.CharField(
        label=gettext_lazy("receipt: field of the status"), required=False, max_length=100, help_text=gettext_lazy("Default: status.")
    )  # fmt: skip
    receipt_reason = forms.CharField(
        label=gettext_lazy("receipt: field of the reason"), required=False, max_length=100, help_text=gettext_lazy("Default: reason.")
    )  # fmt: skip
    delivered_words = forms.CharField(
        label=gettext_lazy("receipt: delivered"),
        required=False,
        max_length=500,
        help_text=gettext_lazy("Status words that mean the phone has it, with commas between. Default: DELIVRD, DELIVERED."),
    )
    failed_words = forms.CharField(
        label=gettext_lazy("receipt: failed"),
        required=False,
        max_length=500,
        help_text=gettext_lazy(
            "Status words that mean it will not arrive. Default: UNDELIV, EXPIRED, REJECTD, DELETED, UNDELIVERED, FAILED. Others are passed over."
        ),
    )

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        if data.get("preset") == "kannel":
            data.update({name: value for name, value in KANNEL.items() if not data.get(name)})
        data["method"] = data.get("method") or "query"
        for name, problem in _problems(data).items():
            self.add_error(name, problem)
        return data

    def clean_url(self) -> str:
        url = str(self.cleaned_data["url"]).strip()
        parts = http.split_url(url)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or any(char.isspace() for char in url):
            raise ValidationError(_("The address must begin with http:// or https:// and name a host."))
        if "{" in parts.netloc:
            raise ValidationError(_("Placeholders may stand in the path only, not in the host."))
        if parts.query or parts.fragment:
            raise ValidationError(_("Enter the address without what follows the ?; that belongs into the template."))
        return url


class SmsHttp(Transport):
    kind = "http_sms"
    label = gettext_lazy("SMS through an HTTP gateway")
    family = "sms"
    reach = "phone"
    person = True
    format = "plain"
    concurrency = 1
    secret = frozenset({"password", "headers"})
    Settings = Settings

    def holds(self, text: str) -> bool:
        return sms.segments(sms.simplify(text)).count <= int(self.settings.get("most_parts") or 6)

    @classmethod
    def measure(cls, text: str) -> str:
        return sms.measure(sms.simplify(text))

    def send(self, message: Message, address: str) -> Receipt:
        """`sent`: the gateway's answer fits the rule of success. Without a rule for the id the receipt's id is our own delivery id."""
        values, detail = self._values(message, address)
        answer = self._request(values)
        self._judge(answer)
        return Receipt(self._message_id(answer) or message.delivery_id, detail=detail)

    def receive(self, callback: Callback) -> Heard:
        """A delivery receipt by GET, form or JSON (an object, or a list of them); ValueError where it names no message."""
        entries = [entry for entry in _entries(callback) if _text(_at(entry, self._name("receipt_id")))]
        if not entries:
            raise ValueError(f"no {self._name('receipt_id')} in the receipt")
        return Heard(tuple(update for entry in entries if (update := self._update(entry))), body=b"ok")

    def _values(self, message: Message, address: str) -> tuple[dict[str, str], str]:
        most = int(self.settings.get("most_parts") or 6)
        simple = sms.simplify(message.text)
        text = sms.fit(simple, most, message.url)
        digits = address.lstrip("+")
        receipt = fill(str(self.settings.get("receipt_query") or ""), {"id": _encoded(message.delivery_id)})
        values = {
            "to": {"digits": digits, "zeros": f"00{digits}"}.get(str(self.settings.get("number_format") or ""), f"+{digits}"),
            "text": text,
            "id": message.delivery_id,
            "from": str(self.settings.get("sender") or ""),
            "user": str(self.settings.get("user") or ""),
            "password": str(self.settings.get("password") or ""),
            "coding": "0" if sms.segments(text).encoding == "GSM-7" else "2",
            "callback": f"{self.callback_url}?{receipt}" if self.callback_url and receipt else self.callback_url,
        }
        return values, "" if text == simple else _("shortened to %(count)d parts") % {"count": most}

    def _request(self, values: Mapping[str, str]) -> http.Answer:
        settings = self.settings
        encoded = {name: _encoded(value) for name, value in values.items()}
        url = fill(str(settings["url"]), encoded)
        headers = dict(settings.get("headers") or {})
        if settings.get("basic_auth"):
            pair = base64.b64encode(f"{values['user']}:{values['password']}".encode()).decode()
            headers = {"Authorization": f"Basic {pair}", **headers}
        template = str(settings.get("template") or "").strip()
        method = settings.get("method") or "query"
        if method == "json":
            return self.http.post(url, json=_filled(json.loads(template), values), headers=headers)
        if method == "form":
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            return self.http.post(url, data=fill(template, encoded), headers=form | headers)
        return self.http.request("GET", f"{url}?{fill(template, encoded)}", headers=headers)

    def _judge(self, answer: http.Answer) -> None:
        """Raise DeliveryError unless status and body are what the rule calls success."""
        said = answer.body.decode("utf-8", "replace")
        final = str(self.settings.get("final_pattern") or "")
        good = _statuses(str(self.settings.get("success_status") or "200-299"))
        refused = answer.status not in good or not self._succeeded(said)
        if refused and final and _compiled(final).search(said):
            raise DeliveryError(_("The SMS gateway refused the message: %(said)s") % {"said": answer.quote()}, permanent=True)
        if not refused:
            return
        if answer.status not in good:
            http.by_status(answer)
        if not self._is_readable(said):
            raise DeliveryError(
                _("%(host)s answered %(status)d with something that the rule of success cannot read: %(said)s")
                % {"host": answer.host, "status": answer.status, "said": answer.quote()},
                permanent=False,
                left=True,
            )
        raise DeliveryError(
            _("The SMS gateway answered %(status)d, which is not what the channel's settings call success: %(said)s")
            % {"status": answer.status, "said": answer.quote()},
            permanent=False,
        )

    def _is_readable(self, said: str) -> bool:
        """Whether the gateway itself has spoken. A rule that wants JSON is not answered by a login page or half a body: nobody knows."""
        if self.settings.get("success_rule") == "json":
            return isinstance(_json(said), (dict, list))
        return True

    def _succeeded(self, said: str) -> bool:
        rule, value = self.settings.get("success_rule") or "", str(self.settings.get("success_value") or "")
        if rule == "contains":
            return value in said
        if rule == "regex":
            return bool(_compiled(value).search(said))
        if rule == "json":
            path, wanted = _equation(value)
            return _text(_at(_json(said), path)) == wanted
        return True

    def _message_id(self, answer: http.Answer) -> str:
        rule = str(self.settings.get("message_id") or "")
        said = answer.body.decode("utf-8", "replace")
        if rule.startswith("$."):
            return (_text(_at(_json(said), rule[2:])) or "")[:200]
        match = _compiled(rule).search(said) if rule else None
        return str(match.group(1) or "")[:200] if match else ""

    def _name(self, setting: str) -> str:
        return str(self.settings.get(setting) or setting.removeprefix("receipt_"))

    def _update(self, entry: Any) -> Update | None:
        message_id = _text(_at(entry, self._name("receipt_id"))) or ""
        word = (_text(_at(entry, self._name("receipt_status"))) or "").strip().upper()
        if word in _words(self.settings.get("delivered_words") or "DELIVRD, DELIVERED"):
            return Update(message_id, "delivered")
        if word in _words(self.settings.get("failed_words") or "UNDELIV, EXPIRED, REJECTD, DELETED, UNDELIVERED, FAILED"):
            why = self.http.clean(" ".join((_text(_at(entry, self._name("receipt_reason"))) or "").split())[:200])
            said = _("The SMS did not reach the phone (%(word)s): %(why)s") if why else _("The SMS did not reach the phone (%(word)s).")
            return Update(message_id, "failed", said % {"word": word[:40], "why": why})
        return None


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with each {name} that `values` has replaced, in one pass: braces inside of values stay what they are."""
    return _PLACE.sub(lambda match: values.get(match[1], match[0]), template)


def _filled(part: Any, values: Mapping[str, str]) -> Any:
    if isinstance(part, str):
        return fill(part, values)
    if isinstance(part, list):
        return [_filled(item, values) for item in part]
    return {name: _filled(item, values) for name, item in part.items()} if isinstance(part, dict) else part


def _encoded(value: str) -> str:
    return quote(value.encode("utf-8", "replace"), safe="")


# --- what is wrong with settings ----------------------------------------------------------------------------------------------------


def _problems(data: Mapping[str, Any]) -> dict[str, str]:
    """What the fields say together, as a sentence per field."""
    found: dict[str, str] = {}
    template = str(data.get("template") or "").strip()
    for name, text, known in (("url", str(data.get("url") or ""), NAMES), ("receipt_query", str(data.get("receipt_query") or ""), ("id",))):
        if strange := [place for place in _PLACE.findall(text) if place not in known]:
            found[name] = _unknown(strange[0], known)
    places = _PLACE.findall(template)
    if data["method"] == "json":
        parsed = _json(template)
        places = _PLACE.findall(" ".join(_strings(parsed)))
        if not isinstance(parsed, (dict, list)):
            found["template"] = _('The template is not JSON; write {"to": "{to}", "text": "{text}"} with quotes around each placeholder.')
    elif not found.get("template") and (not template.isascii() or any(char.isspace() for char in template)):
        found["template"] = _("A query or form has no spaces, line breaks or letters outside ASCII: write them percent-encoded (%20).")
    if strange := [place for place in places if place not in NAMES]:
        found["template"] = _unknown(strange[0], NAMES)
    elif "template" not in found and not {"to", "text"} <= {*places, *_PLACE.findall(str(data.get("url") or ""))}:
        found["template"] = _("The template must have {to} and {text}.")
    if "{user}" in template and not data.get("user"):
        found["user"] = _("The template has {user}: enter the user name.")
    if ("{password}" in template or data.get("basic_auth")) and not data.get("password"):
        found["password"] = _("Enter the password that is to be sent.")
    if data.get("success_status") and not _statuses(str(data["success_status"])):
        found["success_status"] = _("Enter statuses such as 200, 202 or 200-299.")
    rule, value = data.get("success_rule"), str(data.get("success_value") or "")
    if rule and not value.strip():
        found["success_value"] = _("Enter what the answer of a success has.")
    elif rule == "json" and not all(_equation(value)):
        found["success_value"] = _("Enter a path and a value with = between, such as: status = ok.")
    expressions = {"success_value": value if rule == "regex" else "", "final_pattern": str(data.get("final_pattern") or "")}
    if not str(data.get("message_id") or "").startswith("$."):
        expressions["message_id"] = str(data.get("message_id") or "")
    for name, pattern in expressions.items():
        if pattern and (why := _wrong(pattern)):
            found[name] = _("This is not a regular expression of RE2: %(why)s.") % {"why": why}
    if expressions.get("message_id") and "message_id" not in found and _compiled(expressions["message_id"]).groups != 1:
        found["message_id"] = _("Put the part that is the id into one pair of parentheses, or write a JSON path that begins with $.")
    return found


def _unknown(place: str, known: tuple[str, ...]) -> str:
    return _("{%(place)s} is no placeholder; there are: %(known)s. A brace of its own is written %%7B in a query.") % {
        "place": place[:50],
        "known": " ".join(f"{{{name}}}" for name in known),
    }


def _strings(part: Any) -> list[str]:
    if isinstance(part, dict):
        return [text for item in part.values() for text in _strings(item)]
    if isinstance(part, list):
        return [text for item in part for text in _strings(item)]
    return [part] if isinstance(part, str) else []


def _wrong(pattern: str) -> str:
    try:
        _compiled(pattern)
    except UnicodeError:
        return _("it has characters that do not exist")
    except re2.error as error:
        said = error.args[0] if error.args else error
        return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    return ""


# --- what a gateway says ------------------------------------------------------------------------------------------------------------


def _compiled(pattern: str) -> Any:
    return re2.compile(pattern, _OPTIONS)  # re2 keeps the last ones itself


def _statuses(text: str) -> set[int]:
    """The statuses of "200, 202, 210-219"; empty where it is not written so."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([1-5]\d\d)\s*(?:-\s*([1-5]\d\d)\s*)?", part, re.ASCII)
        if match is None:
            return set()
        found |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found


def _equation(text: str) -> tuple[str, str | None]:
    """("messages.0.status", "0") of `messages.0.status = "0"`; the value as text, as `_text` writes it."""
    path, equals, value = text.partition("=")
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    return path.strip().removeprefix("$."), value if equals else None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _at(value: Any, path: str) -> Any:
    """What `path` ("a.0.b") leads to; None where it leads nowhere. A name with dots in it is tried as one name first."""
    if isinstance(value, dict) and path in value:
        return value[path]
    for step in path.split("."):
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and len(step) < 6 and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def _text(value: Any) -> str | None:
    """A JSON scalar as people write it in the settings: true, 0, ok."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, (bool, int, float)) else None


def _words(text: Any) -> set[str]:
    return {word.strip().upper() for word in str(text).split(",")} - {""}


def _entries(callback: Callback) -> list[Any]:
    """The receipts in a callback: its query together with the form or JSON object of the body, or each object of a JSON list."""
    body = callback.body.decode("utf-8", "replace")
    parsed = _json(body)
    if isinstance(parsed, list):
        return [{**callback.query, **entry} for entry in parsed if isinstance(entry, dict)]
    if isinstance(parsed, dict):
        return [{**callback.query, **parsed}]
    return [{**callback.query, **dict(parse_qsl(body, keep_blank_values=True))}]
