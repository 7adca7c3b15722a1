"""Sample data for previews and for the check on save: what real incidents look like, and what hostile senders make them look like."""

from typing import Any, Final

from templates_app import events
from templates_app.events import AnyContext, Context, language_of

VARIANTS: Final = ("critical", "ok", "bare", "many", "nasty")
SAMPLE_NOW: Final = 1_767_230_000
_START: Final = SAMPLE_NOW - 4_000
_ID: Final = "69559ab00000000000000001"
_URL: Final = f"https://flashduty.example.com/app/incidents/{_ID}"
_NASTY: Final = (
    "<at id=all></at> <@U1> <!channel> @all *_[]()` ~~x~~ [click](http://evil.example.com) <script>alert(1)</script> {{ 7*7 }} \"'\\ # ̴̛"
)


def sample(language: str, variant: str = "critical", event: str = events.TRIGGERED) -> AnyContext:
    """Sample data for an event: critical, ok (recovered), bare (made by hand: no labels, no alerts), many (25 alerts), nasty (hostile texts)."""
    chinese = language_of(language) == "zh-hans"
    if event == events.BUNDLE:
        return _bundle(chinese, variant)
    if event == events.CODE:
        return events.build_code("042137")
    if event == events.TEST:
        return events.build_test(
            _NASTY if variant == "nasty" else ("运维群" if chinese else "Operations"), "李雷" if chinese else "Li Lei", SAMPLE_NOW
        )
    if event == events.NUMBERS:
        return events.build_numbers(["+86 571 8888 1234", "+1 415-555-0100"], "https://flashduty.example.com/me/contacts.vcf")
    return _incident(chinese, variant, event)


def _incident(chinese: bool, variant: str, event: str) -> Context:
    title = "订单服务错误率高于 5%" if chinese else "Order service error rate above 5%"
    description = (
        "过去五分钟错误率为 7.3%，阈值 5%。\n影响：部分用户无法下单。"
        if chinese
        else "7.3% of requests failed in the last five minutes, the limit is 5%.\nSome customers cannot place orders."
    )
    person = {"id": 7, "name": "李雷" if chinese else "Li Lei", "email": "li.lei@example.com"}
    labels = {"service": "order", "resource": "order-7", "cluster": "prod-1", "check": "http_error_rate", "trigger_value": "7.3"}
    if variant == "nasty":
        title = description = _NASTY
        labels = {_NASTY: _NASTY, "items": "x", "resource": _NASTY, "a.b": "1", "rule_note": '{"a": [{"b": "<@U1>"}]}'}
        person = {"id": 7, "name": _NASTY, "email": "x@example.com"}
    ok = variant == "ok"
    closed = event == events.CLOSED
    acknowledged = closed or event == events.ACKNOWLEDGED
    alert: dict[str, Any] = {
        "title": title,
        "description": description,
        "severity": "Critical",
        "status": "Ok" if ok else "Critical",
        "start_time": _START,
        "last_time": SAMPLE_NOW - 60,
        "end_time": SAMPLE_NOW - 60 if ok else 0,
    }
    count = {"bare": 0, "many": 25}.get(variant, 2)
    return events.build(
        event,
        id=_ID,
        num="a1b2c3",
        title=title,
        description="" if variant == "bare" else description,
        detail_url=_URL,
        severity="Warning" if variant == "many" else "Info" if variant == "bare" else "Critical",
        status="Ok" if ok else "Critical",
        progress="Closed" if closed else "Processing" if acknowledged else "Triggered",
        start_time=_START,
        last_time=SAMPLE_NOW - 60,
        end_time=SAMPLE_NOW - 60 if ok else 0,
        ack_time=SAMPLE_NOW - 1_000 if acknowledged else 0,
        close_time=SAMPLE_NOW - 10 if closed else 0,
        creator=person if variant == "bare" else None,
        closer=None if ok or not closed else person,
        acknowledger=person if acknowledged else None,
        assigned_to={"rule_name": "" if variant == "bare" else "P1", "layer_idx": 1 if event == events.ESCALATED else 0, "type": "assign"},
        responders=[]
        if variant == "bare"
        else [{**person, "assigned_at": _START, "acknowledged_at": SAMPLE_NOW - 1_000 if acknowledged else 0}],
        workspace={"id": 3, "name": _NASTY if variant == "nasty" else "交易" if chinese else "Trading"},
        labels={} if variant == "bare" else labels,
        alerts=[{**alert, "labels": {**labels, "resource": f"order-{number}"}} for number in range(count)],
        layer_idx=1 if event == events.ESCALATED else 0,
        resolution="扩容" if closed and chinese else "Scaled out" if closed else "",
        images=[{"src": "https://flashduty.example.com/image/1.png", "alt": title}] if variant == "critical" else [],
        links=[{"title": "Grafana", "url": "https://grafana.example.com/d/1?a=1&b=2"}] if variant == "critical" else [],
        **({} if variant == "bare" else _history(person["name"], title)),  # type: ignore[arg-type]
    )


def _history(name: str, title: str) -> dict[str, Any]:
    """What only mails say: the past and the plan."""
    return {
        "timeline": [
            {"at": _START, "texts": {"en": f"Incident opened: Critical, {title}", "zh-hans": f"故障触发：严重，{title}"}},
            {"at": _START, "texts": {"en": f"Rule “P1”, layer 0: {name}", "zh-hans": f"分派策略“P1”，环节 0：{name}"}},
        ],
        "told": [
            {"at": _START + 300, "name": name, "by": "IM", "state": "failed"},
            {"at": _START + 301, "name": name, "by": "SMS", "state": "delivered"},
        ],
        "plan": [
            {"at": SAMPLE_NOW + 300, "event": "refire", "layer_idx": 0},
            {"at": SAMPLE_NOW + 900, "event": "escalated", "layer_idx": 1},
            {"at": SAMPLE_NOW + 2_700, "event": "catch_all", "layer_idx": 1},
        ],
    }


def _bundle(chinese: bool, variant: str) -> AnyContext:
    title = _NASTY if variant == "nasty" else "磁盘使用率过高" if chinese else "Disk almost full"
    incidents = [
        {
            "id": f"69559ab0{number:016x}",
            "num": f"{number:06x}",
            "title": title,
            "severity": ("Critical", "Warning", "Info")[number % 3],
            "event": events.TRIGGERED if number else events.REFIRE,
            "url": f"https://flashduty.example.com/app/incidents/69559ab0{number:016x}",
            "possible_repeat": number == 1,
        }
        for number in range(25 if variant == "many" else 3)
    ]
    return events.build_bundle(incidents, left=12 if variant == "many" else 0)
