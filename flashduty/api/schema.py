"""What the doors take and give, for `/api/schema/`: written beside them because the doors read and write plain values, without serializers."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view, inline_serializer
from rest_framework import serializers as s

KEY = OpenApiParameter("app_key", str, OpenApiParameter.QUERY, description="an APP key; or in the header App-Key")
PUSH_KEY = OpenApiParameter("integration_key", str, OpenApiParameter.QUERY, required=True, description="from the integration's page")
SEVERITIES = ["Critical", "Warning", "Info"]


def hex_id(required: bool = True) -> s.RegexField:
    return s.RegexField("^[0-9a-f]{24}$", required=required, help_text="24 hex digits")


def door(name: str, answer: Any = None, *, parameter: OpenApiParameter = KEY, summary: str = "", **fields: Any) -> Any:
    """A decorator for a door that is POST only: the fields of its body and what `data` of its answer is (None: an empty object)."""
    envelope = inline_serializer(f"{name}Answer", {"request_id": s.CharField(), "data": answer or s.DictField()})
    request = inline_serializer(f"{name}Request", fields)
    return extend_schema_view(
        post=extend_schema(
            operation_id=None if name == "push" else name,
            summary=summary,
            parameters=[parameter],
            request=request,
            responses={200: envelope},
        )
    )


def ids(summary: str, name: str, **more: Any) -> Any:
    """A door that moves 1 to 100 incidents."""
    return door(name, summary=summary, incident_ids=s.ListField(child=hex_id(), min_length=1, max_length=100), **more)


def page(**fields: Any) -> dict[str, Any]:
    """The fields of a list that comes in pages."""
    return fields | {"p": s.IntegerField(required=False, default=1), "limit": s.IntegerField(required=False, default=20, max_value=100)}


def items(name: str, **fields: Any) -> Any:
    """The `data` of a list."""
    return inline_serializer(name, {"items": s.ListField(child=s.DictField()), "has_next_page": s.BooleanField(), **fields})


ack = ids("Acknowledge incidents", "incidentAck")
unack = ids("Take acknowledgements back", "incidentUnack")
resolve = ids("Close incidents", "incidentResolve", root_cause=s.CharField(required=False), resolution=s.CharField(required=False))
create = door(
    "incidentCreate",
    inline_serializer("incidentCreated", {"incident_id": hex_id(), "title": s.CharField()}),
    summary="Open an incident by hand",
    title=s.CharField(max_length=512),
    incident_severity=s.ChoiceField(SEVERITIES),
    channel_id=s.IntegerField(required=False, help_text="a workspace; may be left out where there is only one"),
    description=s.CharField(required=False),
    assigned_to=inline_serializer(
        "incidentAssignedTo",
        {
            "person_ids": s.ListField(child=s.IntegerField(), required=False),
            "emails": s.ListField(child=s.EmailField(), required=False, help_text="of members"),
            "escalate_rule_id": hex_id(required=False),
            "layer_idx": s.IntegerField(required=False),
            "notify": inline_serializer(
                "incidentNotify",
                {
                    "follow_preference": s.BooleanField(required=False),
                    "personal_channels": s.ListField(child=s.CharField(), required=False),
                    "template_id": hex_id(required=False),
                },
                required=False,
            ),
        },
        required=False,
    ),
)
info = door("incidentInfo", summary="One incident with its alerts", incident_id=hex_id(required=False), num=s.CharField(required=False))
listed = door(
    "incidentList",
    items("incidents", total=s.IntegerField(), search_after_ctx=s.CharField()),
    summary="Incidents, newest first",
    **page(
        start_time=s.IntegerField(help_text="Unix seconds"),
        end_time=s.IntegerField(help_text="Unix seconds"),
        progress=s.CharField(required=False, help_text="joined by commas"),
        incident_severity=s.CharField(required=False, help_text="joined by commas"),
        query=s.CharField(required=False),
        asc=s.BooleanField(required=False),
        channel_ids=s.ListField(child=s.IntegerField(), required=False),
        search_after_ctx=s.CharField(required=False),
    ),
)
feed = door(
    "incidentFeed",
    items("feed"),
    summary="The timeline, and as i_notify who was told and what became of it",
    **page(incident_id=hex_id(), asc=s.BooleanField(required=False), types=s.ListField(child=s.CharField(), required=False)),
)
push = door(
    "push",
    inline_serializer("pushed", {"alert_key": s.CharField()}),
    parameter=PUSH_KEY,
    summary="An event of an alert source (the standard form; other sources send their own)",
    title_rule=s.CharField(max_length=512),
    event_status=s.ChoiceField([*SEVERITIES, "Ok"]),
    alert_key=s.CharField(required=False, help_text="required for Ok"),
    description=s.CharField(required=False),
    labels=s.DictField(child=s.CharField(), required=False),
)


def as_called(result: dict[str, Any], **_context: Any) -> dict[str, Any]:
    """Paths as clients call them: without the slashes that a door forgives; what a source sends of its own is not the standard form."""
    paths = {}
    for path, item in result["paths"].items():
        name = path.rstrip("/")
        if name.startswith("/event/push/alert/") and not name.endswith("/standard"):
            item["post"]["requestBody"] = {"content": {"application/json": {"schema": {}}}, "required": True}
        paths[name] = item
    return result | {"paths": paths}
