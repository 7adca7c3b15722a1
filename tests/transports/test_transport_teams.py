"""Microsoft Teams through a flow as strict as the real one; the cards are also read with Microsoft's own classes."""

import pytest
from microsoft_teams import cards

from channels_app.http import DeliveryError, Http
from channels_app.transports.teams import MAX_BODY, STATUSES, Teams, cut
from tests.fakes.message import SENT_AT, page
from tests.fakes.server import Reply, Server
from tests.fakes.teams import TeamsFlow, no

NOW = SENT_AT.timestamp()
LI = "li.lei@example.com"
HAN = "0c0ffee0-1234-5678-9abc-def012345678"

ACCEPTED = Reply(202)
REFUSED_IN_200 = None  # whatever passes the door is a 202; what is wrong with a card is found before
NEEDS_THE_BODY = False
KNOWS_A_PAGE = True


def stage(base: str) -> dict:
    path = "/powerautomate/automations/direct/workflows/c0ffee/triggers/manual/paths/invoke"
    return {"url": f"{base}{path}?api-version=2016-06-01&sp=%2Ftriggers%2Fmanual%2Frun&sig=mUE0ffee-0123456789"}


@pytest.fixture
def flow():
    with TeamsFlow(now=NOW) as running:
        yield running


def transport(flow) -> Teams:
    return Teams({"url": flow.hook}, Http(allowed_hosts=[flow.host]))


def posted(flow, message) -> dict:
    receipt = transport(flow).send(message, "")
    assert flow.failed == [] and receipt.state == "sent"
    microsoft_reads(flow.posted[-1])
    return flow.posted[-1]


def refused(flow, message=None) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        transport(flow).send(message or page(), "")
    return caught.value


def microsoft_reads(card) -> None:
    """Each node is taken by Microsoft's class of its name, with nothing left over that the class does not know."""
    for node in [card, *card["body"], *card["actions"], *(run for block in card["body"] for run in block.get("inlines", []))]:
        cls = getattr(cards, {"Action.OpenUrl": "OpenUrlAction"}.get(node["type"], node["type"]))
        # Children go to their own class: as members of a list they would be read as "some element", which takes everything.
        read = cls.model_validate({name: [] if name in ("body", "actions", "inlines") else value for name, value in node.items()})
        assert not set(read.model_extra or ()) - {"$schema"}, f"{node['type']} has no {sorted(read.model_extra)}"


def texts(card) -> list[str]:
    return [block["text"] for block in card["body"] if block["type"] == "TextBlock"]


def test_a_page_is_a_card_with_links(flow):
    card = posted(flow, page())
    assert card["body"] == [
        {"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": "Database is down", "size": "Large", "weight": "Bolder", "color": "Attention"}]},
        {"type": "TextBlock", "wrap": True, "text": "**Database is down**\n#A1B2C3 Critical"},
    ]  # fmt: skip
    assert [(action["title"], action["url"]) for action in card["actions"]] == [
        ("Acknowledge", "https://oncall.example.com/i/a1b2c3?ack=1"),
        ("Detail", "https://oncall.example.com/i/a1b2c3"),
    ]


def test_the_receipt_promises_no_more_than_the_flow(flow):
    receipt = transport(flow).send(page(), "")
    assert (receipt.state, receipt.message_id) == ("sent", "")
    assert "run history" in receipt.detail


def test_only_an_open_incident_offers_acknowledge(flow):
    for change in ({"event": "acknowledged"}, {"event": "closed"}, {"event": "test"}, {"incidents": page().incidents * 2}):
        flow.now += 1
        assert [action["title"] for action in posted(flow, page(**change))["actions"]] == ["Detail"]
    flow.now += 1
    assert posted(flow, page(url=""))["actions"] == []


@pytest.mark.parametrize(
    ("event", "severity", "colour"),
    [("triggered", "Warning", "Warning"), ("refire", "Info", "Accent"), ("closed", "Critical", "Good"), ("test", "", "Default")],
)  # fmt: skip
def test_the_colour_says_how_bad_it_is(flow, event, severity, colour):
    assert posted(flow, page(event=event, severity=severity))["body"][0]["inlines"][0]["color"] == colour


def test_mentions_have_their_entities(flow):
    receipt = transport(flow).send(page(mentions=(LI, HAN, "Li Lei", "x</at><at>everyone@example.com")), "")
    card = flow.posted[0]
    assert TeamsFlow.mentioned(card) == [LI, HAN]
    assert texts(card)[-1] == f"<at>{LI}</at> <at>{HAN}</at>"
    assert "Li Lei" in receipt.detail
    microsoft_reads(card)


def test_words_in_the_title_are_words(flow):
    card = posted(flow, page(subject="<at>everyone</at> **x** [y](http://evil)\nz"))
    assert card["body"][0]["inlines"][0]["text"] == "<at>everyone</at> **x** [y](http://evil) z"
    assert TeamsFlow.mentioned(card) == []


@pytest.mark.parametrize("line", ["label = **数据库** 的值 1 \\< 2\n\n", "长", '\\\\"', "a\\*"])
def test_long_texts_are_cut_before_the_flow_loses_them(flow, line):
    receipt = transport(flow).send(page(text=(line * 30_000)[:60_000], mentions=(LI,)), "")
    assert receipt.detail.startswith("shortened to 28 KB") and flow.failed == []
    assert texts(flow.posted[0])[0].endswith("\n\n… shortened")
    assert flow.posted[0]["actions"][1]["url"] == page().url, "the way to the rest is kept"
    assert MAX_BODY - 2000 < len(flow.seen[0].body) <= MAX_BODY


def test_a_text_of_the_declared_length_is_not_cut(flow):
    text = "".join(f'#{number:06X} "disk" of host\\-{number} is full\n\n' for number in range(1000))[: Teams.max_bytes]
    card = posted(flow, page(text=text, subject="标" * 300, url="https://oncall.example.com/" + "x" * 500))
    assert texts(card)[0] == text


def test_a_cut_never_leaves_half_a_mark():
    assert cut("a" * 50 + "\\<" + "b" * 50, 54) == "a" * 50
    assert cut("a" * 50 + "[words](https://example.com/x)", 70) == "a" * 50
    assert cut("**" + "a" * 50, 40).endswith("a**")
    assert cut("first line is long enough to stay\n\nsec", 39) == "first line is long enough to stay"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sig": "another"}, "has expired"),
        ({"anyone": False}, "DirectApiAuthorizationRequired"),
        ({"enabled": False}, "switched off"),
        ({"deleted": True}, "make a new one"),
    ],
)
def test_the_door_says_what_to_do(flow, change, words):
    channel = transport(flow)
    for name, value in change.items():
        setattr(flow, name, value)
    with pytest.raises(DeliveryError, match=words) as caught:
        channel.send(page(), "")
    assert (caught.value.permanent, caught.value.config, caught.value.left) == (True, True, False)
    assert "mUE0ffee" not in caught.value.text


def test_the_rate_limit_rests_the_flow(flow):
    for _ in range(4):
        transport(flow).send(page(), "")
    error = refused(flow)
    assert (error.permanent, error.retry_after, error.blocked) == (False, 5, 5)
    assert [(limit.count, limit.seconds) for limit in Teams.limits] == [(4, 1)]
    flow.now += 1
    transport(flow).send(page(), "")


@pytest.mark.parametrize("status", STATUSES)
def test_each_status_has_its_advice(flow, status):
    flow.answer = no(status, "Some<Code", "x" * 500)
    error = refused(flow)
    assert error.permanent == (status != 429) and str(STATUSES[status][0]) in error.text
    assert (error.retry_after, error.blocked) == ((None, 30) if status == 429 else (None, None))
    assert "Some<Code" not in error.text


@pytest.mark.parametrize(
    "url",
    [
        "https://default3f1c.0a.environment.api.powerplatform.com:443/powerautomate/automations/direct/workflows/c0ffee/triggers/manual/paths/invoke?api-version=1&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig=abc",
        " https://3f1c.0a.environment.api.powerplatform.com/powerautomate/automations/direct/workflows/c0ffee/triggers/manual/paths/invoke?api-version=1&sig=abc ",
        "https://prod-01.chinaeast2.logic.azure.cn/workflows/c0ffee/triggers/manual/paths/invoke?api-version=1&sig=abc",
    ],
)
def test_addresses_that_are_taken(url):
    assert Teams.check({"url": url}) == {}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "required"),
        ("make me a flow", "whole webhook address"),
        ("https://contoso.webhook.office.com/webhookb2/1@2/IncomingWebhook/3/4", "retired"),
        ("https://prod-01.westeurope.logic.azure.com:443/workflows/c0ffee/triggers/manual/paths/invoke?api-version=2016-06-01&sig=abc", "new address"),
        ("https://x.api.powerplatform.com/powerautomate", "has the form"),
        ("https://x.api.powerplatform.com/workflows/c0ffee/triggers/manual/paths/invoke?api-version=1", "signature"),
        ("http://x.api.powerplatform.com/workflows/c0ffee/triggers/manual/paths/invoke?api-version=1&sig=a", "https"),
    ],
)  # fmt: skip
def test_addresses_that_are_not(url, words):
    assert words in " ".join(Teams.check({"url": url})["url"])


def test_an_error_object_in_a_success_is_a_refusal():
    with Server(Reply(200, {"error": {"code": "WorkflowTriggerIsNotEnabled", "message": "Could not execute workflow"}})) as server:
        with pytest.raises(DeliveryError, match="WorkflowTriggerIsNotEnabled") as caught:
            Teams(stage(server.url), Http(allowed_hosts=[server.host])).send(page(), "")
    assert not caught.value.left
