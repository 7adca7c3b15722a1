"""Which rule an incident follows, and that rule frozen: the body a run keeps whatever is edited later.

The body is plain JSON. What is about time in it is read by `plan.Rule.from_json`; the rest says whom a layer tells:

    {"rule_id", "name", "version", "template_set", "aggr_window", "layers": [
        {"escalate_window", "force_escalate", "notify_step", "max_times",
         "members": [ids], "teams": [ids], "supervisors": bool, "emails": [...],
         "follow_preference": bool, "by": {"Critical": [kinds], "Warning": [...], "Info": [...]},
         "channels": [{"channel", "severities", "events", "mention", "mapping_table"}]}]}
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from django.db.models import F, Prefetch

from escalation import match, plan
from escalation.models import EscalationRule, Incident, Layer, LayerChannel, RuleSnapshot, Workspace
from escalation.rows import read
from mapping.models import Installation


@dataclass(frozen=True, slots=True)
class Frozen:
    """A snapshot row as the engine uses it."""

    id: int
    rule_id: int | None
    body: dict[str, Any]
    timing: plan.Rule

    def layer(self, index: int) -> dict[str, Any]:
        return self.body["layers"][index]


def layer_body(layer: Layer) -> dict[str, Any]:
    """A layer as it is kept in a snapshot."""
    return {
        "escalate_window": layer.escalate_window,
        "force_escalate": layer.force_escalate,
        "notify_step": float(layer.notify_step),
        "max_times": layer.max_times,
        "members": sorted(member.id for member in layer.members.all()),
        "teams": sorted(team.id for team in layer.teams.all()),
        "supervisors": layer.supervisors,
        "emails": list(layer.emails),
        "follow_preference": layer.follow_preference,
        "by": {"Critical": list(layer.critical), "Warning": list(layer.warning), "Info": list(layer.info)},
        "channels": [
            {
                "channel": use.channel_id,
                "severities": list(use.severities),
                "events": list(use.events),
                "mention": use.mention,
                "mapping_table": use.mapping_table_id,
            }
            for use in sorted(layer.channels.all(), key=lambda use: use.id)
        ],
    }


def rule_body(rule: EscalationRule) -> dict[str, Any]:
    """A rule with its layers as it is kept in a snapshot; its layers must be prefetched or are read."""
    return {
        "rule_id": rule.id,
        "name": rule.name,
        "version": rule.version,
        "template_set": rule.template_set_id,
        "aggr_window": rule.aggr_window,
        "layers": [layer_body(layer) for layer in sorted(rule.layers.all(), key=lambda layer: layer.idx)],
    }


def current_body(rule_id: int) -> dict[str, Any]:
    """The body of a rule as it is configured now."""
    layers = Layer.objects.prefetch_related("members", "teams", Prefetch("channels", LayerChannel.objects.all()))
    return rule_body(EscalationRule.objects.prefetch_related(Prefetch("layers", layers)).get(id=rule_id))


def changed(rule_ids: Iterable[int]) -> None:
    """To be called after a rule or anything below it was saved: runs that begin from now on follow the new version."""
    EscalationRule.objects.filter(id__in=list(rule_ids)).update(version=F("version") + 1)


def people_body(name: str, member_ids: Sequence[int], template_set: int | None = None, kinds: Sequence[str] = ()) -> dict[str, Any]:
    """The body of a direct assignment: these people, once, by their own preferences (or by these kinds); nobody comes after them."""
    layer = _plain_layer(_ONCE, members=sorted(set(member_ids)))
    if kinds:
        layer |= {"follow_preference": False, "by": {severity: list(kinds) for severity in ("Critical", "Warning", "Info")}}
    return {
        "rule_id": None,
        "name": name,
        "version": 0,
        "template_set": template_set,
        "aggr_window": 0,
        "layers": [layer],
    }


# A direct assignment: one page, no loops, nobody after it.
_ONCE = plan.Rule(0.0, (plan.Layer(escalate_window=0.0),))


def _plain_layer(
    timing: plan.Rule, *, members: Sequence[int] = (), teams: Sequence[int] = (), channels: Sequence[int] = ()
) -> dict[str, Any]:
    return timing.to_json()["layers"][0] | {
        "members": list(members),
        "teams": list(teams),
        "supervisors": False,
        "emails": [],
        "follow_preference": True,
        "by": {},
        "channels": [{"channel": channel, "severities": [], "events": [], "mention": False, "mapping_table": None} for channel in channels],
    }


def catch_all_bodies(workspace_ids: Sequence[int]) -> dict[int, dict[str, Any] | None]:
    """For each workspace the rule of its catch-all and, after it, the installation's; None where nobody is named at all."""
    installation = Installation.get()
    last = _plain_layer(
        plan.catch_all_rule(),
        members=sorted(installation.catch_all_members.values_list("id", flat=True)),
        teams=sorted(installation.catch_all_teams.values_list("id", flat=True)),
    )
    bodies: dict[int, dict[str, Any] | None] = {}
    spaces = Workspace.objects.filter(id__in=workspace_ids).prefetch_related("catch_all_members", "catch_all_teams", "catch_all_channels")
    for space in spaces:
        first = _plain_layer(
            plan.catch_all_rule(),
            members=sorted(member.id for member in space.catch_all_members.all()),
            teams=sorted(team.id for team in space.catch_all_teams.all()),
            channels=sorted(channel.id for channel in space.catch_all_channels.all()),
        )
        layers = [layer for layer in (first, last) if layer["members"] or layer["teams"] or layer["channels"]]
        # Without a name that says whose it is the body, and so the snapshot, is shared by all who name the same people.
        bodies[space.id] = (
            {"rule_id": None, "name": "catch-all", "version": 0, "template_set": None, "aggr_window": 0, "layers": layers}
            if layers
            else None
        )
    return bodies


@lru_cache(maxsize=4096)
def _timing(text: str) -> plan.Rule:
    return plan.Rule.from_json(json.loads(text))


def thaw(snapshot: RuleSnapshot) -> Frozen:
    """A snapshot row with its timing read."""
    timed = {"aggr_window": snapshot.body["aggr_window"], "layers": snapshot.body["layers"]}
    return Frozen(snapshot.id, snapshot.rule_id, snapshot.body, _timing(json.dumps(timed, sort_keys=True)))


# A snapshot changes only when a person is erased (see `as_of`), so one that was read stays good. Keyed by hash and by id.
_known: dict[str, Frozen] = {}
_by_id: dict[int, Frozen] = {}


def freeze(body: dict[str, Any], now: datetime) -> Frozen:
    """The snapshot of this body, made when nobody has made it before."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    if (known := _known.get(digest)) is not None and known.id in _by_id:
        return known
    RuleSnapshot.objects.bulk_create(
        [RuleSnapshot(rule_id=body["rule_id"], version=body["version"], body=body, body_hash=digest, created_at=now)], ignore_conflicts=True
    )
    frozen = thaw(RuleSnapshot.objects.get(body_hash=digest))
    _remember(digest, frozen)
    return frozen


def frozen(snapshot_ids: Iterable[int]) -> dict[int, Frozen]:
    """Snapshots by id, read once a process."""
    wanted = set(snapshot_ids)
    missing = wanted - _by_id.keys()
    if missing:
        for row in RuleSnapshot.objects.filter(id__in=missing):
            _remember(row.body_hash, thaw(row))
    return {pk: _by_id[pk] for pk in wanted}


def _remember(digest: str, snapshot: Frozen) -> None:
    if len(_by_id) > 10_000:
        forget()
    _known[digest], _by_id[snapshot.id] = snapshot, snapshot


def forget() -> None:
    """Drop what this process remembers (a transaction was rolled back)."""
    _known.clear()
    _by_id.clear()
    _ready.clear()


def as_of(erasures: int | None) -> None:
    """Drop what this process remembers if people were erased since: `erasures` is Installation's, read just now."""
    global _erasures
    if erasures != _erasures:
        forget()
        _erasures = erasures


_erasures: int | None = None


# Bodies are built once a version: (rule id, version) -> Frozen.
_ready: dict[tuple[int, int], Frozen] = {}


class Matcher:
    """The rules of some workspaces, read once for a batch."""

    def __init__(self, workspace_ids: Sequence[int], now: datetime) -> None:
        self.now = now
        self.rules: dict[int, list[EscalationRule]] = {}
        wanted = "FROM escalation_escalationrule t WHERE t.workspace_id = ANY(%s) AND t.status = 'enabled' ORDER BY t.workspace_id, t.priority, t.id"
        for rule in read(EscalationRule, wanted, [list(workspace_ids)]):
            self.rules.setdefault(rule.workspace_id, []).append(rule)

    def find(self, incident: Incident, subject: match.Subject) -> Frozen | None:
        """The first rule of the incident's workspace that matches now, frozen; None when none does."""
        for rule in self.rules.get(incident.workspace_id, ()):
            try:
                fits = match.matches(rule.filters, subject) and match.in_time(rule.time_filters, self.now, rule.time_zone)
                if fits and (found := self._freeze(rule)) is not None:
                    return found  # one without layers would tell nobody: the next one decides
            except match.FilterError:
                continue  # a rule that was broken behind the forms' back must not stop the ones after it; `doctor` names it
        return None

    def _freeze(self, rule: EscalationRule) -> Frozen | None:
        key = (rule.id, rule.version)
        if (ready := _ready.get(key)) is not None and ready.id in _by_id:
            return ready
        body = current_body(rule.id)
        if not body["layers"]:
            return None
        _ready[key] = snapshot = freeze(body, self.now)
        return snapshot
