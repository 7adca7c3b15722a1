"""What we say: every default text in every format, plain words stay plain, the bounds of a Context, the check on save, and the fallback."""

import json
import re
import threading
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from templates_app import events, formats
from templates_app.choose import Rendered, TemplateRow, choose, render_bundle, render_or_default
from templates_app.defaults import default_source, default_subject
from templates_app.events import EVENTS, INCIDENT_EVENTS, LANGUAGES
from templates_app.models import Template, TemplateSet, report_failure
from templates_app.render import TemplateFailed, preview, render
from templates_app.samples import SAMPLE_NOW, VARIANTS, sample

MESSAGE_FORMATS = [name for name in formats.format_names() if formats.format_named(name).base != "json"]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def say(source: str, fmt: str = "plain", language: str = "en", zone: str = "UTC", **values: Any) -> str:
    return render(
        source, {"event": "triggered", "labels": {}, "alerts": [], **values}, fmt=fmt, language=language, time_zone=zone, now=SAMPLE_NOW
    )


# --- default texts ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("fmt", MESSAGE_FORMATS)
@pytest.mark.parametrize("event", EVENTS)
def test_every_default_text_says_what_it_must(event: str, fmt: str, language: str) -> None:
    for variant in VARIANTS:
        text = preview(default_source(event, fmt, language), fmt=fmt, language=language, variant=variant, event=event)
        assert text.strip()
        assert "None" not in text and "Undefined" not in text and "{%" not in text
        if variant == "nasty":
            continue
        context = sample(language, variant, event)
        if event in INCIDENT_EVENTS:
            assert formats.format_named(fmt).escape(context["title"]) in text  # type: ignore[index]
            if fmt != "voice":
                assert "#a1b2c3" in text  # the number people say, and `#` is the keyword IM bots are set up with
        if event == "code":
            assert ("0 4 2 1 3 7" if fmt == "voice" else "042137") in text  # the two forms the outbox cuts out of its records
        if event in ("bundle", "test") and fmt not in ("voice", "html", "plain"):
            assert "#" in text
        if fmt not in ("html", "voice"):
            assert "\n\n\n" not in text


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_text_speaks_one_language(language: str) -> None:
    chinese = re.compile(r"[\u3000-\u9fff\uff00-\uffef]")
    for event in EVENTS:
        for fmt in MESSAGE_FORMATS:
            source = default_source(event, fmt, language)
            assert (
                bool(chinese.search(re.sub(r"{%.*?%}|{{.*?}}", "", source)) or not source) is (language == "zh-hans") or event == "bundle"
            )
            if language == "en":
                assert not chinese.search(preview(source, fmt=fmt, language="en", event=event))


class _Tags(HTMLParser):
    VOID = frozenset({"meta", "br", "img", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("event", EVENTS)
def test_mails_are_whole_html(event: str, language: str) -> None:
    for variant in VARIANTS:
        tags = _Tags()
        tags.feed(preview(default_source(event, "html", language), fmt="html", language=language, variant=variant, event=event))
        assert tags.open == [] and "script" not in tags.seen and "at" not in tags.seen
        assert all(link.startswith("https://") for link in tags.links)
        if event in INCIDENT_EVENTS:
            assert sample(language, variant, event)["title"] in tags.words  # type: ignore[operator,index]


def test_the_subject_is_the_same_for_all_messages_of_an_incident() -> None:
    for language in LANGUAGES:
        assert len({default_subject(event, language) for event in INCIDENT_EVENTS}) == 1


def test_pages_carry_the_links_and_say_possible_repeat() -> None:
    context = events.addressed(sample("en"), actions_url="https://x.example.com/i/t0ken/", possible_repeat=True)  # type: ignore[arg-type]
    text = render(default_source("triggered", "feishu", "en"), context, fmt="feishu", language="en", now=SAMPLE_NOW)
    assert "possible repeat" in text
    assert "[Acknowledge](https://x.example.com/i/t0ken/?ack=1)" in text
    group = render(default_source("triggered", "slack", "zh-hans"), sample("zh-hans"), fmt="slack", language="zh-hans", now=SAMPLE_NOW)  # type: ignore[arg-type]
    assert "|认领>" in group and "possible" not in group and "可能重复" not in group


def test_formats_are_open() -> None:
    formats.register(formats.Format("pager", "plain", lambda text: text.upper()))
    formats.register_kind("pager_kind", "pager")
    assert formats.format_of("pager_kind") == "pager" and formats.format_of("no such kind") == "plain"
    assert say("{{ title }}", "pager", title="down") == "DOWN"
    assert default_source("triggered", "pager", "en") == default_source("triggered", "plain", "en")
    mine = {("en", "closed"): "en closed", "closed": "closed", "": "any"}
    assert default_source("closed", "pager", "en", mine) == "en closed"
    assert default_source("closed", "pager", "zh-hans", mine) == "closed"
    assert default_source("refire", "pager", "en", mine) == "any"
    with pytest.raises(ValueError, match="exists"):
        formats.register(formats.Format("pager", "plain", lambda text: text))


# --- plain words stay plain words ------------------------------------------------------------------------------------------------------

ATTACK = "<at id=all></at> <@U1> <!channel> *bold* _it_ ~~no~~ `code` [click](http://evil) ![i](http://evil) <b>x</b> & @everyone\n# head\n- item\n> quote"


def test_feishu() -> None:
    text = say("{{ x }}", "feishu", x=ATTACK)
    assert not re.search(r"[<>*_~`\[\]()]", text)
    assert re.sub(r"&#(\d+);", lambda m: chr(int(m[1])), text).replace("\u200b", "") == ATTACK


@pytest.mark.parametrize("fmt", ["dingtalk", "wecom", "zoom"])
def test_dialects_without_an_escape(fmt: str) -> None:
    text = say("{{ x }}", fmt, x=ATTACK)
    assert not re.search(r"[<>*~`]", text)
    assert "](" not in text and "![" not in text
    assert not re.search(r"^\s*[#>+-]", text, re.MULTILINE)
    assert "＿it＿" in text
    assert say("{{ x }}", fmt, x="db_host_1 = 5 (a|b) http://x/a_b?c=d") == "db_host_1 = 5 (a|b) http://x/a_b?c=d"


def test_slack() -> None:
    text = say("{{ x }}", "slack", x=ATTACK)
    assert not re.search(r"[<>*~`]", text)
    assert "&lt;@U1&gt;" in text and " &amp; " in text


def test_telegram_and_html() -> None:
    for fmt in ("telegram", "html"):
        text = say("{{ x }}", fmt, x=ATTACK)
        assert "<" not in text and ">" not in text and "&lt;@" in text
    assert not re.search(r"(?<!\w)@\w", say("{{ x }}", "telegram", x=ATTACK))
    assert say("{{ x }}", "telegram", x="ops@example.com") == "ops@example.com"


@pytest.mark.parametrize("fmt", ["teams", "discord", "mattermost"])
def test_backslash_dialects(fmt: str) -> None:
    text = say("{{ x }}", fmt, x=ATTACK)
    assert not re.search(r"(?<!\\)[*_~`\[\]<>]|^[-+#=]|^\d+[.)]\s", text, re.MULTILINE)
    assert "@everyone" not in text
    assert say("{{ x }}", fmt, x="a-b (c) 7.3% #1!") == "a-b (c) 7.3% #1!", "nothing that begins nothing"


@pytest.mark.parametrize("fmt", ["teams", "discord", "mattermost"])
def test_an_address_among_the_words_leads_where_it_did(fmt: str) -> None:
    text = say("{{ x }}", fmt, x="see https://grafana.example.com/d/a-b_c/x?from=now-1h&to=now&v=~all#p_ (or http://b.example/_x_)")
    assert "https://grafana.example.com/d/a-b_c/x?from=now-1h&to=now&v=%7Eall#p%5F " in text
    assert "http://b.example/%5Fx%5F)" in text


def test_voice_reads_no_signs() -> None:
    assert say("{{ x }}", "voice", x="<b>CPU</b> [90%] *high* a_b") == "b CPU b 90% high a b"


def test_plain_drops_what_nobody_sees() -> None:
    assert say("{{ x }}", x="a\x00b\x1b[31mc\u202egnp.exe\td") == "ab[31mcgnp.exe\td"


def test_json_values_stand_inside_quotes() -> None:
    source = '{"title": "{{ title }}", "labels": {{ labels|tojson }}, "n": {{ n }}, "at": {{ t|tojson }}}'
    nasty = 'a"b\\c\nd\u2028{{ x }}'
    made = json.loads(say(source, "json", title=nasty, labels={nasty: nasty}, n=3, t=None))
    assert made == {"title": nasty, "labels": {nasty: nasty}, "n": 3, "at": None}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=60), st.sampled_from(["feishu", "slack", "telegram", "html", "dingtalk", "wecom"]))
def test_no_value_opens_a_tag_or_a_link(value: str, fmt: str) -> None:
    text = say(
        "{{ x }}{{ x ~ x }}{{ [x]|join }}{{ x|upper|string }}{% set y %}{{ x }}{% endset %}{{ y }}{{ y|replace('&lt;', '<') }}",
        fmt,
        x="<" + value + "](",
    )
    assert "<" not in text
    if fmt in ("feishu", "dingtalk", "wecom"):  # the others do not know this form of a link
        assert "](" not in text


@pytest.mark.parametrize(
    "source",
    [
        "{{ x }}",
        "{{ x ~ '' }}",
        "{{ bold(x) }}",
        "{{ x|escape|upper }}",
        "{{ (bold('a') ~ x)|replace('b', 'b') }}",
        "{{ bold('a') ~ x }}",
        "{{ bold('a') + x }}",
        "{% macro m(v) %}{{ v }}{% endmacro %}{{ m(x) }}",
        "{% set y %}{{ x }}{% endset %}{{ y }}",
        "{% set y %}{{ x }}{% endset %}{{ y.replace('&lt;', '<') }}",
        "{{ [bold('a'), x]|join(x) }}",
        "{{ x.split('&')|first }}",
        "{{ '<b>'|replace('b', x) }}",
        "{{ {'a': x} }}",
        "{{ [x, [x]] }}",
        "{{ link(x, 'https://a/') }}",
        "{{ link('a', 'https://a/' ~ x) }}",
        "{{ url('https://a/' ~ x) }}",
        "{{ color_severity(x) }}",
        "{{ to_html(x) }}",
        "{{ x|tojson }}",
    ],
)
@pytest.mark.parametrize("fmt", ["html", "feishu"])
def test_escaping_cannot_be_lost_on_the_way(source: str, fmt: str) -> None:
    assert "<at" not in say(source, fmt, x='<at id=all></at>"')
    assert "&amp;lt;" not in say("{{ bold(x) }}{{ x ~ bold(x) }}{% macro m(v) %}{{ v }}{% endmacro %}{{ m(bold(x)) }}", fmt, x="<")


def test_safe_is_refused_with_the_reason() -> None:
    with pytest.raises(TemplateFailed, match=r"line 2: \|safe is not available"):
        say("a\n{{ labels.x|safe }}")


def test_links_cannot_be_broken_out_of() -> None:
    assert say("{{ link('a', x) }}", "feishu", x="javascript:alert(1)") == "a"
    assert say("{{ link('a', x) }}", "feishu", x="https://a/b) [c](d") == "[a](https://a/b%29%20%5Bc%5D%28d)"
    assert say("{{ link('a', x) }}", "slack", x="https://a/?b|c>&d=1") == "<https://a/?b%7Cc%3E&amp;d=1|a>"
    assert say("{{ link('a', x) }}", "html", x='https://a/"onclick="x') == '<a href="https://a/%22onclick=%22x">a</a>'


# --- helpers ---------------------------------------------------------------------------------------------------------------------------


def test_helpers_of_the_reference() -> None:
    alerts = [{"labels": {"host": "a"}}, {"labels": {"host": "b"}}, {"labels": {"host": "a"}}, {"labels": {}}]
    note = '{"url": "u", "list": [{"name": "n0", "uid": 1}, {"name": "n1", "uid": 7777}, {"name": "n2", "uid": 7777}]}'
    for source, expected in {
        "{{ date(1767225600) }}": "2026-01-01 08:00:00",
        "{{ date(1767225600, '%H:%M %b %d %a') }}": "08:00 Jan 01 Thu",
        "{{ date('2006-01-02 15:04:05', 1767225600) }}": "2026-01-01 08:00:00",
        "{{ 1767225600|date('15:04 MST -0700') }}": "08:00 CST +0800",
        "{{ date(0) }}{{ date(none) }}{{ date(missing) }}{{ date(10 ** 18) }}": "",
        "{{ ago(1767229700) }}": "5 min ago",
        "{{ duration(93784) }}": "1 d 2 h",
        "{{ duration(86404) }}": "1 d",
        "{{ fire_reason() }}": "[Triggered]",
        "{{ severity_name('Critical') }}, {{ progress_name('Processing') }}": "Critical, Processing",
        "{{ join_alert_labels('host', '/') }} {{ alert_labels('host')|length }}": "a/b 2",
        "{{ join_alert_labels('none') }}": "",
        "{{ json_get(note, 'list.0.name') }}": "n0",
        "{{ json_get(note, 'list.#') }}": "3",
        "{{ json_get(note, 'list.#.name') }}": "n0, n1, n2",
        "{{ json_get(note, 'list.#(uid==7777).name') }}": "n1",
        "{{ json_get(note, 'list.#(uid==7777)#.name')|join('+') }}": "n1+n2",
        "{{ json_get('{', 'a') }}{{ json_get(note, 'a.b.c') }}{{ json_get(missing, 'a') }}": "",
        "{{ in_list('b', 'a', 'b') }} {{ in_list('c', ['a', 'b']) }} {{ 'host' in ['host'] }}": "true false true",
        "{{ to_html('', missing, none, 'x', 'y') }}": "x",
        "{{ truncate_bytes('中文字符', 9) }}|{{ truncate_bytes('abc', 3) }}": "中文…|abc",
        "{{ 'abcdef'|truncate(4) }}": "abc…",
        "{{ severity_color('Critical') }}": "#d93026",
        "{{ labels['a.b'] }} {{ labels.get('q', 'z') }}": "dotted z",
        "{% for k, v in labels.items() if k not in ('a.b',) %}{{ k }}={{ v }};{% endfor %}": "items=kept;",
        "{{ a.b.c.d }}{{ creator.name }}{{ none }}": "",
        "{{ alerts|selectattr('labels.host')|map(attribute='labels.host')|unique|join(',') }}": "a,b",
        "{% set ns = namespace(n=0) %}{% for a in alerts %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}": "4",
        "{% for g in alerts|groupby('labels.host', default='-') %}{{ g.grouper }}{{ g.list|length }}{% endfor %}": "-1a2b1",
    }.items():
        assert say(source, zone="Asia/Shanghai", alerts=alerts, note=note, labels={"a.b": "dotted", "items": "kept"}) == expected, source
    assert (
        say("{{ ago(1767229700) }} {{ color_severity('Critical') }} {{ duration(3660) }}", "feishu", "zh-hans")
        == "5 分钟前 <font color='red'>严重</font> 1 小时 1 分钟"
    )
    assert (
        say("{{ fire_reason() }}", language="zh-CN", event="escalated", layer_idx=1, possible_repeat=True) == "【升级到第 2 层，可能重复】"
    )
    assert say("{{ date(1767225600) }}", zone="No/Where") == "2026-01-01 00:00:00"


def test_a_failure_names_the_line() -> None:
    for source, message in {
        "a\nb {{ c": "line 2",
        "a\n\n{{ 1 / 0 }}": "line 3: ZeroDivisionError",
        "a\n{% if %}": "line 2",
        "{{ x }}\n{{ x|nofilter }}": "line 2: No filter named 'nofilter'",
        "{{ x }}\n{{ missing() }}": "line 2: 'missing' is undefined",
        "\n\n{% macro m() %}\n{{ 'a' % 1 }}\n{% endmacro %}{{ m() }}": "line 5|line 4",
    }.items():
        with pytest.raises(TemplateFailed, match=message):
            say(source)
        with pytest.raises(TemplateFailed, match=message):  # the failure is remembered, not the first half of it
            say(source)


def test_threads_do_not_share_a_format() -> None:
    wrong: list[str] = []

    def work(fmt: str, expected: str) -> None:
        for _ in range(300):
            if (text := say("{% for i in range(3) %}{{ x }}{% endfor %}", fmt, x="<*")) != expected * 3:
                wrong.append(text)

    threads = [
        threading.Thread(target=work, args=pair)
        for pair in (("html", "&lt;*"), ("feishu", "&#60;&#42;"), ("plain", "<*"), ("slack", "&lt;∗"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- the Context is bounded ----------------------------------------------------------------------------------------------------------------


def big_context(text: str, count: int = 60, labels: int = 200) -> events.Context:
    many = {f"{text[:100]}{number}": text for number in range(labels)}
    person = {"id": 1, "name": text, "email": text}
    return events.build(
        "triggered",
        id="a",
        num="b",
        title=text,
        description=text,
        severity="Critical",
        progress="Triggered",
        detail_url="https://x.example.com/" + "a" * 300,
        start_time=NOW,
        labels=many,
        alerts=[{"title": text, "description": text, "severity": "Critical", "start_time": NOW, "labels": many}] * count,
        alert_count=1000,
        responders=[person] * 100,
        creator=person,
        closer=person,
        acknowledger=person,
        workspace={"id": 1, "name": text},
        impact=text,
        root_cause=text,
        resolution=text,
        images=[{"src": "https://x/" + text, "alt": text}] * 50,
        links=[{"title": text, "url": "https://x/" + "b" * 3000}] * 50,
    )


@pytest.mark.parametrize("text", ["x" * 5000, "中" * 5000, "\x01" * 5000, '"' * 5000, "\ud800" * 5000, "🔥" * 5000, "a\x00b\n" * 2000])
def test_the_context_stays_within_its_bounds(text: str) -> None:
    context = big_context(text)
    assert events.size_of(context) <= events.MAX_BYTES
    assert len(context["alerts"]) <= 20
    assert context["alert_count"] == 1000 and context["alerts_left_out"] == 1000 - len(context["alerts"])
    assert context["detail_url"].endswith("a" * 300) and context["links"] == []
    assert "\n" not in context["title"] and "\x00" not in json.dumps(context, ensure_ascii=False)
    assert json.loads(json.dumps(context)) == context
    assert events.bounded(context) == context
    for fmt in MESSAGE_FORMATS:
        assert render(default_source("triggered", fmt, "en"), context, fmt=fmt, language="en")  # type: ignore[arg-type]


def test_a_small_context_is_kept_as_it_is() -> None:
    context = events.build(
        "refire", id="1", num="2", title="t", severity="Info", progress="Triggered", detail_url="https://x/", start_time=NOW, labels={"a": "b"},
        alerts=[{"title": "t", "severity": "Info", "start_time": 5, "labels": {"a": "b"}}],
    )  # fmt: skip
    assert events.bounded(context) == context
    assert context["start_time"] == int(NOW.timestamp()) and context["end_time"] == 0 and context["fire_type"] == "refire"
    assert set(context) == set(events.Context.__annotations__)
    assert context["alerts"][0]["labels"] == {"a": "b"} and context["alerts_left_out"] == 0
    with pytest.raises(ValueError, match="unknown event"):
        events.build("fired", id="1", num="2", title="t", severity="Info", progress="Triggered", detail_url="", start_time=0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=400), st.integers(0, 40), st.integers(0, 60))
def test_whatever_comes_in_the_bound_holds(text: str, alerts: int, labels: int) -> None:
    assert events.size_of(big_context(text * 8, alerts, labels)) <= events.MAX_BYTES


# --- which text, and what when it fails ------------------------------------------------------------------------------------------------


def row(**values: Any) -> TemplateRow:
    return {"id": 1, "event": "triggered", "kind": "feishu", "language": "", "subject": "", "body": "custom {{ title }}", **values}  # type: ignore[typeddict-item]


def deliver(rows: list[TemplateRow], event: str = "triggered", kind: str = "feishu", fmt: str = "feishu", language: str = "en") -> Rendered:
    return render_or_default(rows, event, sample(language, "critical", event), kind=kind, fmt=fmt, language=language, now=SAMPLE_NOW)  # type: ignore[arg-type]


def test_the_nearest_text_is_chosen() -> None:
    rows = [
        row(id=1, kind="html"),
        row(id=2, kind="email"),
        row(id=3, kind="email", language="zh-hans"),
        row(id=4, kind="email", event="refire"),
        row(id=5, kind="email", event="closed"),
    ]

    def chosen(event: str, kind: str, fmt: str, language: str) -> int | None:
        found = choose(rows, event, kind, fmt, language)
        return found and found["id"]

    assert chosen("triggered", "email", "html", "en") == 2
    assert chosen("triggered", "email", "html", "zh-CN") == 3
    assert chosen("triggered", "other_mail", "html", "en") == 1
    assert chosen("refire", "email", "html", "en") == 4
    assert chosen("escalated", "email", "html", "zh-hans") == 3
    assert chosen("closed", "email", "html", "en") == 5
    assert chosen("acknowledged", "email", "html", "en") is None
    assert chosen("triggered", "sms", "plain", "en") is None


def test_a_text_for_a_family_serves_all_its_kinds() -> None:
    rows = [row(id=1, kind="plain"), row(id=2, kind="sms"), row(id=3, kind="twilio_sms"), row(id=4, kind="", event="closed")]
    found = [
        choose(rows, "triggered", kind, "plain", "en", family)
        for kind, family in (("twilio_sms", "sms"), ("http_sms", "sms"), ("sandbox", ""))
    ]
    assert [one and one["id"] for one in found] == [3, 2, 1]
    assert choose(rows, "closed", "sandbox", "plain", "en", "") is None, "no family is not a family"
    given = {"fmt": "plain", "language": "en", "rows": [row(id=7, kind="sms", event="bundle", body="{{ incidents|length }}")]}
    assert (
        render_bundle(sample("en", "critical", "bundle")["incidents"][:2], kind="http_sms", family="sms", limit=99, **given)[0].text == "2"
    )  # type: ignore[arg-type]


def test_a_text_that_fails_is_replaced_and_reported() -> None:
    good = deliver([row()])
    assert good == Rendered("[#a1b2c3] Order service error rate above 5%", "custom Order service error rate above 5%", None, 1, None)
    default = deliver([])
    assert default.error is None and default.template_id is None
    for body, error in {"a\n{{ 1 / 0 }}": "line 2: ZeroDivisionError", "{{": "line 1", "{{ labels.none }}": "empty"}.items():
        broken = deliver([row(body=body)])
        assert broken.text == default.text and broken.template_id == 1 and error in (broken.error or "")
    broken = deliver([row(subject="{{ 1 / 0 }}")])
    assert broken.text == default.text and broken.subject == default.subject and "ZeroDivision" in (broken.error or "")


def test_mail_has_both_parts() -> None:
    mail = deliver([row(kind="email", body="<h1>{{ title }}</h1>", subject="S {{ num }}")], kind="email", fmt="html")
    assert mail.html == "<h1>Order service error rate above 5%</h1>" and mail.subject == "S a1b2c3"
    assert "#a1b2c3" in mail.text and "<" not in mail.text


@pytest.mark.parametrize(("language", "parts"), [
    ("en", ["Alerts (25)", "and 5 more", "Labels", "What happened so far", "Who was told", "Li Lei · SMS", "delivered", "What comes next", "Escalation to level 2"]),
    ("zh-hans", ["关联告警 (25)", "另有 5 条", "标签", "处理过程", "已通知", "李雷 · SMS", "已送达", "后续计划", "升级到第 2 层"]),
])  # fmt: skip
def test_a_mail_is_the_whole_report_in_both_parts(language: str, parts: list[str]) -> None:
    context = events.addressed(
        sample(language, "many"), recipient={"name": "x", "language": language, "time_zone": "Asia/Shanghai"}, actions_url="https://x.example.com/i/1/"
    )  # fmt: skip
    mail = render_or_default((), "triggered", context, kind="email", fmt="html", language=language, now=SAMPLE_NOW)
    tags = _Tags()
    tags.feed(mail.html or "")
    for text in (mail.text, tags.words):
        assert not [part for part in parts if part not in text]
        assert "order-19" in text and "(Asia/Shanghai)" in text.replace("（", "(").replace("）", ")")
    assert "https://x.example.com/i/1/?ack=1" in mail.text and "https://x.example.com/i/1/?ack=1" in tags.links
    assert len((mail.html or "").encode()) < 100_000, "Gmail cuts mails at 102 kB"


def test_pictures_are_links_in_a_mail() -> None:
    html = preview(default_source("triggered", "html", "en"), fmt="html")
    assert 'href="https://flashduty.example.com/image/1.png"' in html and "<img" not in html


def test_a_mail_of_what_was_stored_before_has_no_empty_parts() -> None:
    context = {key: value for key, value in sample("en").items() if key not in ("timeline", "told", "plan")}
    mail = render_or_default((), "triggered", events.addressed(context), kind="email", fmt="html", language="en", now=SAMPLE_NOW)
    assert mail.error is None and "Who was told" not in mail.text and "What comes next" not in (mail.html or "")


def test_the_fullest_context_is_a_mail_all_the_same() -> None:
    mail = render_or_default(
        (), "triggered", big_context("<&> \"' 数据库", 400, 60), kind="email", fmt="html", language="zh-hans", now=SAMPLE_NOW
    )
    assert mail.error is None and "另有" in mail.text


def test_there_is_always_something_to_send() -> None:
    broken = render_or_default(
        [row(body="{{")], "triggered", {"title": "<b>", "num": "7", "detail_url": "https://x/"}, kind="k", fmt="html", language="en", default={"": "{{ 1 / 0 }}"}
    )  # fmt: skip
    assert broken.html and "&lt;b&gt;" in broken.html and broken.subject
    unknown = render_or_default([], "no such event", {"title": "t <", "num": "7"}, kind="k", fmt="feishu", language="en")
    assert unknown.text.lstrip("\u200b") == "&#35;7 t &#60;" and unknown.subject == "#7 t <"


def test_a_webhook_has_no_default_text_but_takes_a_body() -> None:
    def body(source: str | None) -> Rendered:
        extra = None if source is None else {"": source}
        return render_or_default([], "triggered", {"title": 'a"b', "num": "7"}, kind="webhook", fmt="webhook", language="en", default=extra)

    assert body(None).text == "" and body(None).error is None
    assert body('{"t": "{{ title }}"}').text == '{"t": "a\\"b"}'
    broken = body("{{ 1 / 0 }}")
    assert broken.text == "" and "ZeroDivisionError" in (broken.error or "") and broken.template_id is None


def test_a_bundle_takes_what_fits_and_names_it_all() -> None:
    incidents = [
        {"id": str(n), "num": f"{n:06x}", "title": "磁盘 " * 60, "severity": "Critical", "event": "triggered", "url": f"https://x/{n}", "possible_repeat": n == 2}
        for n in range(500)
    ]  # fmt: skip
    for limit in (4_000, 20_000):
        message, taken = render_bundle(incidents, kind="dingtalk", fmt="dingtalk", language="zh-hans", limit=limit)
        assert 1 < taken < 500 and len(message.text.encode()) <= limit
        assert re.findall(r"#\[(\w+)\]\(https://x/\d+\)", message.text) == [i["num"] for i in incidents[:taken]]
        assert f"另有 {500 - taken} 个" in message.text and message.text.count("可能重复") == 1
        one_more, _ = render_bundle(incidents[: taken + 1], kind="dingtalk", fmt="dingtalk", language="zh-hans", limit=10**6)
        assert taken == 200 or len(one_more.text.encode()) > limit - 100
    assert render_bundle(incidents[:1], kind="sms", fmt="plain", language="en", limit=1)[1] == 1
    assert render_bundle(incidents[:5], kind="sms", fmt="plain", language="en", limit=10**6)[1] == 5


# --- the rows ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def texts(db: None) -> TemplateSet:
    return TemplateSet.objects.create(name="ours")


def test_the_check_on_save_names_field_line_and_sample(texts: TemplateSet) -> None:
    def problems(**values: Any) -> dict[str, list[str]]:
        with pytest.raises(ValidationError) as caught:
            Template(template_set=texts, event="triggered", **{"kind": "feishu", "body": "{{ title }}", **values}).full_clean()
        return dict(caught.value.message_dict)

    assert "line 2" in problems(body="a\n{{ oops")["body"][0]
    found = problems(body="{{ title }}\n{{ labels.resource + 1 }}")["body"][0]
    assert "line 2" in found and "“critical”" in found and "{% if labels.x %}" in found
    assert "“bare”" in problems(body="{{ title }}{{ labels.service.upper() }}")["body"][0]
    assert "line 1" in problems(subject="{{ num")["subject"][0]
    assert "empty for every sample" in problems(body="{{ labels.nobody_has_this }}")["body"][0]
    # What fails whatever the data is not blamed on a sample.
    assert "“critical”" not in problems(body="a\n{{ oops")["body"][0]
    found = problems(body="{{ title }}\nsvc={{ Labels.service }}")["body"][0]
    assert "line 2" in found and "did you mean labels?" in found and "“critical”" not in found
    assert "there are: " in problems(body="{{ title }}{% if zzz %}x{% endif %}")["body"][0]
    Template(
        template_set=texts, event="refire", kind="sms", body="{% set a = num %}{{ a }}{% for b in alerts %}{{ b.title }}{% endfor %}"
    ).full_clean()
    assert "at most 65536" in problems(body="x" * 70_000)["body"][0]
    Template(template_set=texts, event="closed", kind="email", body="<p>{{ title }}</p>", subject="{{ num }}").full_clean()


def test_one_text_for_each_purpose(texts: TemplateSet) -> None:
    Template.objects.create(template_set=texts, event="triggered", kind="sms", body="a")
    with pytest.raises(ValidationError, match="already"):
        Template(template_set=texts, event="triggered", kind="sms", body="b").full_clean()
    Template(template_set=texts, event="triggered", kind="sms", body="b", language="en").full_clean()


def test_failures_are_reported_once_a_minute_and_gone_after_the_next_check(texts: TemplateSet, django_assert_num_queries: Any) -> None:
    template = Template.objects.create(template_set=texts, event="triggered", kind="sms", body="a")
    with django_assert_num_queries(1):
        assert report_failure(template.pk, "line 1: broken", NOW)
    assert not report_failure(template.pk, "line 1: broken again", NOW + timedelta(seconds=30))
    assert report_failure(template.pk, "later", NOW + timedelta(seconds=61))
    template.refresh_from_db()
    assert (template.last_error, template.last_error_at) == ("later", NOW + timedelta(seconds=61))
    template.full_clean()
    assert (template.last_error, template.last_error_at) == ("", None)
    assert not report_failure(0, "no such row", NOW)


class Someone:
    def __init__(self, role: str, *teams: int) -> None:
        self.role = role
        self.teams = teams

    def team_ids(self) -> tuple[int, ...]:
        return self.teams


def test_who_sees_which_set(db: None) -> None:
    for name, team, status in (("all", None, "enabled"), ("a", 1, "enabled"), ("b", 2, "disabled"), ("gone", None, "deleted")):
        made = TemplateSet.objects.create(name=name, team_id=team, status=status)
        Template.objects.create(template_set=made, event="triggered", kind="sms", body=name)

    def seen(member: Someone) -> list[str]:
        names = list(TemplateSet.objects.visible_to(member).values_list("name", flat=True))
        assert sorted(Template.objects.visible_to(member).values_list("body", flat=True)) == sorted(names)
        return names

    assert seen(Someone("administrator")) == ["a", "all", "b"]
    assert seen(Someone("manager", 1)) == ["a", "all"]
    assert seen(Someone("viewer")) == ["all"]


def test_rows_feed_a_message(texts: TemplateSet, django_assert_num_queries: Any) -> None:
    Template.objects.create(template_set=texts, event="triggered", kind="feishu", body="{{ title }}!")
    with django_assert_num_queries(1):
        assert deliver(texts.rows()).text == "Order service error rate above 5%!"
    texts.status = TemplateSet.Status.DISABLED
    assert texts.rows() == []
