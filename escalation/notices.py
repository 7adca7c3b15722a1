"""What is told beside the pages of a run: that somebody acknowledged or closed, and a page to responders who were added."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from channels_app import outbox
from channels_app.models import Delivery
from escalation import plan, rules, targets
from escalation.models import Incident, Run, TimelineEntry
from escalation.running import FIRST, STATUS, Batch, Live
from mapping.models import Member
from templates_app import events


def status_notices(told: Sequence[tuple[Incident, str, TimelineEntry]], batch: Batch) -> list[outbox.Notice]:
    """Acknowledged and closed go to the group channels that were told and chose them, not to persons."""
    ids = sorted({incident.id for incident, _event, _entry in told})
    groups: dict[int, set[tuple[int, str]]] = defaultdict(set)
    for topic, channel, target in (
        Delivery.objects.filter(topic__in=ids, member=None, is_page=True)
        .exclude(state__in=(Delivery.State.CANCELLED, Delivery.State.FAILED), attempts=0)  # it was never told
        .values_list("topic", "channel_id", "address__target")
        .distinct()
        if ids
        else ()
    ):
        groups[int(topic or 0)].add((channel, target))
    if not groups:
        return []
    followed: dict[int, list[int]] = defaultdict(list)
    for incident_id, snapshot_id in Run.objects.filter(incident_id__in=groups).order_by("id").values_list("incident_id", "snapshot_id"):
        followed[incident_id].append(snapshot_id)
    known = rules.frozen(pk for pks in followed.values() for pk in pks)
    lives = {
        incident.id: Live(Run(), incident, known[followed[incident.id][-1]], plan.State(0, incident.created_at, 0, None))
        for incident, _event, _entry in told
        if incident.id in followed
    }
    batch.known.look(list(lives))
    people = Member.objects.in_bulk({entry.actor_id for _incident, _event, entry in told if entry.actor_id is not None})
    notices = []
    for incident, event, entry in told:
        if incident.id not in lives:
            continue
        uses = {use["channel"]: use for pk in followed[incident.id] for layer in known[pk].body["layers"] for use in layer["channels"]}
        to = tuple(
            outbox.To(channel_id=channel, target=target)
            for channel, target in sorted(groups[incident.id])
            if channel in uses and targets.wants(uses[channel], incident.severity, event)
        )
        if not to:
            continue
        live = lives[incident.id]
        context = batch.known.build(live.incident, live.follows, event, incident.layer_idx or 0)
        if (actor := people.get(entry.actor_id or 0)) is not None:
            who = {"id": actor.id, "name": actor.name, "email": actor.email}
            context["acknowledger" if event == events.ACKNOWLEDGED else "closer"] = who
        notices.append(
            outbox.Notice(
                event=event, severity=incident.severity, context=context, to=to, is_page=False, topic=incident.id, run=None,
                layer_idx=incident.layer_idx, survives_ack=True, template_set=live.follows.body["template_set"], rank=STATUS,
            )
        )  # fmt: skip
    return notices


def tell_people(batch: Batch, incident: Incident, people: list[int], now: datetime) -> list[outbox.Notice]:
    """A page to responders who were added, by their own preferences; the rule goes on for the others."""
    body = rules.people_body("added", people)
    audience = targets.resolve(body["layers"][0], severity=incident.severity, event=events.TRIGGERED, told=(), now=now)
    if audience.missing:
        batch.note(
            incident,
            "i_layer",
            {
                "result": "partly" if audience.to else "unreachable",
                "reason": audience.reason(),
                "missing": [item.plain() for item in audience.missing[:50]],
            },
        )
    if not audience.to:
        return []
    live = Live(Run(), incident, rules.freeze(body, now), plan.begin(plan.Rule.from_json(body), now))
    batch.known.look([incident.id])
    if batch.known.mails(audience.to):
        batch.known.recall([incident.id])
    context = batch.known.build(live.incident, live.follows, events.TRIGGERED, incident.layer_idx or 0)
    return [
        outbox.Notice(
            event=events.TRIGGERED, severity=incident.severity, context=context, to=audience.to, is_page=True, topic=incident.id, run=None,
            layer_idx=incident.layer_idx, survives_ack=False, template_set=None, rank=FIRST,
        )
    ]  # fmt: skip
