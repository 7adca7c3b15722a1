"""What happened to an incident, who was told how and when with what result, who was not and why, and what will happen next.

The past is read from rows: the timeline, notifications and their deliveries. The future is `plan.future` over the frozen rule, so it
cannot differ from what the engine will do. `manage.py explain` prints it, the incident page shows it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop, ngettext, pgettext

from channels_app import addresses, policy
from channels_app.models import Channel, ChannelHealth, Delivery, Notification
from channels_app.outbox.recording import KEEPS_FAILING
from escalation import match, plan, rules, targets
from escalation.ids import hex_id
from escalation.models import Event, Incident, Run, TimelineEntry
from escalation.targets import in_words
from mapping.models import Member
from mapping.models.contact_point import mask
from mapping.visibility import Role


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened."""

    at: datetime
    text: str
    kind: str = ""  # the timeline's type, or "page", "notice"


@dataclass(frozen=True, slots=True)
class Told:
    """One message: to whom, by what, and what became of it."""

    at: datetime
    event: str
    layer_idx: int | None
    who: str
    channel: str
    address: str
    state: str
    reason: str
    attempts: int
    delivery_id: int
    sent_at: datetime | None
    message_id: str
    is_page: bool
    bundled_by: int | None
    is_call: bool = False

    @property
    def state_words(self) -> str:
        return str(Delivery.State(self.state).label)

    @property
    def event_words(self) -> str:
        return str(EVENT_WORDS.get(self.event, EVENT_WORDS["told"])())


@dataclass(frozen=True, slots=True)
class NotTold:
    """Somebody who was meant and was not reached by one way, and why."""

    at: datetime
    who: str
    how: str
    reason: str


@dataclass(frozen=True, slots=True)
class Next:
    """Something that will happen unless somebody reacts."""

    at: datetime
    text: str
    layer_idx: int | None
    what: str  # page | exhausted | waiting: a message that is made already, and leaves then
    event: str
    who: tuple[str, ...] = ()


@dataclass(slots=True)
class Story:
    incident: Incident
    now: datetime
    rule: str = ""
    edited_since: bool = False
    happened: list[Line] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    not_told: list[NotTold] = field(default_factory=list)
    ahead: list[Next] = field(default_factory=list)
    nothing_ahead: str = ""  # why nothing will happen by itself

    @property
    def has_unanswered_call(self) -> bool:
        """Whether a call ended without an answer, for which there may be reasons at the phone."""
        ended = (Delivery.State.FAILED, Delivery.State.UNKNOWN)
        return any(told.is_call and told.sent_at is not None and told.state in ended for told in self.told)


def explain(incident: Incident, now: datetime, viewer: Member | None = None) -> Story:
    """The whole story of `incident` at `now`, with addresses as `viewer` may see them (None: masked)."""
    story = Story(incident, now)
    entries = list(TimelineEntry.objects.filter(incident=incident).select_related("actor").order_by("id"))
    deliveries = list(_deliveries(incident)[:2000])
    names = names_in(entries)
    full = _sees_in_full(viewer, {delivery.member_id for delivery in deliveries if delivery.member_id})
    for entry in entries:
        story.happened.append(Line(entry.created_at, sentence(entry, names), entry.type))
        if entry.type == "i_layer":
            story.not_told += [
                NotTold(
                    entry.created_at,
                    names.get(("member", item["person_id"]), _("a group"))
                    if item.get("person_id")
                    else names.get(("channel", item.get("channel_id")), ""),
                    item.get("kind") or "",
                    in_words(item["reason"]),
                )
                for item in entry.detail.get("missing", ())
            ]
    for delivery in deliveries:
        story.told.append(_told(delivery, full))
        if delivery.state in (Delivery.State.FAILED, Delivery.State.CANCELLED):
            story.not_told.append(
                NotTold(delivery.ended_at or delivery.created_at, _who(delivery), _channel(delivery), in_words(delivery.reason))
            )
        elif _is_late(delivery, now):
            story.not_told.append(NotTold(delivery.deadline_at, _who(delivery), _channel(delivery), _not_yet(delivery)))
    story.happened += _pages(deliveries)
    story.happened.sort(key=lambda line: line.at)
    _ahead(story, now, deliveries)
    return story


def _deliveries(incident: Incident) -> QuerySet[Delivery]:
    rows = Delivery.objects.filter(topic=incident.id).select_related("notification", "channel__health", "address", "member")
    return rows.defer(*Delivery.SEALED).order_by("id")


def explain_event(event: Event) -> str:
    """What became of one accepted event, in a sentence."""
    if event.outcome is None:
        return _("The event is accepted and waits to be processed.")
    sentences = {
        Event.Outcome.CREATED: _("It opened a new alert."),
        Event.Outcome.MERGED: _("It was merged into the open alert of its key."),
        Event.Outcome.DUPLICATE: _("It is identical to the alert's last event, so it was only counted."),
        Event.Outcome.RECOVERED: _("It recovered its alert."),
        Event.Outcome.NOTHING: _("It says Ok, and there was no open alert of its key: nothing to recover."),
        Event.Outcome.DROPPED: _("It was not taken."),
        Event.Outcome.FAILED: _("It could not be processed."),
    }
    return " ".join(filter(None, [str(sentences[Event.Outcome(event.outcome)]), in_words(event.outcome_detail)]))


# ---- the past ------------------------------------------------------------------------------------------------------------------------


def names_in(entries: Sequence[TimelineEntry]) -> dict[tuple[str, Any], str]:
    """Names of the members and channels that details speak of by id, in two queries."""
    members: set[int] = set()
    channels: set[int] = set()
    for entry in entries:
        members |= {int(pk) for pk in entry.detail.get("person_ids", ()) or ()}
        for item in entry.detail.get("missing", ()) or ():
            members |= {item["person_id"]} if item.get("person_id") else set()
            channels |= {item["channel_id"]} if item.get("channel_id") else set()
    found: dict[tuple[str, Any], str] = {
        ("member", pk): name for pk, name in Member.objects.filter(id__in=members).values_list("id", "name")
    }
    found |= {("channel", pk): name for pk, name in Channel.objects.filter(id__in=channels).values_list("id", "name")}
    return found


def _sees_in_full(viewer: Member | None, member_ids: set[int]) -> set[int]:
    """Whose addresses the viewer sees whole: their own, those of the teams they manage, or everybody's for an administrator."""
    if viewer is None:
        return set()
    if viewer.is_administrator:
        return member_ids
    mine = {viewer.id} & member_ids
    if viewer.role == Role.MANAGER:
        mine |= set(Member.objects.filter(id__in=member_ids, teams__in=viewer.team_ids()).values_list("id", flat=True))
    return mine


def _who(delivery: Delivery) -> str:
    if delivery.member is not None:
        return delivery.member.name
    return mask(delivery.address.target) if delivery.address.target else delivery.channel.name


def _channel(delivery: Delivery) -> str:
    """By what; "" where the channel is a group and so has been named as who."""
    return delivery.channel.name if delivery.member is not None or delivery.address.target else ""


def reason_of(delivery: Delivery) -> str:
    """A delivery's reason in words: of one that waits for a channel that keeps failing, with how it fails, since not everybody may open the
    channel's page. Select `channel__health` with it."""
    error = _failing_with(delivery) if delivery.reason == KEEPS_FAILING else ""
    return (
        _("its channel keeps failing (%(error)s); it leaves as soon as the channel works again") % {"error": error}
        if error
        else in_words(delivery.reason)
    )


def _failing_with(delivery: Delivery) -> str:
    """What the last failure of its channel was; "" where the channel works."""
    health: ChannelHealth | None = getattr(delivery.channel, "health", None)
    return in_words(health.last_error) if health is not None and health.failures else ""


def _is_late(delivery: Delivery, now: datetime) -> bool:
    """Whether a page that should have left by `now` is still on its way."""
    under_way = delivery.state in (Delivery.State.QUEUED, Delivery.State.SENDING)
    return under_way and delivery.is_page and not delivery.withdrawn and delivery.deadline_at < now


def _not_yet(delivery: Delivery) -> str:
    reason = reason_of(delivery) or _failing_with(delivery)
    return _("not told yet: %(reason)s") % {"reason": reason} if reason else _("not told yet")


def _told(delivery: Delivery, full: set[int]) -> Told:
    target = delivery.address.target
    notification: Notification = delivery.notification
    return Told(
        at=delivery.created_at,
        event=notification.event,
        layer_idx=notification.layer_idx,
        who=_who(delivery),
        channel=_channel(delivery),
        address=target if delivery.member_id in full or not target or target.startswith("member:") else mask(target),
        state=delivery.state,
        reason=reason_of(delivery),
        attempts=delivery.attempts,
        delivery_id=delivery.id,
        sent_at=delivery.sent_at,
        message_id=delivery.message_id,
        is_page=delivery.is_page,
        bundled_by=delivery.bundled_by_id,
        is_call=addresses.family(delivery.channel.kind) == "voice",
    )


# Why a message waits whose time has come.
FOR_THE_PROVIDER = frozenset({KEEPS_FAILING, policy.MONTH_USED_UP, policy.TAKES_NO_MORE})

EVENT_WORDS = {
    "triggered": lambda: _("Paged"),
    "escalated": lambda: _("Escalated to"),
    "refire": lambda: _("Paged again"),
    "acknowledged": lambda: _("Told that it was acknowledged"),
    "closed": lambda: _("Told that it was closed"),
    "told": lambda: _("Told"),
}


# Who acted by the link of a group: stored in English, worded when it is shown. The second where no group's name is known.
SOMEBODY_IN = gettext_noop("somebody in %(group)s")
A_GROUP = gettext_noop("a group")

# By what way somebody acted.
VIA = {
    "console": gettext_noop("console"),
    "link": gettext_noop("link"),
    "group": gettext_noop("group chat"),
    "voice": gettext_noop("phone call"),
    "card": gettext_noop("button of a message"),
    "api": gettext_noop("API"),
}


def _pages(deliveries: Sequence[Delivery]) -> list[Line]:
    """One line for each occasion: everybody who was told, and how far it got."""
    occasions: dict[int, list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        occasions[delivery.notification_id].append(delivery)
    lines = []
    for group in occasions.values():
        notification = group[0].notification
        word = EVENT_WORDS.get(notification.event, EVENT_WORDS["told"])()
        told = pgettext("between steps", "; ").join(
            (_("%(who)s by %(channel)s: %(state)s%(reason)s") if _channel(delivery) else _("%(who)s: %(state)s%(reason)s"))
            % {
                "who": _who(delivery),
                "channel": _channel(delivery),
                "state": delivery.get_state_display(),
                "reason": f" ({reason_of(delivery)})" if delivery.reason else "",
            }
            for delivery in group[:50]
        )
        layer = (
            _(" (layer %(idx)d)") % {"idx": notification.layer_idx + 1}
            if notification.layer_idx is not None and notification.is_page
            else ""
        )
        lines.append(
            Line(
                notification.created_at,
                _("%(occasion)s: %(told)s") % {"occasion": word + layer, "told": told},
                "page" if notification.is_page else "notice",
            )
        )
    return lines


def sentence(entry: TimelineEntry, names: Mapping[tuple[str, Any], str] | None = None) -> str:
    """A timeline entry as a sentence, in the language that is active."""
    detail: dict[str, Any] = entry.detail
    names = names or {}
    who = entry.actor.name if entry.actor is not None else _nameless(str(detail.get("as") or "")) or _("The system")
    people = pgettext("between channels", ", ").join(names.get(("member", pk), f"#{pk}") for pk in detail.get("person_ids", ()) or ())
    says = {
        "i_new": lambda: (
            _("Incident opened: %(severity)s, %(title)s")
            % {"severity": in_words(detail.get("severity", "")), "title": detail.get("title", "")}
        ),
        "i_assign": lambda: _assigned(detail, people, who),
        "i_a_rspd": lambda: _("%(who)s added responders: %(people)s") % {"who": who, "people": people},
        "i_ack": lambda: _("%(who)s acknowledged (%(via)s)") % {"who": who, "via": _(VIA.get(entry.via, entry.via))},
        "i_unack": lambda: _("%(who)s took the acknowledgement back") % {"who": who},
        "i_snooze": lambda: (
            ngettext("%(who)s snoozed it for %(minutes)s minute", "%(who)s snoozed it for %(minutes)s minutes", detail.get("minutes") or 0)
            % {"who": who, "minutes": detail.get("minutes", "?")}
        ),
        "i_wake": lambda: _("Its snooze is over") if entry.actor is None else _("%(who)s ended the snooze") % {"who": who},
        "i_escalate": lambda: _("%(who)s escalated it to layer %(idx)s") % {"who": who, "idx": nth(detail.get("layer_idx"))},
        "i_rslv": lambda: {
            "event": _("Closed: every alert has recovered"),
            "timeout": _("Closed: the time to resolve by itself has come"),
        }.get(str(detail.get("from", "")), _("%(who)s closed it (%(via)s)") % {"who": who, "via": _(VIA.get(entry.via, entry.via))}),
        "i_reopen": lambda: _("%(who)s reopened it: %(reason)s") % {"who": who, "reason": detail.get("reason", "")},
        "i_comm": lambda: _("%(who)s: %(comment)s") % {"who": who, "comment": detail.get("comment", "")},
        "i_r_severity": lambda: (
            _("Severity: %(from)s, now %(to)s") % {"from": in_words(detail.get("from", "")), "to": in_words(detail.get("to", ""))}
        ),
        "i_outage": lambda: (
            _("What was due at %(from)s was done only at %(to)s (UTC), after an outage or a delay of the platform; the rest moves with it")
            % {"from": _clock(detail.get("from")), "to": _clock(detail.get("to"))}
        ),
        "i_clock": lambda: _("The database's clock went back; timers were moved along"),
        "i_layer": lambda: _layer(detail, people),
        "i_failed": lambda: str(detail.get("text", "")),
    }
    if entry.type in says:
        return str(says[entry.type]())
    field_names = {
        "i_r_title": _("Title"),
        "i_r_desc": _("Description"),
        "i_r_impact": _("Impact"),
        "i_r_rc": _("Root cause"),
        "i_r_rsltn": _("Resolution"),
    }
    if entry.type in field_names:
        return _("%(who)s changed: %(field)s") % {"who": who, "field": field_names[entry.type]}
    return entry.type


def _nameless(said: str) -> str:
    """Who acted without an account, in words: stored in English, as all reasons are. Older rows may have it in another language."""
    before, after = SOMEBODY_IN.split("%(group)s")
    if not (said.startswith(before) and said.endswith(after)):
        return said
    group = said.removeprefix(before).removesuffix(after)
    return _(SOMEBODY_IN) % {"group": _(group) if group == A_GROUP else group}


def nth(layer_idx: object) -> int | str:
    """A layer as people count: rows and the wire begin at 0, texts at 1."""
    return layer_idx + 1 if isinstance(layer_idx, int) else "?"


def _assigned(detail: Mapping[str, Any], people: str, who: str) -> str:
    if detail.get("escalate_rule_name"):
        text = _("Rule “%(rule)s”, layer %(idx)s: %(people)s") % {
            "rule": detail["escalate_rule_name"],
            "idx": nth(detail.get("layer_idx", 0)),
            "people": people or pgettext("people of a layer", "groups and addresses only"),
        }
        reasons = {
            "escalated": _("nobody answered in time"),
            "unreachable": _("the layer before could reach nobody"),
            "wake": _("the snooze is over"),
            "unacknowledged": _("the acknowledgement was taken back"),
            "manual": _("escalated by hand"),
            "reopen": _("reopened"),
        }
        return f"{text} ({reasons[str(detail['why'])]})" if detail.get("why") in reasons else text
    return _("%(who)s assigned it to %(people)s") % {"who": who, "people": people}


def _layer(detail: Mapping[str, Any], people: str) -> str:
    result, idx = detail.get("result"), nth(detail.get("layer_idx"))
    reason = in_words(str(detail.get("reason", "")))
    if result == "unreachable" and detail.get("layer_idx") is None and people:
        return _("Added, but could not be reached: %(people)s (%(reason)s)") % {"people": people, "reason": reason}
    if result in ("unreachable", "partly") and detail.get("layer_idx") is None:
        return _("Some of those who were added could not be reached: %(reason)s") % {"reason": reason}
    if result == "unreachable":
        return _("Layer %(idx)s could reach nobody: %(reason)s") % {"idx": idx, "reason": reason}
    if result == "failed":
        return _("Layer %(idx)s reached nobody: %(reason)s") % {"idx": idx, "reason": reason}
    if result == "catch_all":
        return _("The catch-all is told: %(reason)s") % {"reason": reason}
    if result == "nobody":
        return _("Nobody could be told: %(reason)s; %(text)s") % {"reason": reason, "text": in_words(str(detail.get("text", "")))}
    if result == "partly":
        return _("Some of layer %(idx)s could not be reached by every way they chose") % {"idx": idx}
    return _("The catch-all was told")


def _clock(seconds: Any) -> str:
    return datetime.fromtimestamp(int(seconds)).strftime("%H:%M:%S") if seconds else "?"


# ---- the future ----------------------------------------------------------------------------------------------------------------------

# Moves after which an incident whose run has ended is paged about again, as soon as the engine has seen them.
OPENS_AGAIN = frozenset({"i_assign", "i_escalate", "i_r_severity", "i_reopen", "i_unack", "i_wake"})


def ahead(incident: Incident, now: datetime) -> list[Next]:
    """What will happen to `incident` by itself from `now` on, oldest first."""
    story = Story(incident, now)
    _ahead(story, now, _deliveries(incident).filter(state=Delivery.State.QUEUED, not_before__gt=now)[:2000])
    return story.ahead


def _ahead(story: Story, now: datetime, deliveries: Iterable[Delivery]) -> None:
    """What the rule will do, and between it the messages that are made already and leave later, as their people wished."""
    _planned(story, now)
    story.ahead = sorted([*story.ahead, *_waiting(deliveries, now)], key=lambda item: item.at)


def _waiting(deliveries: Iterable[Delivery], now: datetime) -> list[Next]:
    """Of `deliveries` the pages that wait for their time: a delay of the person's own, or the end of quiet hours. One line for each instant and
    way. What waits for a provider is none of them: when it leaves nobody knows."""
    lines: dict[tuple[datetime, int, str, str], list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        if (
            (delivery.state, delivery.attempts, delivery.withdrawn) == (Delivery.State.QUEUED, 0, False)
            and delivery.is_page
            and delivery.not_before > now
            and delivery.reason not in FOR_THE_PROVIDER
        ):
            lines[delivery.not_before, delivery.channel_id, delivery.notification.event, delivery.reason].append(delivery)
    found = []
    for (at, _channel_id, event, reason), group in lines.items():
        who = pgettext("between channels", ", ").join(dict.fromkeys(_who(delivery) for delivery in group[:50]))
        text = _("%(who)s by %(channel)s") % {"who": who, "channel": _channel(group[0])} if _channel(group[0]) else who
        if reason:
            text = _("%(who)s (%(why)s)") % {"who": text, "why": in_words(reason)}
        names = tuple(delivery.member.name for delivery in group if delivery.member is not None)
        found.append(Next(at, text, group[0].notification.layer_idx, "waiting", event, names))
    return found


def _planned(story: Story, now: datetime) -> None:
    incident = story.incident
    run = Run.objects.filter(incident=incident).select_related("snapshot__rule").order_by("-id").first()
    pending = set(TimelineEntry.objects.filter(incident=incident, handled_at=None).values_list("type", flat=True))
    facts = plan.Facts(
        incident.progress, incident.snoozed_until if incident.progress == Incident.Progress.PROCESSING else None, incident.status == "Ok"
    )
    if run is None:
        story.nothing_ahead = _("the engine is about to choose a rule") if pending else _("no rule was ever at work on it")
        follows, state = None, None
        if pending and incident.progress == Incident.Progress.TRIGGERED:
            follows = rules.Matcher([incident.workspace_id], now).find(incident, _subject(incident))
            state = plan.begin(follows.timing, incident.created_at) if follows else None
        if follows is None or state is None:
            return
    else:
        follows = rules.thaw(run.snapshot)
        rule = run.snapshot.rule
        story.rule = run.snapshot.body["name"]
        story.edited_since = rule is not None and rule.version != run.snapshot.version
        if run.ended_at is not None and not (incident.progress == Incident.Progress.PROCESSING and incident.snoozed_until):
            if pending & OPENS_AGAIN and incident.progress == Incident.Progress.TRIGGERED:
                story.nothing_ahead = _("the engine is about to take it up again")
            else:
                story.nothing_ahead = _("the escalation has ended: %(reason)s") % {"reason": in_words(run.end_reason)}
            return
        state = plan.State.from_json(run.state, run.next_at)
        if run.ended_at is not None and incident.snoozed_until is not None:
            # The run stopped when it was acknowledged; the end of the snooze takes it up again.
            state = plan.restart_layer(follows.timing, state, incident.snoozed_until, "wake")
            facts = plan.Facts(Incident.Progress.TRIGGERED, recovered=facts.recovered)
    told: Sequence[int] = targets.Told.of(run.state.get("told") if run is not None else None).until(max(state.layer, 0))
    audiences: dict[tuple[int, plan.Fire], targets.Audience] = {}
    layers = follows.body["layers"]
    empty = set()
    for idx, layer in enumerate(layers):
        if idx < max(state.layer, 0):
            continue
        # Loops are for the same ones, unless a group chose what it wants to hear.
        choosy = layer["max_times"] and any(use["events"] for use in layer["channels"])
        fires: tuple[plan.Fire, ...] = ("fire", "refire") if choosy else ("fire",)
        for fire in fires:
            chosen = plan.Page(idx, fire, 0, "first").chosen
            audiences[idx, fire] = targets.resolve(layer, severity=incident.severity, events=chosen, told=told, now=now)
        audiences.setdefault((idx, "refire"), audiences[idx, "fire"])
        if not audiences[idx, "fire"].to:
            empty.add(idx)
        else:
            told = audiences[idx, "fire"].members or told
    people = {row.pk: row for row in Member.objects.filter(id__in={pk for audience in audiences.values() for pk in audience.members})}
    loud = _loud(audiences.values()) if any(person.quiet for person in people.values()) else set()
    for planned in plan.future(follows.timing, state, facts, now, unreachable_layers=empty):
        page = planned.page
        if page is None:
            kind = run.kind if run is not None else Run.Kind.RULE
            if kind == Run.Kind.ASSIGN and planned.what == "exhausted":
                continue  # assigned directly: nobody comes after them, if only they could be told
            if kind == Run.Kind.CATCH_ALL:
                text = _("Nobody is left to be told")
            elif planned.what == "unreachable":
                text = _("Nobody can be reached: the catch-all is told")
            else:
                text = _("Nobody has answered: the catch-all is told")
            story.ahead.append(Next(planned.at, text, planned.layer, "exhausted", ""))
            continue
        audience = audiences[page.layer, page.fire]
        if not audience.to:
            continue  # groups that want no loops
        who = tuple(people[pk].name if pk in people else f"#{pk}" for pk in audience.members)
        named = who
        if layers[page.layer]["follow_preference"]:
            named = tuple(
                _asleep(people.get(pk), name, pk in loud, incident.severity, planned.at)
                for pk, name in zip(audience.members, who, strict=True)
            )
        reached, why = {to.member_id for to in audience.to}, dict[int | None, str]()
        for item in audience.missing:
            why.setdefault(item.member, item.reason)
        named = tuple(
            name
            if pk in reached or pk not in why
            else _("%(name)s (cannot be reached: %(why)s)") % {"name": name, "why": in_words(why[pk])}
            for pk, name in zip(audience.members, named, strict=True)
        )
        groups = len({to.channel_id for to in audience.to if to.member_id is None})
        text = _("Layer %(idx)d, %(word)s: %(who)s") % {
            "idx": page.layer + 1,
            "word": {"refire": _("again"), "escalated": _("escalated")}.get(page.event, _("first page")),
            "who": pgettext("between channels", ", ").join((*named, *([_groups(groups)] if groups else []))),
        }
        told_then = tuple(name for pk, name in zip(audience.members, who, strict=True) if pk in reached)
        story.ahead.append(Next(planned.at, text, page.layer, "page", page.event, told_then))
    if not story.ahead and not story.nothing_ahead:
        story.nothing_ahead = _("the escalation is over")


def _loud(audiences: Iterable[targets.Audience]) -> set[int]:
    """Who is told by anything that could wake them."""
    told = [to for audience in audiences for to in audience.to if to.member_id is not None]
    kinds = dict(Channel.objects.filter(id__in={to.channel_id for to in told}).values_list("id", "kind"))
    return {to.member_id for to in told if to.member_id is not None and not addresses.is_silent(kinds.get(to.channel_id, ""))}


def _asleep(person: Member | None, name: str, loud: bool, severity: str, at: datetime) -> str:
    """The person's name, and until when they will not be woken where that is so at the instant of a page."""
    if person is None or not loud or person.quiet is None or person.quiet.until(severity, at) is None:
        return name
    return _("%(who)s (%(why)s)") % {"who": name, "why": in_words(addresses.quiet_words(person.quiet))}


def _groups(count: int) -> str:
    return ngettext("%(count)d group or address", "%(count)d groups or addresses", count) % {"count": count}


def _subject(incident: Incident) -> match.Subject:
    source = incident.alerts.order_by("id").values_list("integration_id", flat=True).first()
    return match.Subject(
        title=incident.title,
        description=incident.description,
        severity=incident.severity,
        data_source_id=str(source or ""),
        labels=incident.labels,
    )


def as_text(story: Story) -> str:
    """The story as `manage.py explain` prints it."""
    incident = story.incident

    def at(moment: datetime | None) -> str:
        return moment.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] if moment else "-"

    # How bad it was at its worst, how bad it is now if that is another thing, and how far people are.
    standing = [incident.get_severity_display(), incident.get_progress_display()]
    if incident.status != incident.severity:
        standing.insert(1, _("Recovered") if incident.status == "Ok" else _("now %(severity)s") % {"severity": in_words(incident.status)})
    lines = [
        f"#{incident.num}  {incident.title}",
        f"{' · '.join(standing)}   id {hex_id(incident.created_at, incident.id)}   {incident.workspace.name}",
        f"{_('Rule')}: {story.rule or '-'}"
        + (f"  ({_('edited since: this incident follows the version it began with')})" if story.edited_since else ""),
        "",
        _("What happened (UTC)"),
        *(f"  {at(line.at)}  {line.text}" for line in story.happened),
        "",
        _("Who was told"),
        *(
            f"  {at(told.sent_at or told.at)}  {' '.join(filter(None, [told.who, told.channel and f'· {told.channel}', told.address]))}"
            + f" · {told.event_words}"
            + (f" L{told.layer_idx + 1}" if told.layer_idx is not None else "")
            + f" · {told.state_words}"
            + (f" ({told.reason})" if told.reason else "")
            + (f" · {_('attempts')}: {told.attempts}" if told.attempts != 1 else "")
            for told in story.told
        ),
        "",
        _("Who was not, and why"),
        *(f"  {at(item.at)}  {' '.join(filter(None, [item.who, item.how]))}: {item.reason}" for item in story.not_told),
        "",
        _("What will happen next"),
        *(f"  {at(item.at)}  {item.text}" for item in story.ahead),
    ]
    if story.nothing_ahead:
        lines.append("  " + story.nothing_ahead)
    return "\n".join(lines)
