"""The outbox: each rule of delivery as a short play. Rows are real, time is the test's, and the provider says what the play tells it to."""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction

from channels_app import compose, limits, outbox, policy, tasks, transport
from channels_app.book import Book
from channels_app.http import DeliveryError
from channels_app.models import Account, Address, Channel, ChannelHealth, Delivery, Notification
from channels_app.outbox import repair
from channels_app.outbox.recording import KEEPS_FAILING, fall_back
from channels_app.transport import Limit, Message, Receipt, Transport
from escalation.ids import hex_id
from mapping.models import ContactPoint, Installation, Member
from templates_app import events
from tests.fakes.server import until

NOW = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)
BUSY = DeliveryError("the provider is busy", permanent=False)
GONE = DeliveryError("there is no such chat", permanent=True)
LOST = DeliveryError("no answer came", permanent=False, left=True)
UNPLUGGED = DeliveryError("the name cannot be resolved", permanent=False, is_network=True)


class Provider(Transport):
    """Does what the play says, by channel name; remembers what it got."""

    kind = "provider"
    label = "Provider"
    group = True
    person = True
    reach = "member"
    concurrency = 8
    plan: dict[str, list[Any]] = {}
    got: list[tuple[str, Message, str]] = []

    def send(self, message: Message, address: str) -> Receipt:
        name = self.settings["name"]
        Provider.got.append((name, message, address))
        answers = Provider.plan[name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0] if answers else Receipt(message_id=f"m{len(Provider.got)}")
        if callable(answer):
            answer = answer(message)
        if isinstance(answer, DeliveryError):
            raise answer
        return answer


class Second(Provider):
    kind = "second"


class Chat(Provider):
    kind = "chat"
    person = False
    reach = "group"
    concurrency = 1
    max_bytes = 4000

    @classmethod
    def targets(cls, settings: Any) -> list[str]:
        return settings.get("chats", [""])

    @classmethod
    def moved(cls, settings: Any, old: str, new: str) -> dict[str, Any]:
        return (
            settings | {"chats": [new if chat == old else chat for chat in settings.get("chats", [])]} if "chats" in settings else settings
        )


class Scene:
    def __init__(self) -> None:
        self.now = NOW
        Installation.get()
        self.lee = Member.objects.create_user("lee@example.com", "Lee")

    def channel(self, name: str, kind: str = "provider", **fields: Any) -> Channel:
        return Channel.objects.create(name=name, kind=kind, settings={"name": name}, **fields)

    def plan(self, name: str, *answers: Any) -> None:
        """What the provider says to the coming requests; the last answer stays."""
        Provider.plan[name] = list(answers)

    def page(self, *to: outbox.To, topic: int = 1, severity: str = "Critical", title: str = "db down", **fields: Any) -> int:
        context = events.build(
            fields.get("event", "triggered"), id=hex_id(NOW, topic), num=f"{topic:06x}", title=title, severity=severity,
            progress="Triggered", detail_url=f"http://testserver/i/{hex_id(NOW, topic)}/", start_time=NOW,
        )  # fmt: skip
        values = {"event": "triggered", "is_page": True, "topic": topic, "layer_idx": 0} | fields
        return outbox.post([outbox.Notice(severity=severity, context=context, to=to, **values)], self.now)[0]

    def person(self, channel: Channel, **fields: Any) -> outbox.To:
        return outbox.To(channel.id, f"member:{self.lee.id}", self.lee.id, **fields)

    def run(self, seconds: float = 0) -> int:
        self.now += timedelta(seconds=seconds)
        return outbox.run_once(self.now)

    def pass_time(self, seconds: float) -> None:
        """Stops at every instant at which a row is due, as a drain that is awake does."""
        end = self.now + timedelta(seconds=seconds)
        for _turn in range(2000):
            due = [*Address.objects.filter(next_at__lte=end).values_list("next_at", flat=True)]
            due += Delivery.objects.filter(fallback_at__lte=end).values_list("fallback_at", flat=True)
            if not due:
                break
            self.now = max(self.now, min(due))
            self.run()
        else:
            raise AssertionError("something stays due")
        self.now = end
        self.run()

    def names(self) -> list[str]:
        return [name for name, _message, _address in Provider.got]

    def row(self, **by: Any) -> Delivery:
        return Delivery.objects.get(**by)


@pytest.fixture
def scene(db: None, monkeypatch: pytest.MonkeyPatch) -> Scene:
    for style in (Provider, Second, Chat):
        monkeypatch.setitem(transport.transports(), style.kind, style)
    monkeypatch.setattr(Provider, "plan", defaultdict(list))
    monkeypatch.setattr(Provider, "got", [])
    return Scene()


# ---- one page ------------------------------------------------------------------------------------------------------------------------


def test_a_page_travels_and_leaves_a_readable_row(scene):
    channel = scene.channel("a")
    scene.page(scene.person(channel))
    assert scene.run() == 1
    row = scene.row()
    assert (row.state, row.attempts, row.tries, row.sent_at, row.message_id) == ("sent", 1, 1, NOW, "m1")
    assert row.log[0][0] == 1 and row.log[0][3] == "sent" and "db down" in row.text
    assert row.fallback_at is None and row.ended_at == NOW
    _name, message, address = Provider.got[0]
    assert (address, message.event, message.attempt, message.possible_repeat) == (f"member:{scene.lee.id}", "triggered", 1, False)
    assert message.delivery_id == message.idempotency_key == str(row.uid)
    assert message.incidents[0]["id"] == message.incident_id == hex_id(NOW, 1)
    assert Address.objects.get().next_at is None
    assert scene.run(3600) == 0


def test_a_person_gets_a_signed_link_that_is_cut_from_our_records_and_a_group_gets_none(scene):
    scene.page(scene.person(scene.channel("a")), outbox.To(scene.channel("chat", "chat").id, ""))
    scene.run()
    to_person, to_group = (next(m for n, m, _a in Provider.got if n == name) for name in ("a", "chat"))
    token = to_person.url.rstrip("/").rsplit("/", 1)[1]
    assert token in to_person.text
    assert compose.links.read(token).member_id == scene.lee.id
    assert to_group.url == f"http://testserver/i/{hex_id(NOW, 1)}/"
    assert token not in scene.row(member=scene.lee).text and "/i/…" in scene.row(member=scene.lee).text


def test_a_delay_of_a_preference_is_kept_to_the_second(scene):
    scene.page(scene.person(scene.channel("a"), delay=90), scene.person(scene.channel("b")))
    scene.run()
    assert scene.names() == ["b"]
    scene.run(89.9)
    assert scene.names() == ["b"]
    scene.run(0.1)
    assert scene.names() == ["b", "a"]


def test_an_acknowledgement_cancels_what_waits_but_not_forced_pages_nor_notices(scene):
    channel = scene.channel("a")
    scene.page(scene.person(channel, delay=60))
    scene.page(outbox.To(channel.id, "forced", delay=60), survives_ack=True)
    scene.page(outbox.To(channel.id, "notice", delay=60), is_page=False, event="acknowledged", rank=3)
    assert outbox.cancel([1], "acknowledged", NOW) == 1
    assert (scene.row(member=scene.lee).state, scene.row(member=scene.lee).reason) == ("cancelled", "acknowledged")
    scene.pass_time(120)
    assert sorted(address for _n, _m, address in Provider.got) == ["forced", "notice"]
    assert outbox.cancel([1], "closed", scene.now, keep_forced=False) == 0  # it has left: nothing to stop
    assert scene.row(address__target="forced").state == "sent"


def test_what_is_out_when_it_is_acknowledged_is_never_tried_again(scene):
    scene.page(scene.person(scene.channel("a", fallback_kinds=["second"])))
    scene.channel("b", "second")
    scene.plan("a", lambda message: outbox.cancel([1], "acknowledged", NOW) or BUSY)
    scene.pass_time(300)
    row = scene.row()
    assert (row.state, row.reason, scene.names()) == ("cancelled", "acknowledged", ["a"])


def test_a_request_without_an_answer_is_sent_again_as_a_possible_repeat(scene):
    scene.page(scene.person(scene.channel("a")))
    scene.plan("a", LOST, Receipt())
    scene.pass_time(5)
    assert [(m.attempt, m.possible_repeat) for _n, m, _a in Provider.got] == [(1, False), (2, True)]
    assert [line[3] for line in scene.row().log] == ["unknown", "sent"]
    assert scene.row().state == "sent"


def test_a_refusal_is_no_possible_repeat(scene):
    scene.page(scene.person(scene.channel("a")))
    scene.plan("a", BUSY, Receipt())
    scene.pass_time(5)
    assert [(m.attempt, m.possible_repeat) for _n, m, _a in Provider.got] == [(1, False), (2, False)]


def test_an_unknown_one_that_is_acknowledged_stays_unknown(scene):
    scene.page(scene.person(scene.channel("a")))
    scene.plan("a", LOST)
    scene.run()
    outbox.cancel([1], "acknowledged", scene.now)
    assert (scene.row().state, scene.row().reason) == ("unknown", "acknowledged")
    scene.pass_time(600)
    assert len(Provider.got) == 1


def test_the_most_severe_goes_first_and_first_pages_before_loops(scene):
    channel = scene.channel("chat", "chat")
    for topic, severity, rank in ((1, "Info", 0), (2, "Critical", 2), (3, "Warning", 0), (4, "Critical", 0)):
        scene.page(outbox.To(channel.id, ""), topic=topic, severity=severity, rank=rank)
    scene.run()
    assert [int(m.num, 16) for _n, m, _a in Provider.got] == [4, 2, 3, 1]


def test_a_transport_that_breaks_does_not_break_the_others(scene):
    scene.page(scene.person(scene.channel("a")), scene.person(scene.channel("b")))
    scene.plan("a", lambda message: {}["missing"])
    scene.run()
    assert scene.row(channel__name="b").state == "sent"
    assert scene.row(channel__name="a").state == "queued" and "Internal error" in scene.row(channel__name="a").reason


def test_a_channel_that_is_switched_off_fails_at_once_and_says_so(scene):
    scene.page(scene.person(scene.channel("a", status="disabled")))
    scene.run()
    assert scene.row().state == "failed" and "switched off" in scene.row().reason and not Provider.got


def test_the_sandbox_delivers(scene):
    channel = Channel.objects.create(name="app", kind="sandbox_app")
    scene.page(scene.person(channel))
    scene.run()
    assert scene.row().state == "delivered" and scene.row().delivered_at == NOW


# ---- leases and crashes --------------------------------------------------------------------------------------------------------------


def claim(scene: Scene, holder: str, room: int = 100) -> tuple[Book, list[compose.Claimed]]:
    book = Book()
    book.refresh(scene.now)
    return book, outbox.claim(holder, scene.now, outbox.Room(room), book)


def test_a_drain_that_died_leaves_unknown_messages_that_are_sent_again_and_labelled(scene):
    scene.page(scene.person(scene.channel("a")))
    _book, claimed = claim(scene, "dead")
    assert len(claimed) == 1 and scene.run() == 0
    scene.now += timedelta(seconds=8)
    assert outbox.take_over("dead", scene.now) == 1
    row = scene.row()
    assert (row.state, row.tries, row.possible_repeat) == ("queued", 0, True)
    assert row.log[0][3] == "unknown" and row.deadline_at == NOW + timedelta(seconds=68)
    scene.run()
    assert [(m.attempt, m.possible_repeat) for _n, m, _a in Provider.got] == [(2, True)]


def test_a_result_that_comes_after_the_take_over_is_not_written(scene):
    scene.page(scene.person(scene.channel("a")))
    _book, claimed = claim(scene, "slow")
    result = compose.send(claimed[0], scene.now)
    outbox.take_over("slow", scene.now)
    assert outbox.record("slow", [result], scene.now) == 0
    assert scene.row().state == "queued"


def test_a_node_that_vanished_is_taken_over_when_its_lease_ends(scene):
    scene.page(scene.person(scene.channel("a")))
    claim(scene, "elsewhere")
    scene.run(29)
    assert not Provider.got
    scene.run(2)
    assert [m.attempt for _n, m, _a in Provider.got] == [2]


def test_a_drain_that_died_in_mid_send_of_an_acknowledged_page_repeats_nothing(scene):
    scene.page(scene.person(scene.channel("a")))
    claim(scene, "dead")
    outbox.cancel([1], "acknowledged", scene.now)
    outbox.take_over("dead", scene.now)
    scene.pass_time(600)
    assert scene.row().state == "unknown" and not Provider.got


def test_one_request_at_a_time_to_a_chat_whoever_sends(scene):
    channel = scene.channel("chat", "chat")
    for topic in (1, 2):
        scene.page(outbox.To(channel.id, ""), topic=topic)
    _book, first = claim(scene, "one")
    assert len(first) == 1
    assert claim(scene, "two")[1] == []
    outbox.record("one", [compose.send(first[0], scene.now)], scene.now)
    assert [one.said.topic for one in claim(scene, "two")[1]] == [2]


def test_a_channel_never_takes_the_last_quarter_of_the_senders(scene):
    room = outbox.Room(total=36, threads=128, by_channel={1: 92})
    assert room.of_channel(1) == 4
    assert outbox.Room(total=32, threads=128, by_channel={1: 96}).of_channel(1) == 0
    assert outbox.Room(total=32, threads=128, by_channel={1: 96}).of_channel(2) == 24
    assert outbox.Room(total=1, threads=8, by_channel={1: 5, 2: 1, 3: 1}).of_channel(4) == 1


# ---- budget, deadline, fallback ------------------------------------------------------------------------------------------------------


def with_fallback(scene: Scene) -> Channel:
    scene.channel("b", "second")
    return scene.channel("a", fallback_kinds=["second"])


def test_a_permanent_failure_starts_the_fallback_at_once(scene):
    scene.page(scene.person(with_fallback(scene)))
    scene.plan("a", GONE)
    scene.run()
    assert scene.names() == ["a", "b"]
    assert scene.row(channel__name="a").state == "failed" and scene.row(channel__name="a").reason == GONE.text
    assert scene.row(channel__name="b").fallback_of == scene.row(channel__name="a")
    assert Notification.objects.get().exhausted_at is None


def test_a_provider_that_fails_three_times_is_overtaken_and_still_tried(scene):
    scene.page(scene.person(with_fallback(scene)))
    scene.plan("a", BUSY)
    scene.pass_time(9)
    assert scene.names() == ["a", "a", "a", "b"]
    scene.pass_time(60)
    assert scene.names().count("a") > 3 and scene.names().count("b") == 1
    assert scene.row(channel__name="a").state == "queued"


def test_a_provider_that_comes_back_sends_the_last_page_of_an_incident_and_not_every_loop(scene):
    chat = scene.channel("chat", "chat")
    lees = scene.channel("a")
    for name in ("chat", "a"):
        scene.plan(name, BUSY)
    for loop in range(4):
        scene.page(
            outbox.To(chat.id, "", mentions=(f"u{loop}",)),
            scene.person(lees),
            rank=2 if loop else 0,
            event="refire" if loop else "triggered",
        )
        scene.pass_time(600)
        assert all(Notification.objects.values_list("exhausted_at", flat=True))  # each says that it reached nobody
    Provider.got.clear()
    for name in ("chat", "a"):
        scene.plan(name, Receipt())
    scene.pass_time(3600)
    assert sorted(scene.names()) == ["a", "chat"]
    assert next(m.mentions for n, m, _a in Provider.got if n == "chat") == ("u3", "u2", "u1", "u0")
    assert Delivery.objects.filter(state="cancelled", reason=outbox.posting.LATER_PAGE).count() == 6


def test_a_later_page_leaves_no_later_than_the_one_it_replaces_and_counts_its_tries(scene):
    channel = scene.channel("a")
    scene.plan("a", DeliveryError("slow down", permanent=False, retry_after=300))
    scene.page(scene.person(channel, delay=600))
    scene.pass_time(700)
    scene.page(scene.person(channel, delay=600), rank=2, event="refire")
    new = Delivery.objects.latest("id")
    assert new.not_before == NOW + timedelta(seconds=900) and new.tries == 1
    scene.page(scene.person(channel, delay=600), rank=2, event="refire")  # waits for its own time: it ends nothing
    assert Delivery.objects.filter(state="queued").count() == 2


def test_what_may_have_arrived_ends_unknown_where_a_later_page_takes_its_place(scene):
    channel = scene.channel("a")
    scene.plan("a", LOST)
    scene.page(scene.person(channel))
    scene.pass_time(60)
    scene.page(scene.person(channel), rank=2, event="refire")
    first = Delivery.objects.earliest("id")
    assert (first.state, first.withdrawn, first.reason) == ("unknown", True, outbox.posting.LATER_PAGE)


@pytest.mark.parametrize(("said", "end"), [(LOST, ("unknown", True)), (Receipt(), ("sent", False))])
def test_a_page_that_hangs_gives_way_to_a_later_one_too_unless_it_is_sent_after_all(scene, said, end):
    channel = scene.channel("a")
    scene.plan("a", LOST)
    scene.page(scene.person(channel))
    scene.pass_time(12)
    scene.now = scene.row().not_before
    [out] = claim(scene, "h")[1]
    scene.page(scene.person(channel, delay=600), rank=2, event="refire")
    later = Delivery.objects.latest("id")
    assert later.tries == out.tries and later.not_before == scene.now + timedelta(seconds=600)  # nobody knows yet whether it has to hurry
    outbox.record("h", [compose.Result(out, scene.now, 8, said)], scene.now)
    row = scene.row(id=out.id)
    assert (row.state, row.withdrawn) == end


def test_the_budget_runs_from_the_first_request_and_a_request_that_hangs_does_not_stop_it(scene):
    scene.page(scene.person(with_fallback(scene)))
    claim(scene, "busy")
    scene.run(9.9)
    assert scene.names() == []
    scene.run(0.1)
    assert scene.names() == ["b"]


def test_what_would_wait_past_its_deadline_takes_the_fallback_now(scene):
    scene.page(scene.person(with_fallback(scene)))
    scene.plan("a", DeliveryError("blocked for ten minutes", permanent=False, blocked=600), Receipt())
    scene.run()
    assert scene.names() == ["a", "b"]
    assert Address.objects.get(channel__name="a").next_at == NOW + timedelta(seconds=600)
    scene.pass_time(599)
    assert scene.names() == ["a", "b"]
    scene.pass_time(1)
    assert scene.names() == ["a", "b", "a"]


def test_a_page_that_arrives_while_its_address_is_blocked_takes_the_fallback_at_once(scene):
    channel = with_fallback(scene)
    scene.page(scene.person(channel))
    scene.plan("a", DeliveryError("blocked for ten minutes", permanent=False, blocked=600), Receipt())
    scene.run()
    scene.page(scene.person(channel), topic=2)
    scene.run(1)
    assert scene.names() == ["a", "b", "b"]


def test_a_page_behind_a_block_that_has_no_fallback_is_reported_upward_at_once_and_leaves_later(scene):
    channel = scene.channel("a")
    scene.plan("a", DeliveryError("blocked for ten minutes", permanent=False, blocked=600), Receipt())
    scene.page(scene.person(channel))
    scene.run()
    scene.page(scene.person(channel), topic=2)
    scene.run(1)
    assert list(Notification.objects.order_by("topic").values_list("exhausted_at", flat=True)) == [NOW, scene.now]
    assert scene.row(topic=2).reason == policy.TAKES_NO_MORE
    scene.pass_time(600)
    assert {row.state for row in Delivery.objects.all()} == {"sent"} and scene.row(topic=2).reason == ""


def test_a_page_that_waits_in_vain_after_its_fallback_was_started_is_reported_upward_too(scene):
    channel = scene.channel("a", limits={"per_hour": 1})
    scene.plan("a", DeliveryError("no answer came", permanent=False, left=True))
    scene.page(scene.person(channel))
    scene.run()
    Delivery.objects.update(fallback_at=NOW)  # as after a request that hung: the fallback starts, and it is tried again
    outbox.fallbacks(NOW, Book())
    assert scene.row().fallback_at is None and Notification.objects.get().exhausted_at is None
    scene.pass_time(60)
    assert Notification.objects.get().exhausted_at is not None and len(Provider.got) == 1
    scene.pass_time(3700)
    assert len(Provider.got) == 2


def test_what_waits_at_channels_that_keep_failing_says_so_and_speaks_of_no_limit(scene):
    channel = with_fallback(scene)
    scene.plan("a", UNPLUGGED)
    scene.plan("b", BUSY)
    for topic in range(1, 8):
        scene.page(scene.person(channel), topic=topic)
    scene.pass_time(100)
    reasons = set(Delivery.objects.values_list("channel__name", "reason"))
    assert (
        reasons <= {("a", UNPLUGGED.text), ("b", BUSY.text), ("a", KEEPS_FAILING), ("b", KEEPS_FAILING)} and ("a", KEEPS_FAILING) in reasons
    )


def test_what_waits_at_a_channel_that_keeps_failing_is_looked_at_once_and_says_so_when_a_limit_holds_it_instead(scene):
    channel = scene.channel("a")
    scene.page(scene.person(channel))
    Delivery.objects.update(fallback_at=None, deadline_at=NOW)  # its fallback has started
    place = Address.objects.get()

    def look(everybody: bool) -> tuple[bool, str]:
        with connection.cursor() as cursor:
            fall_back(cursor, [(place.id, NOW + timedelta(seconds=30), everybody)], NOW)
        row = scene.row()
        Delivery.objects.update(fallback_at=None)
        return row.fallback_at is not None, row.reason

    assert [look(everybody) for everybody in (True, True, False, False)] == [
        (True, KEEPS_FAILING), (False, KEEPS_FAILING), (True, policy.TAKES_NO_MORE), (False, policy.TAKES_NO_MORE),
    ]  # fmt: skip
    Delivery.objects.update(reason="quiet hours", not_before=NOW + timedelta(seconds=20))
    assert [look(True), look(False)] == [(False, "quiet hours")] * 2


def test_a_block_that_was_met_by_an_acknowledged_page_holds_for_the_next(scene):
    channel = scene.channel("a")
    blocked = DeliveryError("blocked for ten minutes", permanent=False, blocked=600)
    scene.plan("a", lambda message: outbox.cancel([1], "acknowledged", NOW) or blocked, Receipt())
    scene.page(scene.person(channel))
    scene.run()
    place = Address.objects.get()
    assert (scene.row().state, place.next_at, place.blocked_until) == ("cancelled", None, NOW + timedelta(seconds=600))
    scene.page(scene.person(channel), topic=2)
    scene.pass_time(599)
    assert scene.names() == ["a"]
    scene.pass_time(2)
    assert scene.names() == ["a", "a"]


def test_an_info_can_wait_for_what_a_critical_cannot(scene):
    scene.page(scene.person(with_fallback(scene)), severity="Info")
    scene.plan("a", DeliveryError("slow down", permanent=False, retry_after=600), Receipt())
    scene.pass_time(9)
    assert scene.names() == ["a"]


def test_retry_after_is_respected(scene):
    scene.page(scene.person(scene.channel("a")))
    scene.plan("a", DeliveryError("slow down", permanent=False, retry_after=30), Receipt())
    scene.pass_time(29)
    assert len(Provider.got) == 1
    scene.pass_time(1)
    assert len(Provider.got) == 2


def test_a_page_is_tried_for_a_day_and_then_given_up(scene):
    scene.page(scene.person(scene.channel("a")))
    scene.plan("a", BUSY)
    for _hour in range(25):
        scene.run(3600)
    assert scene.row().state == "failed" and scene.row().ended_at <= NOW + timedelta(hours=25)


def test_a_notification_tries_a_channel_once_per_person_so_fallbacks_never_loop(scene):
    a = scene.channel("a", fallback_kinds=["second"])
    scene.channel("b", "second", fallback_kinds=["provider", "second"])
    scene.page(scene.person(a))
    scene.plan("a", GONE)
    scene.plan("b", GONE)
    scene.pass_time(60)
    assert scene.names() == ["a", "b"]


def test_a_group_falls_back_only_to_the_channel_that_is_named(scene):
    other = scene.channel("other", "chat")
    chat = scene.channel("chat", "chat", fallback_channel=other)
    scene.plan("chat", GONE)
    scene.page(outbox.To(chat.id, ""))
    scene.plan("alone", GONE)
    scene.page(outbox.To(scene.channel("alone", "chat").id, ""), topic=2)
    scene.run()
    assert scene.names() == ["chat", "alone", "other"]
    assert Notification.objects.get(topic=2).exhausted_at == NOW and Notification.objects.get(topic=1).exhausted_at is None


def test_a_page_that_nothing_can_deliver_is_reported_upward_once(scene):
    scene.page(scene.person(with_fallback(scene)))
    scene.plan("a", GONE)
    scene.plan("b", BUSY)
    scene.run()
    assert Notification.objects.get().exhausted_at is None
    scene.pass_time(30)
    first = Notification.objects.get().exhausted_at
    assert first is not None and first <= NOW + timedelta(seconds=10)
    scene.pass_time(600)
    assert Notification.objects.get().exhausted_at == first


def test_our_own_network_exhausts_nothing_and_raises_the_alarm(scene):
    scene.page(scene.person(with_fallback(scene)))
    scene.plan("a", UNPLUGGED)
    scene.plan("b", UNPLUGGED)
    scene.pass_time(120)
    assert Notification.objects.get().exhausted_at is None
    assert "No channel can be reached" in Installation.get().alarm
    scene.plan("a", Receipt())
    scene.pass_time(600)
    assert scene.row(channel__name="a").state == "sent"
    assert Installation.get().alarm == ""  # a channel got through


def test_one_provider_that_cannot_be_reached_while_others_can_is_theirs(scene):
    scene.page(scene.person(scene.channel("a")))
    scene.page(scene.person(scene.channel("works")), topic=2)
    scene.plan("a", UNPLUGGED)
    scene.pass_time(30)
    assert Notification.objects.get(topic=1).exhausted_at is not None


def test_a_notice_is_neither_a_page_nor_exhausted(scene):
    scene.page(outbox.To(scene.channel("a", fallback_kinds=["second"]).id, ""), is_page=False, event="closed", rank=3)
    scene.plan("a", GONE)
    scene.run()
    assert scene.row().state == "failed" and Notification.objects.get().exhausted_at is None


def test_our_own_absence_starts_no_fallback(scene):
    scene.page(scene.person(with_fallback(scene)))
    outbox.pulse(scene.now)
    scene.now += timedelta(hours=2)
    outbox.pulse(scene.now)
    scene.run()
    assert scene.names() == ["a"] and scene.row().state == "sent"


def five_wait(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog that takes three batches, and a drain that was there a moment ago."""
    monkeypatch.setattr(repair, "FORGIVEN", 2)
    channel = with_fallback(scene)
    outbox.pulse(scene.now)
    for topic in range(5):
        scene.page(scene.person(channel), topic=topic)


def test_a_backlog_of_an_absence_is_forgiven_in_batches_that_survive_each_other(scene, monkeypatch):
    five_wait(scene, monkeypatch)
    scene.now += timedelta(minutes=10)
    away = timedelta(minutes=10)
    before = dict(Delivery.objects.values_list("id", "deadline_at"))
    assert outbox.pulse(scene.now) == "moving", "two are done; nobody may start fallbacks yet"
    assert sum(at != before[pk] for pk, at in Delivery.objects.values_list("id", "deadline_at")) == 2
    # Everybody is away again before the rest is done: each absence is taken off once.
    scene.now += timedelta(seconds=30)
    forgive(scene)
    moved = {at - before[pk] for pk, at in Delivery.objects.values_list("id", "deadline_at")}
    assert moved == {away + timedelta(seconds=30)}
    assert not outbox.pulse(scene.now + repair.WRITING)
    scene.run()
    assert scene.names() == ["a"] * 5


def forgive(scene: Scene) -> None:
    while outbox.pulse(scene.now) == "moving":
        pass


@pytest.fixture
def drain(scene: Scene, settings, tmp_path) -> Iterator[tasks.Drain]:
    """A drain without threads: it looks and claims, and nothing leaves."""
    settings.RUN_DIR = tmp_path
    drain = tasks.Drain("drain-0", threads=8)
    drain._start = lambda claimed: None  # type: ignore[method-assign]
    yield drain
    drain.close()


def chores(drain: tasks.Drain, now: datetime) -> None:
    drain.next_chores = 0.0
    drain.tick(now)


def test_a_drain_claims_nothing_and_starts_no_fallback_while_deadlines_are_moved(scene, drain, monkeypatch):
    five_wait(scene, monkeypatch)
    scene.now += timedelta(hours=2)
    for _turn in range(2):
        chores(drain, scene.now)
        assert drain.absence == "moving" and {row.state for row in Delivery.objects.all()} == {"queued"}
    chores(drain, scene.now)
    assert drain.absence == "settling" and {row.state for row in Delivery.objects.all()} == {"sending"}
    # Each has its whole time before it, whichever batch it was in, and nothing falls back.
    assert {row.fallback_at for row in Delivery.objects.all()} == {scene.now + policy.BUDGET}
    assert Delivery.objects.count() == 5


def test_a_node_that_knows_results_has_time_to_write_them_after_the_database_was_away(scene, drain, monkeypatch):
    monkeypatch.setattr(Provider, "limits", (Limit(1, 3600),))
    for topic in range(3):
        scene.page(scene.person(with_fallback(scene) if not topic else Channel.objects.get(name="a")), topic=topic)
    outbox.pulse(scene.now)
    _book, claimed = claim(scene, "elsewhere")
    known = compose.send(claimed[0], scene.now)
    scene.now += timedelta(seconds=40)
    chores(drain, scene.now)
    assert drain.absence == "settling"
    assert outbox.record("elsewhere", [known], scene.now + timedelta(seconds=1)) == 3
    # One message told of all three; neither it nor what went inside of it falls back.
    chores(drain, scene.now + timedelta(seconds=7))
    assert not drain.absence
    assert [(row.state, row.bundled_by_id) for row in Delivery.objects.order_by("id")] == [
        ("sent", None), ("bundled", claimed[0].id), ("bundled", claimed[0].id),
    ]  # fmt: skip


def test_what_nobody_wrote_in_that_time_is_taken_over_and_the_record_says_when_it_began(scene, drain):
    scene.page(scene.person(with_fallback(scene)))
    outbox.pulse(scene.now)
    claim(scene, "elsewhere")
    scene.now += timedelta(seconds=40)
    chores(drain, scene.now)
    assert scene.row().holder == "elsewhere"
    scene.now += timedelta(seconds=6)
    chores(drain, scene.now)
    row = scene.row()
    assert (row.state, row.attempts, row.possible_repeat) == ("sending", 2, True)
    assert row.log[0][:3] == [1, NOW.timestamp(), 46.0]
    # The attempt that was broken off counts against nothing: the repeat has what was left of the budget, and no fallback leaves beside it.
    assert row.fallback_at == scene.now + policy.BUDGET
    assert row.deadline_at == NOW + policy.deadline("Critical") + timedelta(seconds=46)


def test_what_is_queued_again_after_an_absence_is_moved_once(scene, drain, monkeypatch):
    five_wait(scene, monkeypatch)
    claim(scene, "dead", 1)
    scene.now += timedelta(hours=1)
    outbox.pulse(scene.now)
    outbox.take_over("dead", scene.now)
    forgive(scene)
    assert {row.deadline_at for row in Delivery.objects.all()} == {scene.now + policy.deadline("Critical")}


def test_the_clock_set_back_delays_nothing(scene):
    scene.page(scene.person(scene.channel("a"), delay=60))
    scene.now -= timedelta(hours=1)
    outbox.turned_back(timedelta(hours=1), scene.now)
    scene.run(60)
    assert scene.names() == ["a"]


# ---- the circuit breaker -------------------------------------------------------------------------------------------------------------


def test_a_provider_that_keeps_failing_is_probed_and_not_hammered(scene):
    channel = with_fallback(scene)
    scene.plan("a", BUSY)
    for topic in range(1, 8):
        scene.page(scene.person(channel), topic=topic)
    scene.run()
    opened = ChannelHealth.objects.get(channel=channel)
    assert opened.failures == 5 and opened.open_until == NOW + timedelta(seconds=30)
    before = scene.names().count("a")
    scene.page(scene.person(channel), topic=99)
    scene.run(1)
    assert scene.names().count("a") == before and scene.row(topic=99, channel__name="b").state == "sent"
    scene.pass_time(29)
    assert scene.names().count("a") == before + 1
    assert ChannelHealth.objects.get(channel=channel).failures == 6
    assert ChannelHealth.objects.get(channel=channel).open_until == scene.now + timedelta(seconds=60)
    scene.plan("a", Receipt())
    scene.pass_time(60)
    assert ChannelHealth.objects.get(channel=channel).failures == 0
    assert not Delivery.objects.filter(channel=channel, state="queued").exists()


def test_one_request_probes_a_provider_whoever_looks_and_however_much_waits(scene):
    channel = with_fallback(scene)
    scene.plan("a", BUSY)
    for topic in range(1, 8):
        scene.page(scene.person(channel), topic=topic)
    scene.run()
    ours, theirs = Book(), Book()
    for book in (ours, theirs):
        book.refresh(scene.now)
    scene.now += timedelta(seconds=31)
    for topic in range(11, 14):
        scene.page(outbox.To(channel.id, f"t{topic}"), topic=topic)
    looks = [outbox.claim("a drain", scene.now, outbox.Room(100), book) for book in (ours, ours, theirs)]
    assert [len(claimed) for claimed in looks] == [1, 0, 0]
    (probe,) = looks[0]
    for topic in (14, 15):  # a page that comes while it is out
        scene.page(outbox.To(channel.id, f"t{topic}"), topic=topic)
        assert not outbox.claim("a drain", scene.now, outbox.Room(100), ours if topic == 14 else theirs)
    scene.plan("a", Receipt())
    outbox.record("a drain", [compose.send(probe, scene.now)], scene.now)
    scene.pass_time(15)
    assert not Delivery.objects.filter(channel=channel).exclude(state="sent").exists()


def test_a_page_at_a_channel_that_keeps_failing_and_has_no_fallback_is_reported_upward_at_once(scene):
    works, channel = scene.channel("works"), scene.channel("a")
    scene.plan("a", BUSY)
    for topic in range(1, 8):
        scene.page(scene.person(channel), topic=topic)
    scene.page(scene.person(works), topic=50)
    scene.run()
    scene.page(scene.person(channel), topic=99)
    scene.run(1)
    assert Notification.objects.get(topic=99).exhausted_at == scene.now
    assert scene.row(topic=99).state == "queued"  # and is sent when the provider is back
    scene.plan("a", Receipt())
    scene.pass_time(60)
    assert scene.row(topic=99).state == "sent"


def test_a_channel_that_keeps_failing_because_of_our_network_exhausts_nothing(scene):
    channel = scene.channel("a")
    scene.plan("a", UNPLUGGED)
    for topic in range(1, 8):
        scene.page(scene.person(channel), topic=topic)
    scene.pass_time(20)
    scene.page(scene.person(channel), topic=99)
    scene.pass_time(30)
    assert not Notification.objects.filter(exhausted_at__isnull=False).exists()


def test_a_refusal_of_one_message_is_no_failure_of_the_channel(scene):
    channel = scene.channel("a")
    scene.plan("a", GONE)
    for topic in range(8):
        scene.page(scene.person(channel), topic=topic)
    scene.run()
    assert not ChannelHealth.objects.filter(failures__gt=0).exists()


# ---- limits and bundles --------------------------------------------------------------------------------------------------------------


def limited(scene: Scene, count: int = 3, **fields: Any) -> Channel:
    return scene.channel("chat", "chat", limits={"per_minute": count}, **fields)


def test_a_limit_is_never_exceeded_in_any_window(scene):
    channel = limited(scene)
    at = []
    for topic in range(1, 9):
        scene.page(outbox.To(channel.id, ""), topic=topic, is_page=False, event="closed", rank=3)
    scene.plan("chat", lambda message: at.append(scene.now) or Receipt())
    scene.pass_time(300)
    assert len(at) == 8
    assert all((later - earlier).total_seconds() > 60 for earlier, later in zip(at, at[3:], strict=False))


def test_a_storm_is_bundled_and_every_incident_is_named(scene):
    channel = limited(scene)
    for topic in range(1, 101):
        scene.page(outbox.To(channel.id, ""), topic=topic, severity="Critical" if topic == 77 else "Warning")
    scene.pass_time(600)
    named = [one["id"] for _n, message, _a in Provider.got for one in message.incidents]
    assert sorted(named) == sorted(hex_id(NOW, topic) for topic in range(1, 101))
    assert Provider.got[0][1].incidents[0]["severity"] == "Critical"
    assert len(Provider.got) < 20
    assert all(len(message.text.encode()) <= 4000 for _n, message, _a in Provider.got)
    for row in Delivery.objects.filter(state="bundled"):
        assert row.bundled_by.state == "sent" and row.sent_at is not None and row.attempts == 1
    assert not Delivery.objects.exclude(state__in=["sent", "bundled"]).exists()


def test_a_bundle_calls_everybody_whom_one_of_its_pages_calls(scene):
    channel = limited(scene)
    for topic in range(1, 31):
        scene.page(outbox.To(channel.id, "", mentions=(f"u{topic}", "boss")), topic=topic)
    scene.pass_time(600)
    assert any(len(message.incidents) > 1 for _n, message, _a in Provider.got)
    for _n, message, _a in Provider.got:
        numbers = [int(one["num"], 16) for one in message.incidents]
        assert message.mentions == (f"u{numbers[0]}", "boss", *(f"u{number}" for number in numbers[1:]))


def test_a_storm_is_bundled_as_the_transport_counts(scene, monkeypatch):
    """An SMS of so many parts holds fewer than its characters say, and what were cut away would count as told."""
    monkeypatch.setattr(Chat, "holds", lambda _self, text: text.count("#") <= 3, raising=True)
    channel = limited(scene)
    for topic in range(1, 21):
        scene.page(outbox.To(channel.id, ""), topic=topic)
    scene.pass_time(600)
    assert max(len(message.incidents) for _n, message, _a in Provider.got) == 3
    assert sorted(one["id"] for _n, message, _a in Provider.got for one in message.incidents) == sorted(
        hex_id(NOW, topic) for topic in range(1, 21)
    )


def test_a_transport_that_cannot_say_what_it_holds_stops_no_other(scene, monkeypatch):
    """As with a number in its settings that is none: whoever claims must not die of it."""

    def breaks(_self, text):
        raise ValueError("invalid literal for int()")

    monkeypatch.setattr(Chat, "holds", breaks, raising=True)
    channel, other = limited(scene, 2), scene.channel("other")
    for topic in range(1, 6):
        scene.page(outbox.To(channel.id, ""), topic=topic)
    scene.page(outbox.To(other.id, "t1"), topic=9)
    scene.pass_time(300)
    assert set(Delivery.objects.values_list("state", flat=True)) == {"sent"}
    assert all(len(message.incidents) == 1 for _n, message, _a in Provider.got)


def test_a_bundle_leaves_out_what_was_acknowledged_and_status_notices(scene):
    channel = limited(scene, 1)
    scene.page(outbox.To(channel.id, ""), topic=1)
    scene.run()
    for topic in range(2, 6):
        scene.page(outbox.To(channel.id, ""), topic=topic)
    scene.page(outbox.To(channel.id, ""), topic=6, is_page=False, event="closed", rank=3)
    outbox.cancel([3], "acknowledged", scene.now)
    scene.pass_time(62)
    assert [int(one["num"], 16) for one in Provider.got[1][1].incidents] == [2, 4, 5]


def test_when_the_carrier_fails_all_of_them_fall_back(scene):
    other = scene.channel("other", "chat")
    channel = limited(scene, 1, fallback_channel=other)
    scene.page(outbox.To(channel.id, ""), topic=1, severity="Info")
    scene.run()
    for topic in range(2, 5):
        scene.page(outbox.To(channel.id, ""), topic=topic, severity="Info")
    scene.plan("chat", GONE)
    scene.pass_time(70)
    assert Delivery.objects.filter(channel=channel, state="failed").count() == 3
    assert Delivery.objects.filter(channel=other, state="sent").count() == 3


def test_a_bundle_without_an_answer_is_repeated_and_says_so_of_each(scene):
    channel = limited(scene, 1)
    scene.page(outbox.To(channel.id, ""), topic=1)
    scene.run()
    scene.page(outbox.To(channel.id, ""), topic=2)
    scene.page(outbox.To(channel.id, ""), topic=3)
    scene.plan("chat", LOST, Receipt())
    scene.pass_time(200)
    first, second = Provider.got[1][1], Provider.got[2][1]
    assert [one["possible_repeat"] for one in first.incidents] == [False, False]
    assert [one["possible_repeat"] for one in second.incidents] == [True, True]
    assert second.possible_repeat and second.attempt == 2


def test_a_drain_that_died_with_a_bundle_gives_all_of_it_back(scene):
    channel = limited(scene, 1)
    for topic in (1, 2, 3):
        scene.page(outbox.To(channel.id, ""), topic=topic)
    _book, claimed = claim(scene, "dead")
    assert len(claimed) == 1 and len(claimed[0].bundle) == 2
    assert outbox.take_over("dead", scene.now) == 3
    assert Delivery.objects.filter(state="queued", possible_repeat=True, bundled_by=None).count() == 3


def test_messages_waiting_for_a_limit_past_their_deadline_take_the_fallback(scene):
    other = scene.channel("other", "chat")
    channel = scene.channel("chat", "chat", limits={"per_hour": 1}, fallback_channel=other)
    scene.page(outbox.To(channel.id, ""), topic=1)
    scene.page(outbox.To(channel.id, ""), topic=2, is_page=True, severity="Critical")
    scene.run()
    scene.page(outbox.To(channel.id, ""), topic=3)
    scene.run(1)
    assert scene.names()[-1] == "other"


# ---- a machine that is too busy ------------------------------------------------------------------------------------------------------


def late(scene: Scene, seconds: float, holder: str = "busy") -> None:
    """A drain claims, and comes to send so much later."""
    _book, claimed = claim(scene, holder)
    scene.now += timedelta(seconds=seconds)
    outbox.record(holder, [compose.send(one, scene.now) for one in claimed], scene.now)


def test_what_was_acknowledged_between_its_claim_and_a_late_request_does_not_leave(scene):
    scene.page(scene.person(scene.channel("a")))
    _book, claimed = claim(scene, "busy")
    outbox.cancel([1], "acknowledged", scene.now)
    scene.now += timedelta(seconds=3)
    outbox.record("busy", [compose.send(claimed[0], scene.now)], scene.now)
    assert (scene.row().state, scene.row().reason, scene.row().tries) == ("cancelled", "acknowledged", 0)
    assert not Provider.got and scene.row().log[0][3] == "late"
    scene.pass_time(600)
    assert not Provider.got


def test_a_request_that_comes_late_is_looked_at_again_and_leaves_although_the_machine_stays_slow(scene):
    scene.page(scene.person(scene.channel("a")))
    for _turn in range(3):
        late(scene, 3)
    assert [line[3] for line in scene.row().log] == ["late", "late", "sent"]
    assert (scene.row().state, scene.row().tries, scene.row().possible_repeat, len(Provider.got)) == ("sent", 1, False, 1)
    assert not ChannelHealth.objects.filter(failures__gt=0).exists()
    assert max(policy.stale_after(attempt) for attempt in range(1, 40)) < policy.LEASE.total_seconds() - 8


def test_a_late_bundle_gives_all_of_it_back(scene):
    channel = limited(scene, 1)
    for topic in (1, 2, 3):
        scene.page(outbox.To(channel.id, ""), topic=topic)
    late(scene, 2)
    assert not Provider.got and Delivery.objects.filter(state="queued", tries=0, bundled_by=None).count() == 3
    outbox.cancel([2], "acknowledged", scene.now)
    scene.pass_time(63)
    assert [int(one["num"], 16) for one in Provider.got[0][1].incidents] == [1, 3]


# ---- an address that its provider renames --------------------------------------------------------------------------------------------


def moving(scene: Scene, **fields: Any) -> Channel:
    channel = scene.channel("chat", "chat", **fields)
    Channel.objects.filter(id=channel.id).update(settings={"name": "chat", "chats": ["-1", "-2"]})
    scene.plan("chat", Receipt("m1", moved="-100"), Receipt("m2"))
    return channel


def test_a_renamed_address_is_used_from_now_on_everywhere(scene):
    channel = moving(scene)
    mine = Account.objects.create(member=scene.lee, channel=channel, target="-1", verified_at=NOW)
    scene.page(outbox.To(channel.id, "-1"), topic=1)
    scene.page(outbox.To(channel.id, "-1"), topic=2)
    scene.run()
    assert [address for _n, _m, address in Provider.got] == ["-1", "-100"]
    channel.refresh_from_db()
    mine.refresh_from_db()
    assert channel.settings["chats"] == channel.targets == ["-100", "-2"] and mine.target == "-100"
    assert [row.target for row in Address.objects.all()] == ["-100"]
    assert "-100" in scene.row(topic=1).log[0][4]


def test_a_renamed_address_whose_new_name_is_known_is_merged_with_it(scene):
    channel = moving(scene)
    for target, verified in (("-1", NOW), ("-100", None)):
        Account.objects.create(member=scene.lee, channel=channel, target=target, verified_at=verified)
    scene.page(outbox.To(channel.id, "-100"), topic=1, is_page=False, event="closed")
    scene.plan("chat", Receipt("m0"))
    scene.run()
    scene.plan("chat", Receipt("m1", moved="-100"), Receipt("m2"))
    scene.page(outbox.To(channel.id, "-1"), topic=2)
    scene.page(outbox.To(channel.id, "-1"), topic=3)
    scene.run()
    assert [address for _n, _m, address in Provider.got] == ["-100", "-1", "-100"]
    assert [(row.target, row.verified_at) for row in Account.objects.all()] == [("-100", NOW)]
    assert not Address.objects.filter(next_at__isnull=False).exists()


# ---- answers -------------------------------------------------------------------------------------------------------------------------


def test_a_bounce_starts_the_fallback_and_marks_the_mailbox(scene):
    channel = with_fallback(scene)
    point = ContactPoint.objects.create(member=scene.lee, kind="email", value="lee@example.com", verified_at=NOW)
    scene.page(outbox.To(channel.id, "lee@example.com", scene.lee.id))
    scene.run()
    assert outbox.receipt(channel.id, "m1", "bounced", "no such mailbox", NOW)
    scene.run()
    assert scene.names() == ["a", "b"]
    point.refresh_from_db()
    assert point.bounced_at == NOW and scene.row(channel=channel).reason == "no such mailbox"


def test_a_bounce_after_the_acknowledgement_wakes_nobody(scene):
    channel = with_fallback(scene)
    scene.page(scene.person(channel))
    scene.run()
    outbox.cancel([1], "acknowledged", NOW)
    outbox.receipt(channel.id, "m1", "failed", "no such mailbox", NOW)
    scene.pass_time(60)
    assert scene.names() == ["a"]


def test_delivered_and_answered_are_told_apart(scene):
    channel = scene.channel("a")
    scene.page(scene.person(channel))
    scene.run()
    outbox.receipt(channel.id, "m1", "delivered", "", NOW)
    assert scene.row().state == "delivered"
    outbox.answered(scene.row().id, NOW)
    assert scene.row().state == "answered" and scene.row().delivered_at == NOW
    assert not outbox.receipt(channel.id, "nothing", "delivered", "", NOW)


def test_a_failed_message_can_be_sent_again_by_hand(scene):
    scene.page(scene.person(scene.channel("a")))
    scene.plan("a", GONE, Receipt())
    scene.run()
    assert outbox.retry(scene.row().id, scene.now)
    scene.run()
    assert scene.row().state == "sent" and not outbox.retry(scene.row().id, scene.now)


def test_a_code_is_in_the_message_and_nowhere_else_afterwards(scene):
    context = dict(events.build_code("123456"))
    secret = {"code": context.pop("code")}
    outbox.post(
        [
            outbox.Notice(
                event="code", severity="Info", context=context, secret_context=secret, to=(scene.person(scene.channel("a")),), is_page=False
            )
        ],
        NOW,
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT context::text || secret_context FROM channels_app_notification")
        assert "123456" not in cursor.fetchone()[0]
    scene.run()
    assert "123456" in Provider.got[0][1].text.replace(" ", "")
    row = scene.row()
    assert "123456" not in (row.text + row.subject + json.dumps(row.log)).replace(" ", "")
    assert Notification.objects.get().secret_context == {}


# ---- real concurrency ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def real(transactional_db: None, scene: Scene) -> Scene:
    return scene


@pytest.mark.django_db(transaction=True)
def test_two_claimers_never_take_the_same_message(real):
    channel = real.channel("a")
    for topic in range(200):
        real.page(outbox.To(channel.id, f"t{topic % 40}"), topic=topic)
    taken: list[int] = []

    def work(name: str) -> None:
        try:
            book = Book()
            book.refresh(real.now)
            turn, end = 0, time.monotonic() + 60
            while turn < 60 or (len(taken) < 200 and time.monotonic() < end):  # a turn is empty while others hold what is left
                turn += 1
                taken.extend(one.id for one in outbox.claim(name, real.now, outbox.Room(7), book))
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 200


@pytest.mark.django_db(transaction=True)
def test_an_acknowledgement_that_is_being_committed_is_not_overtaken_by_a_claim(real):
    channel = real.channel("a")
    real.page(real.person(channel))
    with transaction.atomic():
        outbox.cancel([1], "acknowledged", real.now)
        found: list[Any] = []

        def other() -> None:
            try:
                found.extend(claim(real, "drain")[1])
            finally:
                connection.close()

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(60)
        assert not thread.is_alive() and found == []
    assert claim(real, "drain")[1] == [] and real.row().state == "cancelled"


@pytest.mark.django_db(transaction=True)
def test_a_result_that_waits_for_an_acknowledgement_does_not_queue_the_page_again(real):
    channel = real.channel("a")
    real.page(real.person(channel))
    real.plan("a", BUSY)
    _book, claimed = claim(real, "drain")
    result = compose.send(claimed[0], real.now)
    with transaction.atomic():
        outbox.cancel([1], "acknowledged", real.now)

        def other() -> None:
            try:
                outbox.record("drain", [result], real.now)
            finally:
                connection.close()

        thread = threading.Thread(target=other)
        thread.start()

        def waits_for_us() -> bool:
            with connection.cursor() as cursor:
                cursor.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid)))")
                return cursor.fetchone()[0]

        assert until(waits_for_us)
    thread.join(60)
    assert not thread.is_alive()
    assert real.row().state == "cancelled"


# ---- the numbers ---------------------------------------------------------------------------------------------------------------------


def test_retries_spread_out_and_grow():
    waits = [policy.backoff(tries, 7).total_seconds() for tries in range(1, 12)]
    assert 0.8 <= waits[0] <= 1.2 and 240 <= waits[-1] <= 360
    assert len({policy.backoff(1, seed) for seed in range(50)}) > 30


def test_limits_hold_in_every_window_however_messages_come():
    rules, log, sent, now = (Limit(5, 1), Limit(20, 60)), {}, [], NOW
    for step in range(3000):
        now = NOW + timedelta(seconds=step * 0.1)
        free, until = limits.look(log, rules, now)
        assert (free == 0) == (until is not None)
        if free:
            log = limits.taken(log, rules, now, 1)
            sent.append(now)
        else:
            assert until > now
    for rule in rules:
        assert all((b - a).total_seconds() > rule.seconds for a, b in zip(sent, sent[rule.count :], strict=False))
    assert len(sent) >= 95
