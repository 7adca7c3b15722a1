"""What texts may say about an incident, frozen on a notification: read for a whole batch at once.

A mail is the detailed report: it also says what happened so far, who was told, and what comes next. That costs two queries a batch and twice
the words (whose language the reader has is not known yet), so it is read only for pages that go out by e-mail, or would if what they go out by
fails, and for the first page of an incident, about which nothing has happened, only the plan is made."""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from django.conf import settings
from django.utils.translation import override

from channels_app import addresses, outbox, transport
from channels_app.models import Channel
from channels_app.outbox.statements import planned_once
from escalation import plan
from escalation.explain import names_in, sentence
from escalation.ids import hex_id
from escalation.models import Alert, Incident, Responder, TimelineEntry
from escalation.rows import read
from escalation.rules import Frozen
from mapping.models import Member
from mapping.models.contact_point import mask
from templates_app import events

MOST_LINES = 12  # of the timeline, and of who was told
MOST_AHEAD = 6

_TOLD = """SELECT d.topic, d.created_at, d.state, m.name, a.target, c.name
FROM unnest(%s::bigint[]) AS i (id)
CROSS JOIN LATERAL (SELECT * FROM channels_app_delivery WHERE topic = i.id ORDER BY id DESC LIMIT 30) d
JOIN channels_app_channel c ON c.id = d.channel_id JOIN channels_app_address a ON a.id = d.address_id
LEFT JOIN mapping_member m ON m.id = d.member_id ORDER BY d.id DESC"""

# By channel: whether it sends e-mail, and whether e-mail may stand in for it to a person. What stands in can be changed, so it is asked again.
_mail: dict[int, tuple[bool, bool]] = {}
_ASKED_AGAIN = 5.0  # s, of our own monotonic clock
_asked = {"at": float("-inf")}


class Contexts:
    """What texts may say about the incidents of a batch, read in two queries for all that are looked up together."""

    def __init__(self) -> None:
        self.alerts: dict[int, list[Alert]] = {}
        self.responders: dict[int, list[Responder]] = {}
        self.timelines: dict[int, list[events.Happened]] = {}
        self.told: dict[int, list[events.Told]] = {}

    def look(self, incident_ids: Iterable[int]) -> None:
        """Reads what is not known yet of these incidents."""
        ids = sorted(set(incident_ids) - self.alerts.keys())
        if not ids:
            return
        self.alerts |= {pk: [] for pk in ids}
        self.responders |= {pk: [] for pk in ids}
        # The first twenty of each; an incident with thousands must not be read whole.
        first = """FROM unnest(%s::bigint[]) AS i (id) CROSS JOIN LATERAL
            (SELECT * FROM escalation_alert WHERE incident_id = i.id ORDER BY id LIMIT %s) AS t ORDER BY t.id"""
        for alert in read(Alert, first, [ids, events.MAX_ALERTS]):
            self.alerts[alert.incident_id or 0].append(alert)
        rows = read(Responder, "FROM escalation_responder t WHERE t.incident_id = ANY(%s) ORDER BY t.id LIMIT 5000", [ids])
        people = Member.objects.in_bulk({row.member_id for row in rows}) if rows else {}
        for row in rows:
            row.member = people[row.member_id]
            self.responders[row.incident_id].append(row)

    def mails(self, to: Sequence[outbox.To]) -> bool:
        """Whether any of these is told by e-mail, at once or if what tells them fails."""
        if {one.channel_id for one in to} - _mail.keys() or time.monotonic() > _asked["at"] + _ASKED_AGAIN:
            _mail.clear()
            _mail.update(_mailing())
            _asked["at"] = time.monotonic()
        return any(
            is_mail or (later and one.member_id is not None) for one in to for is_mail, later in [_mail.get(one.channel_id, (False, False))]
        )

    def recall(self, incident_ids: Iterable[int]) -> None:
        """Reads what happened to these incidents and who was told of them, for the pages of this batch that are mails."""
        ids = sorted(set(incident_ids) - self.timelines.keys())
        if not ids:
            return
        self.timelines |= {pk: [] for pk in ids}
        self.told |= {pk: [] for pk in ids}
        last = """FROM unnest(%s::bigint[]) AS i (id) CROSS JOIN LATERAL
            (SELECT * FROM escalation_timelineentry WHERE incident_id = i.id ORDER BY id DESC LIMIT %s) AS t ORDER BY t.id"""
        entries = read(TimelineEntry, last, [ids, MOST_LINES])
        actors = Member.objects.in_bulk({entry.actor_id for entry in entries if entry.actor_id is not None})
        for entry in entries:
            entry.actor = actors.get(entry.actor_id) if entry.actor_id is not None else None
        names = names_in(entries)
        said: dict[str, list[str]] = {}
        for language in events.LANGUAGES:
            with override(language):
                said[language] = [sentence(entry, names) for entry in entries]
        for number, entry in enumerate(entries):
            texts = {language: said[language][number] for language in events.LANGUAGES}
            self.timelines[entry.incident_id].append({"at": int(entry.created_at.timestamp()), "texts": texts})
        with planned_once() as cursor:
            cursor.execute(_TOLD, [ids])
            for topic, at, state, member, target, channel in cursor.fetchall():
                who, by = (member or mask(target), channel) if member or target else (channel, "")
                lines = self.told[topic]
                # The last that each was told by each way; it came first.
                if len(lines) < MOST_LINES and not any((line["name"], line["by"]) == (who, by) for line in lines):
                    lines.append({"at": int(at.timestamp()), "name": who, "by": by, "state": state})

    def source(self, incident_id: int) -> str:
        """The integration of the incident's first alert; "" for one that was opened by hand."""
        alerts = self.alerts[incident_id]
        return str(alerts[0].integration_id) if alerts else ""

    def build(self, incident: Incident, follows: Frozen, event: str, layer: int, coming: Sequence[events.Planned] = ()) -> dict[str, Any]:
        """The Context of one incident, which follows this rule, as `templates_app.events` bounds it; `coming`: see `ahead`."""
        alerts = self.alerts.get(incident.id, [])
        wire = hex_id(incident.created_at, incident.id)
        return dict(
            events.build(
                event,
                id=wire,
                num=incident.num,
                title=incident.title,
                description=incident.description,
                severity=incident.severity,
                status=incident.status,
                progress=incident.progress,
                detail_url=f"{settings.BASE_URL}/i/{wire}/",
                start_time=incident.start_time,
                last_time=incident.last_time,
                end_time=incident.end_time,
                ack_time=incident.ack_time,
                close_time=incident.close_time,
                snoozed_before=incident.snoozed_until,
                assigned_to={
                    "rule_name": follows.body["name"] if follows.rule_id else "",
                    "layer_idx": layer,
                    "type": incident.assigned_type or "assign",
                },
                responders=[
                    {
                        "id": row.member_id,
                        "name": row.member.name,
                        "email": row.member.email,
                        "assigned_at": row.assigned_at,
                        "acknowledged_at": row.acknowledged_at,
                    }
                    for row in self.responders.get(incident.id, ())
                ],
                workspace={"id": incident.workspace_id, "name": incident.workspace.name},
                labels=incident.labels,
                alerts=[
                    {
                        "title": alert.title,
                        "description": alert.description,
                        "severity": alert.severity,
                        "status": alert.status,
                        "start_time": alert.start_time,
                        "last_time": alert.last_time,
                        "end_time": alert.end_time,
                        "labels": alert.labels,
                    }
                    for alert in alerts
                ],
                alert_count=incident.alert_count,
                layer_idx=layer,
                impact=incident.impact,
                root_cause=incident.root_cause,
                resolution=incident.resolution,
                images=alerts[0].images if alerts else (),
                links=[{"title": link.get("title", ""), "url": link["href"]} for link in alerts[0].links] if alerts else (),
                timeline=self.timelines.get(incident.id, ()),
                told=self.told.get(incident.id, ()),
                plan=coming,
            )
        )


def _mailing() -> dict[int, tuple[bool, bool]]:
    """Every channel as `_mail` keeps it. What stands in for a channel has others of its family beside it and its own stand-ins behind it, so
    this follows families until nothing is added."""
    families: dict[int, str] = {}
    leads: dict[str, set[str]] = defaultdict(set)
    for pk, kind, chosen in Channel.objects.values_list("id", "kind", "fallback_kinds"):
        families[pk] = addresses.family(kind)
        style = transport.transports().get(kind)
        kinds = chosen if isinstance(chosen, list) else style.fallback_kinds if style is not None else ()
        leads[families[pk]] |= {addresses.family(other) for other in kinds if isinstance(other, str)}
    mailing = {"email"}
    while more := {family for family, after in leads.items() if after & mailing} - mailing:
        mailing |= more
    return {pk: (family == "email", family in mailing) for pk, family in families.items()}


def ahead(follows: Frozen, state: plan.State, facts: plan.Facts, now: datetime) -> list[events.Planned]:
    """What comes next if nobody reacts, by the rule alone: whether its people can be reached is found out then."""
    return [
        {
            "at": int(planned.at.timestamp()),
            "event": planned.page.event if planned.page is not None else "catch_all",
            "layer_idx": planned.layer,
        }
        for planned in plan.future(follows.timing, state, facts, now, limit=MOST_AHEAD)
    ]
