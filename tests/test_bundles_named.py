"""A storm's messages carry several incidents each: whatever their titles and however many people are called, each is named in what leaves.

An incident that a transport cut away would be recorded as told."""

import json
import urllib.parse
from datetime import UTC, datetime
from typing import Any

import pytest

from channels_app import transport
from channels_app.http import DeliveryError, Http
from templates_app.choose import render_bundle
from tests.fakes.message import page
from tests.test_transport_contract import HTTP_KINDS, test_of

# Calls say how many there are, templates of a vendor's too, and a webhook's body is JSON without a limit.
KINDS = [kind for kind in HTTP_KINDS if kind.rpartition("_")[0] not in ("aliyun", "tencent") and kind not in ("webhook", "twilio_voice", "vonage_voice")]  # fmt: skip
TITLES = ["Database is down", "\\" * 90, '"<&>' * 20, "🔥" * 90, "数据库" * 30]
MANY = {
    "nobody": (),
    "numbers": tuple(str(10**17 + number) for number in range(70)),
    "addresses": tuple(f"someone.with.a.name{number}@company-name.example.com" for number in range(70)),
    "users": tuple(f"UABCDEFGH{number}" for number in range(150)),
    "phones": tuple(f"+861380000{number:04d}" for number in range(70)),
}


class Door(Http):
    """Keeps what would leave."""

    def request(self, method: str, url: str, **wanted: Any) -> Any:
        self.url = url
        self.left = wanted.get("json") if wanted.get("json") is not None else wanted.get("data")
        raise DeliveryError("kept", permanent=True)


@pytest.mark.parametrize("most", [None, 2])
@pytest.mark.parametrize("title", TITLES)
def test_the_parts_of_an_sms_hold_all_that_it_carries(title, most):
    settings = {
        "host": "smsc.example.com",
        "port": 2775,
        "system_id": "x",
        "sender": "Flashduty",
        "most_parts": most,
        "long_messages": "payload",
    }
    channel = transport.get("smpp_sms")(settings, Http())
    named, message = bundled(channel, title, "en", ())
    [fields], _detail = channel.compose(message, "+8613800000000")  # type: ignore[attr-defined]
    octets = fields.get("message_payload") or fields["short_message"]
    text = octets.decode("utf-16-be" if fields["data_coding"] == 8 else "latin-1")
    assert len(named) == 1 or all(num in text for num in named)


@pytest.mark.parametrize(
    ("kind", "calls"), [(kind, calls) for kind in KINDS for calls in MANY if calls == "nobody" or transport.get(kind).mentions_by]
)
def test_every_incident_that_a_message_carries_is_named_in_it(kind, calls):
    stage = test_of(kind)
    door = Door()
    channel = transport.get(kind)(stage.stage("https://example.com"), door)
    for number, title in enumerate(TITLES if calls == "nobody" else TITLES[:1]):
        named, message = bundled(channel, title, ("en", "zh-hans")[number % 2], MANY[calls])
        with pytest.raises(DeliveryError, match="kept"):
            channel.send(message, getattr(stage, "ADDRESS", ""))
        said = door.left.decode() if isinstance(door.left, bytes) else door.left
        said = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
        missing = [num for num in named if num not in said]
        assert not missing, f"{len(missing)} of {len(named)} with {title[:10]!r}"
        assert len(named) > 1 or channel.family == "sms"


@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize(
    ("url", "some"),
    [
        ("clicksend://user:0123456789abcdef@+15551231234", False),  # 160 characters, the title among them
        ("groupme://0123456789abcdef0123456789", True),  # 1,000
        ("join://" + "a" * 32 + "/group.all", True),  # 1,000 and a title
        ("kodi://example.com", False),  # two lines
    ],
)
def test_a_service_of_apprises_is_given_no_more_than_it_takes(url, some, title):
    door = Door()
    channel = transport.get("apprise")({"url": url}, door)
    named, message = bundled(channel, title, "en", ())
    with pytest.raises(DeliveryError, match="kept"):
        channel.send(message, "")
    said = urllib.parse.unquote_plus(f"{door.url} {door.left}")
    assert len(named) == 1 or all(num in said for num in named)
    assert len(named) > 1 or not some or title != TITLES[0]


def bundled(channel: transport.Transport, title: str, language: str, calls: tuple[str, ...]) -> tuple[list[str], transport.Message]:
    """The numbers of the incidents that one message carries of 200 that wait, and the message; as compose.py makes it."""
    incidents = [
        {
            "id": f"{number:024x}", "num": f"N{number:05d}", "title": title, "event": "triggered", "severity": "Critical",
            "url": f"https://oncall.example.com/i/{'t' * 43}{number}", "possible_repeat": False,
        }
        for number in range(200)
    ]  # fmt: skip
    room = channel.max_bytes or (None if channel.max_chars else 20_000)
    rendered, count = render_bundle(
        incidents, kind=channel.kind, fmt=channel.format, language=language, limit=room, max_chars=channel.max_chars,
        default=channel.default_texts or None, now=datetime(2026, 1, 1, tzinfo=UTC).timestamp(), holds=channel.holds,
    )  # fmt: skip
    message = page(
        subject=rendered.subject, text=rendered.text, html=rendered.html, title=title, language=language, mentions=calls,
        url=incidents[0]["url"], incidents=tuple(incidents[:count]),
    )  # fmt: skip
    return [str(one["num"]) for one in incidents[:count]], message
