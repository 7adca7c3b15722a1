"""The Open API's incidents, in the reference's paths, names and units: list, info, create, ack, unack, resolve, feed.

Wire names are the reference's and live only here. What existing clients lean on: absent and zero values mean "not given", unknown fields
are ignored, `p` 0 is the first page, `limit` 100 is honoured, the list is newest first, and times are Unix seconds (milliseconds in feeds).
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.db.models import Count, Q, QuerySet, Sum
from django.utils.translation import gettext as _

from channels_app import addresses
from channels_app.models import Delivery, Notification
from escalation import explain, lifecycle
from escalation.ids import hex_id, parse_hex
from escalation.models import Alert, Incident, Responder, TimelineEntry, Workspace
from escalation.sources import BadEvent, BodyTooLarge, clean, loads
from escalation.targets import in_words
from flashduty.api import schema
from flashduty.api.auth import KeyedDoor
from flashduty.api.envelope import ApiError, body_of, route, success
from mapping.clock import db_now
from mapping.models import Installation, Member
from templates_app.models import TemplateSet

MAX_BODY = 1 << 20
MOST = 100
MOST_PAGES = 1_000_000_000  # the database counts rows to skip in 64 bits
SEVERITIES = ("Critical", "Warning", "Info", "Ok")


class Body:
    """A request's JSON object, read field by field; zero values count as absent, as the reference's clients send them."""

    def __init__(self, raw: bytes, encoding: str) -> None:
        try:
            found = loads(raw, encoding, MAX_BODY) if raw.strip() else {}
        except BodyTooLarge as error:
            raise ApiError("RequestEntityTooLarge", str(error)) from None
        except BadEvent as error:
            raise ApiError("InvalidParameter", str(error)) from None
        if not isinstance(found, dict):
            raise ApiError("InvalidParameter", _("The body must be a JSON object."))
        self.fields: dict[str, Any] = found

    def number(self, name: str, default: int = 0, most: int | None = None) -> int:
        value = self.fields.get(name)
        if value in (None, "", False):
            return default
        # Infinity is a JSON number (1e999) without being one: the range is looked at before int() would fail on it.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2**62 or value != int(value):
            raise ApiError("InvalidParameter", _("%(name)s must be a whole number.") % {"name": name})
        return int(value) if most is None else min(int(value), most)

    def text(self, name: str, most: int) -> str:
        value = self.fields.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise ApiError("InvalidParameter", _("%(name)s must be a string.") % {"name": name})
        return clean(value)[:most]

    def inner(self, name: str) -> "Body":
        """A JSON object within this one; an empty one where it is absent."""
        value = self.fields.get(name) or {}
        if not isinstance(value, dict):
            raise ApiError("InvalidParameter", _("%(name)s must be an object.") % {"name": name})
        found = Body(b"", "")
        found.fields = value
        return found

    def flag(self, name: str) -> bool:
        return self.fields.get(name) is True

    def numbers(self, name: str) -> list[int]:
        value = self.fields.get(name) or []
        if not isinstance(value, list) or any(isinstance(item, bool) or not isinstance(item, int) or abs(item) > 2**62 for item in value):
            raise ApiError("InvalidParameter", _("%(name)s must be a list of whole numbers.") % {"name": name})
        return value

    def strings(self, name: str) -> list[str]:
        """A list of strings, or one string joined by commas."""
        value = self.fields.get(name) or []
        if isinstance(value, str):
            value = [item.strip() for item in value.split(",") if item.strip()]
        if not isinstance(value, list) or any(not isinstance(item, str) for item in value):
            raise ApiError("InvalidParameter", _("%(name)s must be a list of strings.") % {"name": name})
        return [clean(item) for item in value]

    def ids(self, name: str) -> list[int]:
        """1 to 100 wire ids as keys."""
        given = self.strings(name)
        if not given:
            raise ApiError("InvalidParameter", _("%(name)s is missing: give 1 to 100 ids of 24 hex digits.") % {"name": name})
        if len(given) > MOST:
            raise ApiError("InvalidParameter", _("%(name)s may hold at most 100 ids.") % {"name": name})
        return [self._id(name, item) for item in given]

    def id(self, name: str) -> int:
        return self._id(name, self.fields.get(name))

    @staticmethod
    def _id(name: str, value: object) -> int:
        pk = parse_hex(value)
        if pk is None:
            raise ApiError("InvalidParameter", _("%(name)s must be 24 hex digits.") % {"name": name})
        return pk

    def instant(self, name: str) -> datetime | None:
        value = self.number(name)
        try:
            return datetime.fromtimestamp(value, UTC) if value else None
        except (ValueError, OverflowError, OSError):
            raise ApiError("InvalidParameter", _("%(name)s must be a time in Unix seconds.") % {"name": name}) from None


class IncidentDoor(KeyedDoor):
    """What the doors of incidents share: the body, and only incidents that the key's member may see."""

    def post(self, request: Any) -> Any:
        raw = request._request
        return success(self.answer(Body(body_of(raw, MAX_BODY), raw.headers.get("Content-Encoding", ""))))

    def answer(self, body: Body) -> Any:
        raise NotImplementedError

    def visible(self) -> QuerySet[Incident]:
        return Incident.objects.visible_to(self.member)

    def each(self, body: Body, move: Callable[..., Any], **args: Any) -> dict[str, Any]:
        """Make a move of lifecycle on every named incident, or on none: the error says for which one it cannot be made."""
        given = dict(zip(body.ids("incident_ids"), body.strings("incident_ids"), strict=True))
        found = set(self.visible().filter(id__in=given).order_by().values_list("id", flat=True))
        if missing := [text for pk, text in given.items() if pk not in found]:
            raise ApiError("ResourceNotFound", _("There is no incident %(id)s.") % {"id": missing[0]})
        try:
            move(found, actor=self.member, via="api", now=db_now(), **args)
        except lifecycle.Refused as error:
            if error.incident_id in given:
                error.message = _("incident %(id)s: %(message)s") % {"id": given[error.incident_id], "message": error.message}
            raise
        return {}


@schema.ack
class Ack(IncidentDoor):
    def answer(self, body: Body) -> Any:
        return self.each(body, lifecycle.acknowledge_all)


@schema.unack
class Unack(IncidentDoor):
    def answer(self, body: Body) -> Any:
        return self.each(body, lifecycle.unacknowledge_all)


@schema.resolve
class Resolve(IncidentDoor):
    def answer(self, body: Body) -> Any:
        texts = {name: text for name in ("root_cause", "resolution") if (text := body.text(name, 1024))}
        return self.each(body, lifecycle.close_all, **texts)


@schema.create
class Create(IncidentDoor):
    def answer(self, body: Body) -> Any:
        incident = lifecycle.create(
            workspace_id=self._workspace(body),
            title=body.text("incident_title", 512) or body.text("title", 512),
            severity=body.text("incident_severity", 20),
            description=body.text("description", lifecycle.MAX_TEXT),
            actor=self.member,
            via="api",
            now=db_now(),
            **self._assigned(body),
        )
        return {"incident_id": hex_id(incident.created_at, incident.id), "title": incident.title}

    def _assigned(self, body: Body) -> dict[str, Any]:
        """`assigned_to`: people (by id or e-mail) with how to tell them, or a layer of a rule; as arguments of lifecycle.create."""
        to = body.inner("assigned_to")
        people = to.numbers("person_ids")
        if emails := [email.lower() for email in to.strings("emails")]:
            known = {email.lower(): pk for pk, email in Member.objects.filter(is_active=True).values_list("id", "email")}
            if strangers := [email for email in emails if email not in known]:
                raise ApiError(
                    "InvalidParameter",
                    _("assigned_to.emails: there is no active member with the address %(email)s.") % {"email": strangers[0]},
                )
            people += [known[email] for email in emails]
        found: dict[str, Any] = {"member_ids": list(dict.fromkeys(people))}
        if to.fields.get("escalate_rule_id"):
            found |= {"rule_id": to.id("escalate_rule_id"), "layer_idx": to.number("layer_idx")}
        notify = to.inner("notify")
        if template := notify.fields.get("template_id") and notify.id("template_id"):
            if not TemplateSet.objects.visible_to(self.member).filter(pk=template).exists():
                raise ApiError("ResourceNotFound", _("There is no template %(id)s.") % {"id": notify.text("template_id", 24)})
            found["template_set"] = template
        if (kinds := notify.strings("personal_channels")) and not notify.flag("follow_preference"):
            choices = [name for name, _label in addresses.choices_for_people()]
            if unknown := [kind for kind in kinds if kind not in choices]:
                raise ApiError(
                    "InvalidParameter",
                    _("assigned_to.notify.personal_channels: there is no %(kind)s; there are: %(choices)s.")
                    % {"kind": unknown[0], "choices": ", ".join(choices)},
                )
            found["kinds"] = kinds
        return found

    def _workspace(self, body: Body) -> int:
        spaces = Workspace.objects.visible_to(self.member).filter(status="enabled")
        wanted = body.number("channel_id")
        found = spaces.filter(id=wanted).first() if wanted else (spaces.order_by("id")[:2] if spaces.count() == 1 else [None])[0]
        if found is None:
            text = (
                _("There is no channel %(id)s.") % {"id": wanted}
                if wanted
                else _("channel_id is missing: name the channel of the incident.")
            )
            raise ApiError("ResourceNotFound" if wanted else "InvalidParameter", text)
        return found.id


@schema.info
class Info(IncidentDoor):
    writes = False

    def answer(self, body: Body) -> Any:
        rows = self.visible()
        if body.fields.get("incident_id"):
            rows = rows.filter(id=body.id("incident_id"))
        elif num := body.text("num", 6):
            rows = rows.filter(num=num.lower())
        else:
            raise ApiError("InvalidParameter", _("incident_id is missing: give the id (24 hex digits)."))
        incident = rows.select_related("workspace", "creator", "closer", "rule").order_by("-id").first()
        if incident is None:
            raise ApiError("ResourceNotFound", _("There is no such incident."))
        return wire([incident], alerts=True)[0]


@schema.listed
class List(IncidentDoor):
    writes = False

    def answer(self, body: Body) -> Any:
        start, end = body.instant("start_time"), body.instant("end_time")
        if start is None or end is None:
            missing = "start_time" if start is None else "end_time"
            raise ApiError("InvalidParameter", _("%(name)s is missing: give a time in Unix seconds.") % {"name": missing})
        rows = self._filtered(body, self.visible().filter(start_time__gte=start, start_time__lte=end))
        limit = body.number("limit", 20, MOST)
        page = max(body.number("p", 1, MOST_PAGES), 1)
        after = parse_hex(body.text("search_after_ctx", 24))
        ascending = body.flag("asc")
        if after is not None:
            rows, page = rows.filter(**{"id__gt" if ascending else "id__lt": after}), 1
        total = rows.count()
        rows = rows.select_related("workspace", "creator", "closer", "rule").order_by("id" if ascending else "-id")
        found = list(rows[(page - 1) * limit : page * limit + 1])
        items = wire(found[:limit])
        return {
            "items": items,
            "total": total,
            "has_next_page": len(found) > limit,
            "search_after_ctx": items[-1]["incident_id"] if len(found) > limit else "",
        }

    def _filtered(self, body: Body, rows: QuerySet[Incident]) -> QuerySet[Incident]:
        now = db_now()
        lists = {"progress": "progress__in", "incident_severity": "severity__in", "nums": "num__in"}
        for name, lookup in lists.items():
            if values := body.strings(name):
                rows = rows.filter(**{lookup: values})
        numbers = {
            "channel_ids": "workspace_id__in",
            "team_ids": "workspace__team_id__in",
            "creator_ids": "creator_id__in",
            "closer_ids": "closer_id__in",
        }
        for name, lookup in numbers.items():
            if ids := body.numbers(name):
                rows = rows.filter(**{lookup: ids})
        if ids := body.numbers("responder_ids"):
            rows = rows.filter(id__in=Responder.objects.filter(member_id__in=ids).values("incident_id"))
        if ids := body.numbers("acker_ids"):
            rows = rows.filter(id__in=Responder.objects.filter(member_id__in=ids, acknowledged_at__isnull=False).values("incident_id"))
        if body.strings("incident_ids"):
            rows = rows.filter(id__in=body.ids("incident_ids"))
        if isinstance(snoozed := body.fields.get("is_snoozed"), bool):
            asleep = Q(progress="Processing", snoozed_until__gt=now)
            rows = rows.filter(asleep) if snoozed else rows.exclude(asleep)
        if body.flag("is_my_team") or body.flag("is_my_channel"):
            rows = rows.filter(workspace__team_id__in=self.member.team_ids())
        if body.flag("ever_muted") or body.flag("is_rare"):
            rows = rows.none()  # nothing here is muted or rare yet
        if query := body.text("query", 200).strip():
            rows = rows.filter(Q(title__icontains=query) | Q(num=query.lower().lstrip("#")))
        return rows


@schema.feed
class Feed(IncidentDoor):
    writes = False

    def answer(self, body: Body) -> Any:
        incident = self.visible().filter(id=body.id("incident_id")).first()
        if incident is None:
            raise ApiError("ResourceNotFound", _("There is no incident %(id)s.") % {"id": body.text("incident_id", 24)})
        limit, page = body.number("limit", 20, MOST), max(body.number("p", 1, MOST_PAGES), 1)
        items = feed(incident)
        if types := set(body.strings("types")):
            items = [item for item in items if item["type"] in types]
        if not body.flag("asc"):
            items.reverse()
        found = items[(page - 1) * limit : page * limit]
        return {"items": found, "has_next_page": len(items) > page * limit}


# ---- rows to the wire ----------------------------------------------------------------------------------------------------------------


def seconds(moment: datetime | None) -> int:
    """Unix seconds, 0 = not set."""
    return int(moment.timestamp()) if moment is not None else 0


def person(member: Member | None) -> dict[str, Any] | None:
    return {"person_id": member.id, "person_name": member.name, "email": member.email, "as": "member"} if member is not None else None


def wire(incidents: Sequence[Incident], *, alerts: bool = False) -> list[dict[str, Any]]:
    """Incidents (with workspace, creator, closer and rule selected) as the reference's IncidentInfo, in a few queries for all."""
    ids = [incident.id for incident in incidents]
    counts: dict[int | None, Any] = {
        row["incident_id"]: row
        for row in Alert.objects.filter(incident_id__in=ids)
        .order_by()
        .values("incident_id")
        .annotate(active=Count("id", filter=Q(is_open=True) & ~Q(status="Ok")), heard=Sum("event_count"))
    }
    sources: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for incident_id, pk, kind in (
        Alert.objects.filter(incident_id__in=ids)
        .order_by("incident_id")
        .values_list("incident_id", "integration_id", "integration__kind")
        .distinct()
    ):
        sources[incident_id or 0].append((pk, kind))
    responders: dict[int, list[Responder]] = defaultdict(list)
    for responder in Responder.objects.filter(incident_id__in=ids).select_related("member").order_by("id"):
        responders[responder.incident_id].append(responder)
    listed: dict[int, list[Alert]] = defaultdict(list)
    if alerts:
        for alert in Alert.objects.filter(incident_id__in=ids).select_related("integration", "workspace").order_by("id")[:MOST]:
            listed[alert.incident_id or 0].append(alert)
    site = Installation.get()
    return [
        _incident(
            incident,
            site,
            counts.get(incident.id, {}),
            sources[incident.id],
            responders[incident.id],
            listed[incident.id] if alerts else None,
        )
        for incident in incidents
    ]


def _incident(
    incident: Incident,
    site: Installation,
    counts: dict[str, Any],
    sources: list[tuple[int, str]],
    responders: list[Responder],
    alerts: list[Alert] | None,
) -> dict[str, Any]:
    wire_id = hex_id(incident.created_at, incident.id)
    body: dict[str, Any] = {
        "incident_id": wire_id,
        "account_id": 1,
        "account_name": site.name,
        "account_locale": "zh-CN" if site.language.startswith("zh") else "en-US",
        "account_time_zone": "UTC",
        "channel_id": incident.workspace_id,
        "channel_name": incident.workspace.name,
        "channel_status": incident.workspace.status,
        "integration_id": sources[0][0] if sources else 0,
        "integration_ids": [pk for pk, _kind in sources],
        "integration_types": list(dict.fromkeys(kind for _pk, kind in sources)),
        "num": incident.num,
        "title": incident.title,
        "description": incident.description,
        "incident_severity": incident.severity,
        "incident_status": incident.status,
        "progress": incident.progress,
        "start_time": seconds(incident.start_time),
        "last_time": seconds(incident.last_time),
        "end_time": seconds(incident.end_time),
        "ack_time": seconds(incident.ack_time),
        "close_time": seconds(incident.close_time),
        "snoozed_before": seconds(incident.snoozed_until),
        "created_at": seconds(incident.created_at),
        "updated_at": seconds(incident.updated_at),
        "creator_id": incident.creator_id or 0,
        "closer_id": incident.closer_id or 0,
        "owner_id": 0,
        "labels": incident.labels,
        "fields": {},
        "impact": incident.impact,
        "root_cause": incident.root_cause,
        "resolution": incident.resolution,
        "ai_summary": "",
        "dedup_key": incident.group_key,
        "equals_md5": "",
        "group_method": "n",
        "ever_muted": False,
        "manual_overrides": incident.manual_overrides,
        "alert_cnt": incident.alert_count,
        "active_alert_cnt": counts.get("active") or 0,
        "alert_event_cnt": counts.get("heard") or 0,
        "assigned_to": _assigned(incident, responders),
        "responders": [
            (person(row.member) or {}) | {"assigned_at": seconds(row.assigned_at), "acknowledged_at": seconds(row.acknowledged_at)}
            for row in responders
        ],
        "detail_url": f"{settings.BASE_URL}/i/{wire_id}/",
        "silence_url": "",
        "post_mortem_id": "",
        "images": [],
        "links": [],
    }
    for name, member in (("creator", incident.creator), ("closer", incident.closer)):
        if member is not None:
            body[name] = person(member)
    if alerts is not None:
        body["alerts"] = [_alert(alert, incident) for alert in alerts]
        body["images"] = [image for alert in alerts[:1] for image in alert.images if image.get("src")]
    return body


def _assigned(incident: Incident, responders: list[Responder]) -> dict[str, Any]:
    people = [row.member_id for row in responders if row.assigned_at is not None]
    body: dict[str, Any] = {
        "layer_idx": incident.layer_idx or 0,
        "assigned_at": seconds(max((r.assigned_at for r in responders if r.assigned_at), default=None)),
    }
    if incident.assigned_type:
        body["type"] = incident.assigned_type
    if people:
        body["person_ids"] = people[:MOST]
    if incident.rule is not None:
        body |= {"escalate_rule_id": hex_id(incident.rule.created_at, incident.rule.id), "escalate_rule_name": incident.rule.name}
    return body


def _alert(alert: Alert, incident: Incident) -> dict[str, Any]:
    """An alert by the spec's names and by those that the SDK reads (`severity`, `status`, `trigger_time`)."""
    return {
        "alert_id": hex_id(alert.start_time, alert.id),
        "account_id": 1,
        "integration_id": alert.integration_id,
        "integration_name": alert.integration.name,
        "integration_type": alert.integration.kind,
        "integration_ref_id": "",
        "data_source_id": alert.integration_id,
        "data_source_name": alert.integration.name,
        "data_source_type": alert.integration.kind,
        "data_source_ref_id": "",
        "channel_id": alert.workspace_id,
        "channel_name": alert.workspace.name,
        "channel_status": alert.workspace.status,
        "title": alert.title,
        "title_rule": alert.title,
        "description": alert.description,
        "alert_key": alert.alert_key,
        "alert_severity": alert.severity,
        "alert_status": alert.status,
        "severity": alert.severity,
        "status": alert.status,
        "start_time": seconds(alert.start_time),
        "trigger_time": seconds(alert.start_time),
        "last_time": seconds(alert.last_time),
        "end_time": seconds(alert.end_time),
        "created_at": seconds(alert.start_time),
        "updated_at": seconds(alert.last_time),
        "labels": alert.labels,
        "images": [image for image in alert.images if image.get("src")],
        "ever_muted": False,
        "event_cnt": alert.event_count,
        "responder_name": "",
        "responder_email": "",
        "incident": {"incident_id": hex_id(incident.created_at, incident.id), "progress": incident.progress},
    }


# ---- the feed ------------------------------------------------------------------------------------------------------------------------

FEED_TYPES = {
    "i_new", "i_assign", "i_a_rspd", "i_snooze", "i_wake", "i_ack", "i_unack", "i_comm", "i_rslv", "i_reopen", "i_r_title", "i_r_desc",
    "i_r_impact", "i_r_rc", "i_r_rsltn", "i_r_severity",
}  # fmt: skip
WAYS = {"voice": "voice", "event": "event", "timeout": "autorslv", "card": "card", "link": "wcard", "group": "wcard"}


def feed(incident: Incident) -> list[dict[str, Any]]:
    """The timeline in the reference's shapes, oldest first: entries and, as `i_notify`, every occasion on which people were told."""
    ref = hex_id(incident.created_at, incident.id)
    items = []
    for entry in TimelineEntry.objects.filter(incident=incident).select_related("actor").order_by("id"):
        kind, detail = _entry(entry)
        items.append(_item(ref, kind, detail, entry.actor_id or 0, entry.created_at))
    occasions: dict[int, list[Delivery]] = defaultdict(list)
    deliveries = Delivery.objects.filter(topic=incident.id).select_related("notification", "channel", "member").defer(*Delivery.SEALED)
    for delivery in deliveries.order_by("id")[:5000]:
        occasions[delivery.notification_id].append(delivery)
    for group in occasions.values():
        items.append(_item(ref, "i_notify", _notify(group[0].notification, group, incident), 0, group[0].notification.created_at))
    items.sort(key=lambda item: item["created_at"])
    return items


def _item(ref: str, kind: str, detail: dict[str, Any], creator: int, at: datetime) -> dict[str, Any]:
    moment = int(at.timestamp() * 1000)
    return {
        "ref_id": ref, "type": kind, "detail": detail, "account_id": 1, "creator_id": creator, "person_id": creator,
        "created_at": moment, "updated_at": moment,
    }  # fmt: skip


def _entry(entry: TimelineEntry) -> tuple[str, dict[str, Any]]:
    """A timeline entry by the reference's type and detail. What the reference has no type for is said as a comment of the system."""
    detail = entry.detail
    if entry.type == "i_escalate":
        return "i_assign", {"type": "escalate", "layer_idx": int(detail.get("layer_idx", 0))}
    if entry.type not in FEED_TYPES:
        return "i_comm", {"comment": explain.sentence(entry)}
    shapes: dict[str, dict[str, Any]] = {
        "i_new": {"severity": detail.get("severity", "Info")},
        "i_a_rspd": {"to": list(detail.get("person_ids", ()))},
        "i_snooze": {"minutes": int(detail.get("minutes", 0))},
        "i_wake": {"snoozedBefore": int(detail.get("snoozed_before", 0))},
        "i_ack": {"progress": "Processing"},
        "i_unack": {"progress": "Triggered" if detail.get("last") else "Processing"},
        "i_comm": {"comment": str(detail.get("comment", ""))},
        "i_rslv": {"from": WAYS.get(entry.via, "console")},
        "i_reopen": {"reason": str(detail.get("reason", ""))},
        "i_r_title": {"from": str(detail.get("from", "")), "to": str(detail.get("to", ""))},
        "i_r_severity": {"from": detail.get("from", "Info"), "to": detail.get("to", "Info")},
    }
    if entry.type == "i_assign":
        body: dict[str, Any] = {"type": detail.get("type") or "assign", "layer_idx": int(detail.get("layer_idx") or 0)}
        if people := list(detail.get("person_ids", ())):
            body |= {"person_ids": people, "to": people}
        for name in ("escalate_rule_id", "escalate_rule_name"):
            if detail.get(name):
                body[name] = detail[name]
        return "i_assign", body
    return entry.type, shapes.get(entry.type, {})


def _notify(notification: Notification, deliveries: Sequence[Delivery], incident: Incident) -> dict[str, Any]:
    """The delivery record of one occasion. Every message says what became of it: `failed_reason` is empty when it got out."""
    persons, robots = [], []
    for delivery in deliveries:
        reason = _reason(delivery)
        if delivery.member_id is not None:
            persons.append({"person_id": delivery.member_id, "failed_reason": reason, "by": delivery.channel.kind, "state": delivery.state})
        else:
            robots.append(
                {
                    "token": "***",
                    "alias": delivery.channel.name,
                    "failed_reason": reason,
                    "by": delivery.channel.kind,
                    "state": delivery.state,
                }
            )
    body: dict[str, Any] = {
        "rid": str(notification.id),
        "msg_id": next((delivery.message_id for delivery in deliveries if delivery.message_id), ""),
        "fire_type": "refire" if notification.event == "refire" else "fire",
        "event": notification.event,
        "layer_idx": notification.layer_idx or 0,
        "by": ",".join(dict.fromkeys(delivery.channel.kind for delivery in deliveries)),
        "persons": persons,
        "chats": [],
        "robots": robots,
    }
    assigned = (notification.context or {}).get("assigned_to") or {}
    if assigned.get("rule_name"):
        body["escalate_rule_name"] = assigned["rule_name"]
    return body


def _reason(delivery: Delivery) -> str:
    if delivery.state in (Delivery.State.SENT, Delivery.State.DELIVERED, Delivery.State.ANSWERED, Delivery.State.BUNDLED):
        return ""
    return in_words(delivery.reason) or (
        "" if delivery.state in (Delivery.State.QUEUED, Delivery.State.SENDING) else delivery.get_state_display()
    )


urls = [
    route("incident/list", List.as_view(), "incident_list"),
    route("incident/info", Info.as_view(), "incident_info"),
    route("incident/create", Create.as_view(), "incident_create"),
    route("incident/ack", Ack.as_view(), "incident_ack"),
    route("incident/unack", Unack.as_view(), "incident_unack"),
    route("incident/resolve", Resolve.as_view(), "incident_resolve"),
    route("incident/feed", Feed.as_view(), "incident_feed"),
]
