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
    """Acknowledged and closed go to the group channels that were told and chose them, not to persons.

    A channel may stand in several layers: those that told it say what it chose. It was told, so whatever the severity is by now it hears the end.
    """
    ids = sorted({incident.id for incident, _event, _entry in told})
    groups: dict[int, dict[tuple[int, str], list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for topic, channel, target, run, layer in (
        Delivery.objects.filter(topic__in=ids, member=None, is_page=True)
        .exclude(state__in=(Delivery.State.CANCELLED, Delivery.State.FAILED), attempts=0)  # it was never told
        .values_list("topic", "channel_id", "address__target", "notification__run", "notification__layer_idx")
        .distinct()
        if ids
        else ()
    ):
        groups[int(topic or 0)][channel, target].append((int(run or 0), int(layer or 0)))
    if not groups:
        return []
    runs = list(Run.objects.filter(incident_id__in=groups).order_by("id").values_list("id", "incident_id", "snapshot_id"))
    known = rules.frozen(snapshot_id for _id, _incident_id, snapshot_id in runs)
    followed = {pk: known[snapshot_id] for pk, _incident_id, snapshot_id in runs}
    last = {incident_id: known[snapshot_id] for _id, incident_id, snapshot_id in runs}
    lives = {
        incident.id: Live(Run(), incident, last[incident.id], plan.State(0, incident.created_at, 0, None))
        for incident, _event, _entry in told
        if incident.id in last
    }
    batch.known.look(list(lives))
    people = Member.objects.in_bulk({entry.actor_id for _incident, _event, entry in told if entry.actor_id is not None})
    notices = []
    for incident, event, entry in told:
        if incident.id not in lives:
            continue
        to = tuple(
            outbox.To(channel_id=channel, target=target)
            for (channel, target), pages in sorted(groups[incident.id].items())
            if any(
                use["channel"] == channel and targets.chose(use, (event,))
                for run, layer in pages
                if run in followed
                for use in followed[run].layer(layer)["channels"]
            )
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
    audience = targets.resolve(body["layers"][0], severity=incident.severity, events=(events.TRIGGERED,), told=(), now=now)
    if audience.missing:
        batch.note(
            incident,
            "i_layer",
            {
                "result": "partly" if audience.to else "unreachable",
                "reason": audience.reason(),
                "person_ids": sorted({item.member for item in audience.missing if item.member is not None}),
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
