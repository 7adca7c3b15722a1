"""Workspaces and integrations; events, alerts and incidents; rules, their frozen copies and the runs that follow them; the timeline."""

from escalation.models.alert import Alert
from escalation.models.event import Event
from escalation.models.incident import Incident, Responder
from escalation.models.integration import Integration
from escalation.models.rule import EscalationRule, Layer, LayerChannel, RuleSnapshot
from escalation.models.run import Run
from escalation.models.timeline import TimelineEntry
from escalation.models.workspace import Workspace

__all__ = [
    "Alert", "EscalationRule", "Event", "Incident", "Integration", "Layer", "LayerChannel", "Responder", "RuleSnapshot", "Run", "TimelineEntry", "Workspace",
]  # fmt: skip
