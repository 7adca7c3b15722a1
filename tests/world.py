"""The stage on which stories play: people with sandbox phones, one workspace with a rule, and a clock that only the story moves.

    def test_somebody_answers(world):
        lee = world.person("Lee", ["sandbox_voice"])
        world.rule(layer(lee))
        world.alert("db down")
        world.expect(call(lee, "db down"))      # anything not expected fails the story at its end
        world.ack("db down", lee)

Alerts come in through the real ingest door, time passes through the real `run_once(now)` of intake, engine and outbox, and messages are
read where they arrive: at the sandbox (whose messages are delivery rows in a state only the outbox gives them) or at fake providers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import Min
from django.test import Client

from channels_app import outbox
from channels_app.models import Address, Channel, Delivery, Preference
from escalation import engine, explain, intake, lifecycle, rules
from escalation.models import EscalationRule, Event, Incident, Integration, Layer, LayerChannel, Run, TimelineEntry, Workspace
from mapping.models import ContactPoint, Installation, Member, Team

START = datetime(2026, 3, 2, 3, 0, 0, tzinfo=UTC)  # a Monday, three in the morning
ARRIVED = (Delivery.State.SENT, Delivery.State.DELIVERED, Delivery.State.ANSWERED)


@dataclass(frozen=True)
class Heard:
    """One message as somebody received it."""

    at: float  # seconds since the story began
    who: str  # member's name, or the group's
    kind: str
    event: str
    text: str


@dataclass(frozen=True)
class Promise:
    """What is to happen by itself. `event` is a page's, or "exhausted": nobody of the rule is left."""

    at: float  # seconds since the story began
    event: str
    who: frozenset[str]  # names of persons


@dataclass
class Say:
    """What a layer of a rule is made of (see `layer`)."""

    people: tuple[Member, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
    groups: tuple[Any, ...] = ()
    teams: tuple[Team, ...] = ()


def layer(*people: Member, groups: Sequence[Any] = (), teams: Sequence[Team] = (), **fields: Any) -> Say:
    """A layer that tells `people` (and `groups`: channels, or (channel, {LayerChannel fields})); `fields` are Layer's."""
    return Say(people, fields, tuple(groups), tuple(teams))


class World:
    def __init__(self, client: Client) -> None:
        self.now = START
        self.client = client
        self.checked: set[int] = set()
        self.promised: list[Promise] | None = None
        self.workspace = Workspace.objects.create(name="Space")
        self.integration = Integration.objects.create(workspace=self.workspace, name="Source", kind="standard")
        self.installation = Installation.get()
        Installation.objects.filter(id=1).update(last_pass_at=None)
        self.channels: dict[str, Channel] = {}
        engine.fresh()

    # ---- the stage ----

    def channel(self, kind: str, name: str = "", **fields: Any) -> Channel:
        """A channel of a kind; the nameless one of a kind is made once."""
        if not name and kind in self.channels:
            return self.channels[kind]
        made = Channel.objects.create(kind=kind, name=name or kind, **fields)
        return self.channels.setdefault(kind, made) if not name else made

    def group(self, name: str = "#ops") -> Channel:
        return self.channel("sandbox_group", name)

    def person(self, name: str, kinds: Iterable[Any] = ("sandbox_app",), *, supervisor: Member | None = None, **fields: Any) -> Member:
        """A member who wants to be told, whatever the severity, by these kinds (or (kind, delay in seconds))."""
        email = fields.pop("email", f"{name.lower()}@example.com")
        member = Member.objects.create_user(email, name, supervisor=supervisor, **fields)
        ContactPoint.objects.create(member=member, kind="email", value=email, verified_at=START)
        for position, item in enumerate(kinds):
            kind, delay = item if isinstance(item, tuple) else (item, 0)
            self.channel(kind)
            for severity in ("Critical", "Warning", "Info"):
                Preference.objects.create(member=member, severity=severity, kind=kind, position=position, delay=delay)
        return member

    def team(self, name: str, *people: Member) -> Team:
        team = Team.objects.create(name=name)
        team.members.set(people)
        return team

    def rule(self, *layers: Say, **fields: Any) -> EscalationRule:
        """A rule of the workspace, after those it has."""
        count = EscalationRule.objects.filter(workspace=self.workspace).count()
        rule = EscalationRule.objects.create(workspace=self.workspace, **({"name": f"Rule {count}", "priority": count} | fields))
        for idx, said in enumerate(layers):
            made = Layer.objects.create(rule=rule, idx=idx, **said.fields)
            made.members.set(said.people)
            made.teams.set(said.teams)
            for item in said.groups:
                channel, extra = item if isinstance(item, tuple) else (item, {})
                LayerChannel.objects.create(layer=made, channel=channel, **extra)
        rules.changed([rule.id])
        return rule

    # ---- what happens ----

    def alert(self, title: str, status: str = "Critical", *, key: str | None = None, settle: bool = True, **fields: Any) -> dict[str, Any]:
        """A source posts an event through the real door; then (settle) everything that is due at this instant is done."""
        self.promised = None
        body = {"title_rule": title, "event_status": status, "alert_key": key or title, **fields}
        answer = self.client.post(
            f"/event/push/alert/standard?integration_key={self.integration.key}", body, content_type="application/json"
        )
        assert answer.status_code == 200, answer.content
        Event.objects.filter(outcome=None, received_at__gt=self.now).update(received_at=self.now)  # the door reads the database's clock
        if settle:
            self.settle()
        return answer.json()["data"]

    def recover(self, title: str, **fields: Any) -> None:
        self.alert(title, "Ok", **fields)

    def incident(self, title: str | None = None) -> Incident:
        """The newest incident (of this title)."""
        rows = Incident.objects.filter(title=title) if title else Incident.objects.all()
        return rows.order_by("-id")[0]

    def do(self, verb: str, title: str | None = None, actor: Member | None = None, via: str = "api", **args: Any) -> Incident:
        """Somebody makes a move; then everything that is due is done."""
        self.promised = None
        incident = getattr(lifecycle, verb)(self.incident(title).id, actor=actor, via=via, now=self.now, **args)
        self.settle()
        return incident

    def ack(self, title: str | None = None, actor: Member | None = None, via: str = "api") -> Incident:
        return self.do("acknowledge", title, actor, via)

    def settle(self) -> None:
        """Everything that is due at this instant, until nothing is."""
        for _turn in range(60):
            done = intake.run_once(self.now) + engine.run_once(self.now)
            done += outbox.run_once(self.now)
            if not done:
                return
        raise AssertionError("still something due after 60 rounds: a row is not consumed")

    def pass_time(self, seconds: float = 0, minutes: float = 0, hours: float = 0) -> None:
        """Lets time pass, stopping at every instant at which something is due, as workers that are awake do."""
        end = self.now + timedelta(seconds=seconds, minutes=minutes, hours=hours)
        while True:
            at = self.next_due()
            if at is None or at > end:
                break
            self.now = max(at, self.now)
            self._was_awake()
            self.settle()
            again = self.next_due()
            if again is not None and again <= self.now:
                raise AssertionError(f"{again} is still due at {self.now}")
        self.now = end
        self._was_awake()
        self.settle()

    def sleep(self, seconds: float = 0, minutes: float = 0, hours: float = 0) -> None:
        """Our own outage: time passes and nobody looks. What is due is done by the next `settle`."""
        self.now += timedelta(seconds=seconds, minutes=minutes, hours=hours)

    def _was_awake(self) -> None:
        Installation.objects.filter(id=1).update(last_pass_at=self.now)

    def next_due(self) -> datetime | None:
        """The earliest instant at which a row is due."""
        instants = [
            Run.objects.filter(ended_at=None).aggregate(at=Min("next_at"))["at"],
            Incident.objects.aggregate(at=Min("wake_at"))["at"],
            Incident.objects.aggregate(at=Min("auto_resolve_at"))["at"],
            Address.objects.aggregate(at=Min("next_at"))["at"],
            Delivery.objects.aggregate(at=Min("fallback_at"))["at"],
        ]
        return min((at for at in instants if at is not None), default=None)

    # ---- what arrives ----

    def fresh(self) -> list[Heard]:
        """Every message that arrived at the sandbox since the last look, oldest first."""
        rows = Delivery.objects.filter(state__in=ARRIVED, channel__kind__startswith="sandbox").exclude(id__in=self.checked)
        found = list(rows.select_related("member", "channel", "notification").order_by("sent_at", "id"))
        self.checked |= {row.id for row in found}
        return [
            Heard(
                at=(row.sent_at - START).total_seconds() if row.sent_at else -1,
                who=row.member.name if row.member else row.channel.name,
                kind=row.channel.kind.removeprefix("sandbox_"),
                event=row.notification.event,
                text=f"{row.subject}\n{row.text}",
            )
            for row in found
        ]

    def expect(self, *wanted: tuple[str, str, str], at: float | None = None) -> list[Heard]:
        """Since the last look exactly these arrived, in any order: (who, kind, event); `at`: all of them at that second of the story."""
        new = self.fresh()
        got = sorted((item.who, item.kind, item.event) for item in new)
        assert got == sorted(wanted), f"\narrived:  {got}\nexpected: {sorted(wanted)}"
        if at is not None:
            assert {item.at for item in new} <= {at}, f"arrived at {[item.at for item in new]}, expected {at}"
        self._as_promised(new)
        return new

    # ---- what is foretold ----

    def foretell(self) -> list[tuple[float, str, set[str]]]:
        """What `explain` says now about the story's one incident: (second of the story, event, who).

        Every `expect` compares it with who was really paged, until the next move or alert (which make it another story). It knows of
        persons only, and of their own delays only where the page is made already: of pages to come, who is told all at once."""
        ahead = explain.ahead(self.incident(), self.now)
        self.promised = [Promise((item.at - START).total_seconds(), item.event or item.what, frozenset(item.who)) for item in ahead]
        return [(item.at, item.event, set(item.who)) for item in self.promised]

    def _as_promised(self, new: Sequence[Heard]) -> None:
        if self.promised is None:
            return
        now = (self.now - START).total_seconds()
        due = [item for item in self.promised if item.at <= now]
        self.promised = [item for item in self.promised if item.at > now]
        came: dict[tuple[float, str], set[str]] = {}
        for item in new:
            if item.kind != "group":
                came.setdefault((item.at, item.event), set()).add(item.who)
        end = next((item for item in due if item.event == "exhausted"), None)
        if end is not None:
            when = START + timedelta(seconds=end.at)
            told = TimelineEntry.objects.filter(type="i_layer", created_at=when, detail__result__in=("catch_all", "nobody"))
            assert told.exists(), f"the rule was to end at {end.at}, and the catch-all was not asked"
            if not any(item.event != "exhausted" and item.at >= end.at for item in due + self.promised):
                came = {key: who for key, who in came.items() if key[0] < end.at}  # whom the catch-all names, nobody foretold
                self.promised = None
        said: dict[tuple[float, str], set[str]] = {}
        for item in due:
            if item.event != "exhausted" and item.who:
                said.setdefault((item.at, item.event), set()).update(item.who)
        assert came == said, f"\ncame:     {came}\nforetold: {said}"

    def silence(self) -> None:
        self.expect()


class Stranger:
    """Another session that holds the lock of an incident for as long as the block lasts."""

    def __init__(self, table: str, pk: int) -> None:
        self.what = f"SELECT FROM {table} WHERE id = {pk} FOR UPDATE"

    def __enter__(self) -> None:
        self.session = connection.copy()
        self.session.set_autocommit(False)
        with self.session.cursor() as cursor:
            cursor.execute(self.what)

    def __exit__(self, *_error: object) -> None:
        self.session.rollback()  # which the server answers: after a mere close it may hold the lock for a while yet
        self.session.close()
