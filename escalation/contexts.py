"""What texts may say about an incident, frozen on a notification: read for a whole batch at once."""

from collections.abc import Iterable
from typing import Any

from django.conf import settings

from escalation.ids import hex_id
from escalation.models import Alert, Incident, Responder
from escalation.rows import read
from escalation.rules import Frozen
from mapping.models import Member
from templates_app import events


class Contexts:
    """What texts may say about the incidents of a batch, read in two queries for all that are looked up together."""

    def __init__(self) -> None:
        self.alerts: dict[int, list[Alert]] = {}
        self.responders: dict[int, list[Responder]] = {}

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

    def source(self, incident_id: int) -> str:
        """The integration of the incident's first alert; "" for one that was opened by hand."""
        alerts = self.alerts[incident_id]
        return str(alerts[0].integration_id) if alerts else ""

    def build(self, incident: Incident, follows: Frozen, event: str, layer: int) -> dict[str, Any]:
        """The Context of one incident, which follows this rule, as `templates_app.events` bounds it."""
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
            )
        )
