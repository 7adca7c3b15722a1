"""What a measurement needs in the database, made with the product's own code: `python -m benchmarks.world COMMAND JSON`, in its environment.

make     {"provider": port, "mail": port}                    workspaces, channels, rules; prints {name: push_url}
timers   {"live": n, "due": n, "first": Unix s, "step": s}   runs that loop; the first `due` of them at first, first + step, ...
backlog  {"count": n}                                        deliveries to the slow provider, all due now
bots     {"bots": [[kind, webhook address, host:port], ...]} a workspace and a rule for each, the fast provider as its fallback; prints urls, channels
"""

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import django

django.setup()

from django.conf import settings  # noqa: E402
from django.db import connection, models, transaction  # noqa: E402

from channels_app import outbox  # noqa: E402
from channels_app.models import Channel, Preference  # noqa: E402
from escalation import ids, plan, rules  # noqa: E402
from escalation.models import Alert, EscalationRule, Incident, Integration, Layer, LayerChannel, Run, Workspace  # noqa: E402
from mapping.clock import db_now  # noqa: E402
from mapping.models import ContactPoint, Member  # noqa: E402
from templates_app import samples  # noqa: E402

PEOPLE = 20


@transaction.atomic
def make(provider: int, mail: int) -> dict[str, str]:
    """One workspace for each way out; a layer without people has one webhook, so that one alert is one delivery."""
    urls = {}
    for name in ("fast", "slow"):
        hook = Channel.objects.create(
            kind="webhook",
            name=f"bench {name}",
            settings={"url": f"http://127.0.0.1:{provider}/{name}"},
            allowed_hosts=[f"127.0.0.1:{provider}"],
        )
        layer, urls[name] = _space(name)
        LayerChannel.objects.create(layer=layer, channel=hook)
    relay = Channel.objects.create(
        kind="email", name="bench mail", allowed_hosts=[f"127.0.0.1:{mail}"],
        settings={"host": "127.0.0.1", "port": mail, "security": "none", "from_email": "Bench <bench@bench.example>"},
    )  # fmt: skip
    layer, urls["people"] = _space("people")
    for number in range(PEOPLE):
        member = Member.objects.create_user(f"bench{number}@bench.example", f"Bench {number}")
        ContactPoint.objects.create(member=member, kind="email", value=member.email, verified_at=db_now())
        Preference.objects.create(member=member, severity="Critical", kind="email", channel=relay)
        layer.members.add(member)
    return urls


def _space(name: str, loops: int = 6) -> tuple[Layer, str]:
    space = Workspace.objects.create(name=f"bench {name}")
    source = Integration.objects.create(workspace=space, kind="standard", name=f"bench {name}")
    rule = EscalationRule.objects.create(workspace=space, name=f"bench {name}")
    layer = Layer.objects.create(rule=rule, idx=0, escalate_window=720, notify_step=120, max_times=loops)
    return layer, f"{settings.BASE_URL}/event/push/alert/standard?integration_key={source.key}"


@transaction.atomic
def bots(bots: list[tuple[str, str, str]]) -> dict[str, list[Any]]:
    """A workspace for each bot, whose pages come once: what is measured is the flood and not its repetition."""
    spare = Channel.objects.get(name="bench fast")
    urls, channels = [], []
    for kind, hook, host in bots:
        name = f"{kind} {Channel.objects.count()}"
        channel = Channel.objects.create(
            kind=kind, name=f"bench {name}", settings={"url": hook, "keyword": "#"}, allowed_hosts=[host], fallback_channel=spare
        )
        layer, url = _space(name, loops=0)
        LayerChannel.objects.create(layer=layer, channel=channel)
        urls.append(url)
        channels.append(channel.id)
    return {"urls": urls, "channels": channels}


def _clone(row: models.Model, count: int, changes: dict[str, str]) -> None:
    """Copies of a saved row, `changes` by column as SQL over `g` (0, 1, ...); the row itself is the first."""
    table = row._meta.db_table
    columns = [str(field.column) for field in row._meta.concrete_fields if field.column != "id"]
    values = ", ".join(changes.get(column, f"t.{column}") for column in columns)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} (id, {', '.join(columns)}) SELECT nextval(pg_get_serial_sequence('{table}', 'id')), {values}"
            f" FROM {table} t, generate_series(1, {int(count) - 1}) g WHERE t.id = %s",
            [row.pk],
        )


@transaction.atomic
def timers(live: int, due: int, first: float, step: float, spread: float = 7000) -> dict[str, int]:
    """Incidents that were paged once and have a loop before them: `due` of them at the instants asked for, the rest over hours to come."""
    now, at = db_now(), datetime.fromtimestamp(first, UTC)
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0")
    space = Workspace.objects.get(name="bench fast")
    follows = rules.freeze(rules.current_body(EscalationRule.objects.get(name="bench fast").id), now)
    loop = timedelta(seconds=follows.timing.layers[0].notify_step)
    incident = Incident.objects.create(
        workspace=space, title="bench 0", severity="Critical", status="Critical", start_time=now, last_time=now, created_at=now, updated_at=now,
        layer_idx=0, alert_count=1, assigned_type="assign",
    )  # fmt: skip
    Incident.objects.filter(id=incident.id).update(num=ids.num(incident.id), title=f"bench {10_000_000 + incident.id}")
    last = "currval(pg_get_serial_sequence('escalation_incident', 'id'))"  # the id of the very row
    _clone(incident, live, {"num": f"lpad(to_hex({last} & 16777215), 6, '0')", "title": f"'bench ' || (10000000 + {last})"})
    source = Integration.objects.get(name="bench fast")
    alert = Alert.objects.create(
        workspace=space, integration=source, incident=incident, alert_key=f"live-{incident.id}", title=incident.title, severity="Critical",
        status="Critical", start_time=now, last_time=now, labels={"service": "bench"},
    )  # fmt: skip
    _clone(alert, live, {"incident_id": f"{incident.id} + g", "alert_key": f"'live-' || ({incident.id} + g)"})
    state = plan.State(0, at - loop, 1, at)
    run = Run.objects.create(
        incident=incident, snapshot_id=follows.id, state=state.to_json() | {"told": []}, layer_idx=0, next_at=at, started_at=now
    )
    when = (
        f"CASE WHEN g < {int(due)} THEN t.next_at + g * interval '{step:.9f} s'"
        f" ELSE t.next_at + interval '1 hour' + g * interval '{spread / max(live, 1):.9f} s' END"
    )
    begun = f"to_char((({when}) - interval '{loop.total_seconds()} s') AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+00:00\"')"
    _clone(run, live, {"incident_id": f"{incident.id} + g", "next_at": when, "state": f"jsonb_set(t.state, '{{t0}}', to_jsonb({begun}))"})
    return {"first_incident": incident.id, "first_run": run.id}


def backlog(count: int) -> dict[str, int]:
    """Pages to the slow provider that are all due now, as the engine posts them, three hundred at a time."""
    now = db_now()
    hook = Channel.objects.get(name="bench slow")
    context = samples.sample("en")
    made = 0
    while made < count:
        size = min(300, count - made)
        outbox.post(
            [
                outbox.Notice(
                    event="triggered", severity="Critical", context={**context, "title": f"bench {20_000_000 + made + number}"},
                    to=(outbox.To(channel_id=hook.id, target=""),), is_page=True,
                )
                for number in range(size)
            ],
            now,
        )  # fmt: skip
        made += size
    return {"count": made}


if __name__ == "__main__":
    command, text = sys.argv[1:]
    print(json.dumps({"make": make, "timers": timers, "backlog": backlog, "bots": bots}[command](**json.loads(text))))  # type: ignore[operator]  # each has its own arguments
