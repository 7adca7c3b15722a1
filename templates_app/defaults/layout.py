"""The e-mails: one table, inline styles, readable in light and dark mode and with pictures switched off.

Mail programs drop style sheets and scripts, some turn colours around in dark mode. So the frame says that it knows both modes, text
stands on colours it sets itself, and nothing depends on the few rules in the head that only some programs read. Old Outlook knows no
max-width and gets a table of its own around the card; Outlook on the web marks dark mode with attributes (data-ogsc, data-ogsb).

Images are links with their words and never shown in the mail: whoever serves a picture would learn who reads which page when, and the
dashboards they come from can seldom be reached from a phone. The words of a language are put in for [[names]].
"""

import re
from collections.abc import Mapping
from typing import Final

_DARK = {
    ".page": "background:#17181a",
    ".card": "background:#232528;border-color:#44474c",
    ".ink": "color:#e8eaed",
    ".dim": "color:#aeb4bb",
    ".line": "border-color:#3a3d42",
    ".plain": "background:#3a3d42;color:#e8eaed",
    ".line a": "color:#8ab4f8",
}


def _rules(prefix: str, looks: Mapping[str, str]) -> str:
    return "\n".join(f"{prefix}{name} {{ {look.replace(';', ' !important;')} !important; }}" for name, look in looks.items())


_HEAD = (
    """\
<!DOCTYPE html>
<html lang="@lang@">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="supported-color-schemes" content="light dark">
<meta name="format-detection" content="telephone=no, date=no, address=no">
<title>@title@</title>
<style>
:root { color-scheme: light dark; supported-color-schemes: light dark; }
.line a { color: #1a73e8; text-decoration: none; }
@media (prefers-color-scheme: dark) {
"""
    + _rules("", _DARK)
    + "\n}\n"
    + _rules("[data-ogsc] ", {name: look for name, look in _DARK.items() if look.startswith("color")})
    + "\n"
    + _rules("[data-ogsb] ", {name: look for name, look in _DARK.items() if look.startswith("background")})
    + """
@media (max-width: 480px) {
.pad { padding-left: 16px !important; padding-right: 16px !important; }
.edge { padding: 8px 6px !important; }
}
</style>
</head>
<body class="page" style="margin:0;padding:0;background:#f1f3f4;-webkit-text-size-adjust:100%;font-family:-apple-system,'Segoe UI','PingFang SC','Microsoft YaHei','Noto Sans CJK SC',Helvetica,Arial,sans-serif">
@preheader@<table role="presentation" class="page" width="100%" cellpadding="0" cellspacing="0" border="0" style="background:#f1f3f4"><tr><td class="edge" align="center" style="padding:24px 12px">
<!--[if mso]><table role="presentation" width="600" align="center" cellpadding="0" cellspacing="0" border="0"><tr><td><![endif]-->
<table role="presentation" class="card" width="100%" cellpadding="0" cellspacing="0" border="0" style="max-width:600px;background:#ffffff;border:1px solid #dadce0;border-radius:8px;text-align:left">
"""
)

_TAIL = """\
</table>
<!--[if mso]></td></tr></table><![endif]-->
</td></tr></table>
</body>
</html>
"""

# What a list of mails shows after the subject. Filled up, or the program goes on with the first words of the card.
_PREHEADER = (
    '<div style="display:none;max-height:0;overflow:hidden;opacity:0;font-size:1px;line-height:1px;color:#f1f3f4">@words@'
    + "&#847;&zwnj;&nbsp;" * 40
    + "</div>\n"
)

BAR = '<tr><td style="height:6px;line-height:6px;font-size:0;border-radius:8px 8px 0 0;background:{{ severity_color(status if status == "Ok" else severity) }}">&nbsp;</td></tr>\n'

_INK, _DIM = "#202124", "#5f6368"


def mail(lang: str, rows: str, *, title: str = "Flashduty", preheader: str = "") -> str:
    """A whole HTML template around table rows; `title` and `preheader` are Jinja."""
    before = _PREHEADER.replace("@words@", preheader) if preheader else ""
    return _HEAD.replace("@lang@", lang).replace("@title@", title).replace("@preheader@", before) + rows.strip() + "\n" + _TAIL


def cell(content: str, style: str = "padding:8px 24px", tone: str = "ink") -> str:
    """One row of the card; `ink` is ordinary text, `dim` is grey and small."""
    look = f"color:{_INK};font-size:15px;line-height:22px" if tone == "ink" else f"color:{_DIM};font-size:13px;line-height:19px"
    return f'<tr><td class="{tone} pad" style="{style};{look}">{content}</td></tr>\n'


def field(words: str, value: str, condition: str = "") -> str:
    """A line `words: value`, left out where the Jinja condition does not hold."""
    line = (
        f'<tr><td class="dim" style="padding:3px 16px 3px 0;color:{_DIM};font-size:14px;line-height:20px;white-space:nowrap;vertical-align:top">{words}</td>'
        f'<td class="ink" style="padding:3px 0;color:{_INK};font-size:14px;line-height:20px;word-break:break-word">{value}</td></tr>\n'
    )
    return f"{{% if {condition} %}}\n{line}{{% endif %}}\n" if condition else line


def fields(*lines: str) -> str:
    """The card's list of fields."""
    return cell('<table role="presentation" cellpadding="0" cellspacing="0" border="0">\n' + "".join(lines) + "</table>")


def button(words: str, address: str, primary: bool) -> str:
    """A link that looks like a button in every mail program; `address` is a Jinja expression."""
    look = "background:#1a73e8;color:#ffffff" if primary else "background:#e8eaed;color:#202124"
    return (
        f'<a href="{{{{ {address}|url }}}}"{"" if primary else " class=plain"} style="display:inline-block;margin:4px 8px 4px 0;padding:10px 20px;border-radius:6px;'
        f'font-size:15px;font-weight:600;text-decoration:none;{look}">{words}</a>'
    )


def pill(level: str) -> str:
    """A severity's word on its colour; `level` is a Jinja expression. White on it is read in both modes, coloured words are not."""
    return (
        '<span style="display:inline-block;padding:1px 8px;border-radius:9px;font-size:12px;line-height:18px;font-weight:600;white-space:nowrap;'
        f'color:#ffffff;background:{{{{ severity_color({level}) }}}}">{{{{ severity_name({level}) }}}}</span>'
    )


def _section(title: str, condition: str, rows: str) -> str:
    """A part of the report under a heading, a table of `rows`; left out where the Jinja condition does not hold."""
    return (
        f"{{% if {condition} %}}\n"
        + f'<tr><td class="ink pad" style="padding:18px 24px 2px;color:{_INK};font-size:13px;line-height:20px;font-weight:600">{title}</td></tr>\n'
        + '<tr><td class="pad" style="padding:0 24px 2px"><table width="100%" cellpadding="0" cellspacing="0" border="0">\n'
        + rows
        + "</table></td></tr>\n{% endif %}\n"
    )


def _row(*cells: tuple[str, str]) -> str:
    """A line of a section: (`ink` or `dim`, with more style after a colon; content)."""
    written = []
    for look, content in cells:
        tone, _colon, style = look.partition(":")
        color = _INK if tone == "ink" else _DIM
        written.append(
            f'<td class="{tone} line" style="padding:6px 0;border-top:1px solid #e8eaed;vertical-align:top;font-size:13px;line-height:19px;color:{color};{style}">{content}</td>'
        )
    return "<tr>" + "".join(written) + "</tr>\n"


_NARROW = "white-space:nowrap;width:1%;padding-right:14px"
_LONG = "word-break:break-word;overflow-wrap:anywhere"
_MINUTE = '"%m-%d %H:%M"'

_HEADLINE = cell(
    '<div class="dim" style="color:#5f6368;font-size:13px">{{ fire_reason() }} #{{ num }}</div>'
    '<div style="font-size:20px;line-height:28px;font-weight:600;word-break:break-word">{{ title }}</div>',
    "padding:20px 24px 4px",
)
_COMMON = (
    field("[[severity]]", pill("severity") + '{% if status == "Ok" %} ' + pill("status") + "{% endif %}"),
    field("[[workspace]]", "{{ workspace.name }}", "workspace.name"),
    field("[[since]]", "{{ date(start_time) }} ({{ ago(start_time) }})"),
    field("[[resource]]", '{{ join_alert_labels("resource")|truncate(300) }}', 'join_alert_labels("resource")'),
    field("[[responders]]", '{{ responders|map(attribute="name")|join("[[comma]]")|truncate(300) }}', "responders"),
    field("[[rule]]", "{{ assigned_to.rule_name }}[[comma]][[level]]", "assigned_to.rule_name"),
    field("[[impact]]", "{{ impact|truncate(600) }}", "impact"),
)  # fmt: skip
_DESCRIPTION = (
    "{% if description %}\n"
    + cell('<div style="white-space:pre-wrap;word-break:break-word">{{ description|truncate(2000) }}</div>')
    + "{% endif %}\n"
)
_ALERTS = _section(
    "[[alerts]] ({{ alert_count }})",
    "alerts",
    "{% for alert in alerts %}\n"
    + _row(
        ("ink:" + _NARROW, pill("alert.status or alert.severity")),
        (
            "ink:" + _LONG,
            "{{ alert.title|truncate(160) }}"
            '<div class="dim" style="color:#5f6368;font-size:12px;line-height:18px">{% if alert.status == "Ok" %}[[was]] {{ severity_name(alert.severity) }}. {% endif %}'
            "[[since]] {{ date(alert.start_time, " + _MINUTE + ") }}"
            "{% for key, value in alert.labels.items() %}{% if loop.index <= 12 and (key == 'resource' or labels[key] != value) %} · {{ key|truncate(40) }}={{ value|truncate(80) }}{% endif %}{% endfor %}</div>",
        ),
    )
    + "{% endfor %}\n{% if alerts_left_out %}\n"
    + _row(("dim:", "&nbsp;"), ("dim:", "[[more]]"))
    + "{% endif %}\n",
)
_LABELS = _section(
    "[[labels]]",
    "labels",
    "{% for key, value in labels.items() %}\n"
    + _row(("dim:width:30%;padding-right:14px;" + _LONG, "{{ key|truncate(80) }}"), ("ink:" + _LONG, "{{ value|truncate(300) }}"))
    + "{% endfor %}\n",
)
_ATTACHED = _section(
    "[[attached]]",
    "images or links",
    "{% for image in images %}\n"
    + _row(("dim:" + _NARROW, "[[image]]"), ("ink:" + _LONG, "{{ link(image.alt|truncate(120) or '[[image]]', image.href or image.src) }}"))
    + "{% endfor %}\n{% for item in links %}\n"
    + _row(("dim:" + _NARROW, "[[link]]"), ("ink:" + _LONG, "{{ link(item.title|truncate(120), item.url) }}"))
    + "{% endfor %}\n",
)
_TIMELINE = _section(
    "[[timeline]]",
    "timeline",
    "{% for line in timeline %}\n"
    + _row(("dim:" + _NARROW, "{{ date(line.at, " + _MINUTE + ") }}"), ("ink:" + _LONG, "{{ line.text|truncate(300) }}"))
    + "{% endfor %}\n",
)
_TOLD = _section(
    "[[told]]",
    "told",
    "{% for line in told %}\n"
    + _row(
        ("dim:" + _NARROW, "{{ date(line.at, " + _MINUTE + ") }}"),
        ("ink:" + _LONG, "{{ line.name|truncate(80) }}{% if line.by %} · {{ line.by|truncate(60) }}{% endif %}"),
        ("dim:white-space:nowrap;text-align:right;padding-left:14px", "{{ state_name(line.state) }}"),
    )
    + "{% endfor %}\n",
)
_NEXT = '{% if line.event == "catch_all" %}[[catch_all]]{% elif line.event == "refire" %}[[again]]{% else %}[[next]]{% endif %}'
_PLAN = _section(
    "[[plan]]",
    "plan and progress == 'Triggered'",
    "{% for line in plan %}\n"
    + _row(("dim:" + _NARROW, "{{ date(line.at, " + _MINUTE + ") }}"), ("ink:" + _LONG, _NEXT))
    + "{% endfor %}\n",
)
_FOOT = cell("{% if possible_repeat %}[[repeat]] {% endif %}[[zone]]", "padding:14px 24px 20px", "dim")
_PREVIEW = '{{ severity_name(severity) }} · {{ workspace.name|truncate(40) }} · {{ description|truncate(140) or join_alert_labels("resource")|truncate(140) }}'

_REPORT = (
    BAR
    + _HEADLINE
    + fields(*_COMMON)
    + _DESCRIPTION
    + cell(
        button("[[acknowledge]]", "ack_url()", True) + button("[[details]]", "(actions_url or detail_url)", False), "padding:10px 24px 6px"
    )
    + _ALERTS
    + _LABELS
    + _ATTACHED
    + _TIMELINE
    + _TOLD
    + _PLAN
    + _FOOT
)
_NOTICE = (
    BAR
    + _HEADLINE
    + fields(
        *_COMMON,
        field("[[acknowledged]]", "{{ acknowledger.name }} {{ date(ack_time) }}", "ack_time"),
        field("[[closed]]", "{{ closer.name or '[[automatically]]' }} {{ date(close_time) }}", "close_time"),
        field("[[lasted]]", "{{ duration(close_time - start_time) }}", "close_time"),
        field("[[root_cause]]", "{{ root_cause|truncate(600) }}", "root_cause"),
        field("[[resolution]]", "{{ resolution|truncate(600) }}", "resolution"),
    )
    + cell(button("[[details]]", "(actions_url or detail_url)", True), "padding:12px 24px 6px")
    + _FOOT
)

_TEXT = """\
{{ fire_reason() }} #{{ num }} {{ title }}

[[severity]][[colon]]{{ severity_name(severity) }}{% if status == "Ok" %} ({{ severity_name(status) }}){% endif %}

{% if workspace.name %}
[[workspace]][[colon]]{{ workspace.name }}
{% endif %}
[[since]][[colon]]{{ date(start_time) }} ({{ ago(start_time) }})
{% if responders %}
[[responders]][[colon]]{{ responders|map(attribute="name")|join("[[comma]]")|truncate(300) }}
{% endif %}
{% if assigned_to.rule_name %}
[[rule]][[colon]]{{ assigned_to.rule_name }}[[comma]][[level]]
{% endif %}
{% if impact %}
[[impact]][[colon]]{{ impact|truncate(600) }}
{% endif %}

{% if description %}
{{ description|truncate(2000) }}

{% endif %}
[[acknowledge]][[colon]]{{ ack_url()|url }}
[[details]][[colon]]{{ (actions_url or detail_url)|url }}

{% if alerts %}
[[alerts]] ({{ alert_count }})
{% for alert in alerts %}
- {{ severity_name(alert.status or alert.severity) }} · {{ alert.title|truncate(160) }} · {{ date(alert.start_time, "%m-%d %H:%M") }}{% for key, value in alert.labels.items() %}{% if loop.index <= 12 and (key == "resource" or labels[key] != value) %} · {{ key|truncate(40) }}={{ value|truncate(80) }}{% endif %}{% endfor %}

{% endfor %}
{% if alerts_left_out %}
  [[more]]
{% endif %}

{% endif %}
{% if labels %}
[[labels]]
{% for key, value in labels.items() %}
- {{ key|truncate(80) }}[[colon]]{{ value|truncate(300) }}
{% endfor %}

{% endif %}
{% if images or links %}
[[attached]]
{% for image in images %}
- {{ image.alt|truncate(120) or "[[image]]" }}[[colon]]{{ (image.href or image.src)|url }}
{% endfor %}
{% for item in links %}
- {{ item.title|truncate(120) }}[[colon]]{{ item.url|url }}
{% endfor %}

{% endif %}
{% if timeline %}
[[timeline]]
{% for line in timeline %}
- {{ date(line.at, "%m-%d %H:%M") }} {{ line.text|truncate(300) }}
{% endfor %}

{% endif %}
{% if told %}
[[told]]
{% for line in told %}
- {{ date(line.at, "%m-%d %H:%M") }} {{ line.name|truncate(80) }}{% if line.by %} · {{ line.by|truncate(60) }}{% endif %}[[colon]]{{ state_name(line.state) }}
{% endfor %}

{% endif %}
{% if plan and progress == "Triggered" %}
[[plan]]
{% for line in plan %}
- {{ date(line.at, "%m-%d %H:%M") }} NEXT

{% endfor %}

{% endif %}
{% if possible_repeat %}[[repeat]] {% endif %}[[zone]]

""".replace("NEXT", _NEXT)

_NAME: Final = re.compile(r"\[\[(\w+)\]\]")


def report(lang: str, words: Mapping[str, str]) -> str:
    """The mail that pages: everything that is known, in the words of a language; the names are those in this file."""
    return _worded(mail(lang, _REPORT, title="{{ title }}", preheader=_PREVIEW), words)


def report_text(words: Mapping[str, str]) -> str:
    """The same as plain text, which is part of every mail."""
    return _worded(_TEXT, words)


def notice(lang: str, words: Mapping[str, str]) -> str:
    """The mail that says what became of an incident."""
    return _worded(mail(lang, _NOTICE, title="{{ title }}", preheader=_PREVIEW), words)


def _worded(source: str, words: Mapping[str, str]) -> str:
    return _NAME.sub(lambda found: words[found[1]], source)
