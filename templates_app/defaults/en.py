"""The default texts in English: for each event a subject, plain text, markdown, e-mail and voice."""

from typing import Final

from templates_app.defaults.layout import BAR, button, cell, field, fields, mail

_SUBJECT = "[#{{ num }}] {{ title }}"

_PAGE_PLAIN = """\
{{ fire_reason() }} #{{ num }} {{ title }}
Severity: {{ severity_name(severity) }}{% if workspace.name %}, workspace: {{ workspace.name }}{% endif %}

Since: {{ date(start_time) }} ({{ ago(start_time) }})
{% if alert_count > 1 %}
Alerts: {{ alert_count }}
{% endif %}
{% if join_alert_labels("resource") %}
Resource: {{ join_alert_labels("resource")|truncate(120) }}
{% endif %}
{% if description %}
{{ description|truncate(200) }}
{% endif %}
{% if ack_url() %}
Acknowledge: {{ ack_url()|url }}
{% endif %}
"""

_PAGE_MARKDOWN = """\
{{ bold(fire_reason()) }} #{{ num }} {{ bold(title) }}
{% if workspace.name %}
Workspace: {{ workspace.name }}
{% endif %}
Severity: {{ color_severity(severity) }}
Since: {{ date(start_time) }} ({{ ago(start_time) }})
{% if alert_count > 1 %}
Alerts: {{ alert_count }}
{% endif %}
{% if join_alert_labels("resource") %}
Resource: {{ join_alert_labels("resource")|truncate(200) }}
{% endif %}
{% if responders %}
Responders: {{ responders|map(attribute="name")|join(", ")|truncate(200) }}
{% endif %}
{% if description %}
{{ description|truncate(600) }}
{% endif %}
{% for link_ in links %}
{{ link(link_.title, link_.url) }}
{% endfor %}
{{ link("Details", detail_url) }}{% if ack_url() %} | {{ link("Acknowledge", ack_url()) }}{% endif %}

"""

_PAGE_VOICE = """\
{% if event == "escalated" %}An incident was escalated to you.{% elif event == "refire" %}An incident is still waiting.{% else %}You have a new incident.{% endif %}
{{ severity_name(severity) }}: {{ title|truncate(80, "") }}{% if workspace.name %}, workspace {{ workspace.name|truncate(30, "") }}{% endif %}{% if alert_count > 1 %}, {{ alert_count }} alerts{% endif %}.
"""

_HEADLINE = cell(
    '<div class="dim" style="color:#5f6368;font-size:13px">{{ fire_reason() }} #{{ num }}</div>'
    '<div style="font-size:20px;line-height:28px;font-weight:600;word-break:break-word">{{ title }}</div>',
    "padding:20px 24px 4px",
)
_DESCRIPTION = (
    "{% if description %}\n"
    + cell('<div style="white-space:pre-wrap;word-break:break-word">{{ description|truncate(2000) }}</div>')
    + "{% endif %}\n"
)
_COMMON = (
    field("Severity", "{{ color_severity(severity) }}"),
    field("Workspace", "{{ workspace.name }}", "workspace.name"),
    field("Since", "{{ date(start_time) }} ({{ ago(start_time) }})"),
    field("Alerts", "{{ alert_count }}", "alert_count > 1"),
    field("Resource", '{{ join_alert_labels("resource")|truncate(300) }}', 'join_alert_labels("resource")'),
    field("Responders", '{{ responders|map(attribute="name")|join(", ") }}', "responders"),
)
_LABELS = """\
{% if labels %}
<tr><td style="padding:8px 24px"><table role="presentation" cellpadding="0" cellspacing="0">
{% for key, value in labels.items() %}
<tr><td class="dim" style="padding:2px 12px 2px 0;color:#5f6368;font-size:13px;vertical-align:top">{{ key }}</td><td class="ink" style="padding:2px 0;color:#202124;font-size:13px;word-break:break-all">{{ value|truncate(300) }}</td></tr>
{% endfor %}
</table></td></tr>
{% endif %}
"""
_ALERTS = (
    "{% if alerts|length > 1 %}\n"
    + cell(
        '<ul style="margin:0;padding-left:20px">\n{% for alert in alerts %}\n<li>{{ color_severity(alert.status) }} {{ alert.title|truncate(160) }}</li>\n{% endfor %}\n'
        "{% if alerts_left_out %}\n<li>and {{ alerts_left_out }} more</li>\n{% endif %}\n</ul>"
    )
    + "{% endif %}\n"
)
_LINKS = "{% if links %}\n" + cell("{% for item in links %}{{ link(item.title, item.url) }} &nbsp; {% endfor %}") + "{% endif %}\n"
_FOOT = cell(
    "{% if possible_repeat %}This message may be a repeat. {% endif %}Times are shown in your time zone.", "padding:4px 24px 20px", "dim"
)

_PAGE_HTML = mail(
    "en",
    BAR
    + _HEADLINE
    + fields(*_COMMON)
    + _DESCRIPTION
    + cell(button("Acknowledge", "ack_url()", True) + button("Details", "(actions_url or detail_url)", False), "padding:12px 24px")
    + _ALERTS
    + _LABELS
    + _LINKS
    + _FOOT,
)

_NOTICE_PLAIN = """\
{{ fire_reason() }} #{{ num }} {{ title }}
{% if event == "closed" %}
{% if closer %}Closed by {{ closer.name }}{% elif status == "Ok" %}Closed: all alerts recovered{% else %}Closed automatically{% endif %} at {{ date(close_time) }} after {{ duration(close_time - start_time) }}
{% else %}
Acknowledged{% if acknowledger %} by {{ acknowledger.name }}{% endif %}{% if ack_time %} at {{ date(ack_time) }}{% endif %}

{% endif %}
{% if detail_url %}
{{ detail_url|url }}
{% endif %}
"""

_NOTICE_MARKDOWN = """\
{{ bold(fire_reason()) }} #{{ num }} {{ bold(title) }}
Severity: {{ color_severity(severity) }}
{% if event == "closed" %}
{% if closer %}Closed by {{ closer.name }}{% elif status == "Ok" %}Closed: all alerts recovered{% else %}Closed automatically{% endif %} at {{ date(close_time) }} after {{ duration(close_time - start_time) }}
{% if resolution %}
Resolution: {{ resolution|truncate(300) }}
{% endif %}
{% else %}
Acknowledged{% if acknowledger %} by {{ acknowledger.name }}{% endif %}{% if ack_time %} at {{ date(ack_time) }}{% endif %}

{% endif %}
{{ link("Details", detail_url) }}
"""

_NOTICE_HTML = mail(
    "en",
    BAR
    + _HEADLINE
    + fields(
        *_COMMON,
        field("Acknowledged", "{{ acknowledger.name }} {{ date(ack_time) }}", "ack_time"),
        field("Closed", "{{ closer.name or 'automatically' }} {{ date(close_time) }}", "close_time"),
        field("Lasted", "{{ duration(close_time - start_time) }}", "close_time"),
        field("Resolution", "{{ resolution|truncate(600) }}", "resolution"),
    )
    + cell(button("Details", "(actions_url or detail_url)", True), "padding:12px 24px 20px"),
)

_NOTICE_VOICE = """\
Incident {% if event == "closed" %}closed{% else %}acknowledged{% endif %}: {{ title|truncate(80, "") }}.
"""

_PAGE: Final = {"subject": _SUBJECT, "plain": _PAGE_PLAIN, "markdown": _PAGE_MARKDOWN, "html": _PAGE_HTML, "voice": _PAGE_VOICE}
_NOTICE: Final = {"subject": _SUBJECT, "plain": _NOTICE_PLAIN, "markdown": _NOTICE_MARKDOWN, "html": _NOTICE_HTML, "voice": _NOTICE_VOICE}

_BUNDLE: Final = {
    "subject": "{{ incidents|length }} incidents are waiting",
    "plain": """\
{{ incidents|length }} incidents are waiting
{% for i in incidents %}
#{{ i.num }} {{ severity_name(i.severity) }} {{ i.title|truncate(60 if incidents|length > 10 else 160) }}{% if i.possible_repeat %} (possible repeat){% endif %} {{ i.url|url }}
{% endfor %}
{% if left %}
{{ left }} more follow
{% endif %}
""",
    "markdown": """\
{{ bold(incidents|length ~ " incidents are waiting") }}
{% for i in incidents %}
{{ color_severity(i.severity) }} #{{ link(i.num, i.url) }} {{ i.title|truncate(60 if incidents|length > 10 else 160) }}{% if i.possible_repeat %} (possible repeat){% endif %}

{% endfor %}
{% if left %}
{{ left }} more follow
{% endif %}
""",
    "html": mail(
        "en",
        cell("{{ incidents|length }} incidents are waiting", "padding:20px 24px 4px;font-weight:600")
        + cell(
            "\n{% for i in incidents %}\n<div style=\"padding:4px 0\">{{ link('#' ~ i.num, i.url) }} {{ color_severity(i.severity) }} {{ i.title|truncate(60 if incidents|length > 10 else 160) }}"
            "{% if i.possible_repeat %} (possible repeat){% endif %}</div>\n{% endfor %}\n"
        )
        + cell("{% if left %}{{ left }} more follow{% endif %}", "padding:4px 24px 20px", "dim"),
    ),
    "voice": "{{ incidents|length + left }} incidents are waiting for you.{% if incidents %} The most severe one: {{ incidents[0].title|truncate(80, '') }}.{% endif %}",
}

_CODE: Final = {
    "subject": "Flashduty verification code",
    "plain": "Your Flashduty verification code is {{ code }}, good for {{ minutes }} minutes. Tell it to nobody.",
    "markdown": "Flashduty #code {{ bold(code) }} is your verification code, good for {{ minutes }} minutes. Tell it to nobody.",
    "html": mail(
        "en",
        cell("Your verification code", "padding:20px 24px 4px")
        + cell('<span style="font-size:28px;letter-spacing:4px;font-weight:600">{{ code }}</span>', "padding:8px 24px")
        + cell(
            "Good for {{ minutes }} minutes. Tell it to nobody; if you did not ask for it, ignore this message.",
            "padding:4px 24px 20px",
            "dim",
        ),
    ),
    "voice": "Your verification code is {{ code|list|join(' ') }}, good for {{ minutes }} minutes.",
}

_TEST: Final = {
    "subject": "Flashduty test message",
    "plain": "#test This is a test message from Flashduty.\nChannel: {{ channel_name }}\nSent by {{ sender_name }} at {{ date(sent_at) }}",
    "markdown": "Flashduty #test {{ bold('This is a test message from Flashduty') }}\nChannel: {{ channel_name }}\nSent by {{ sender_name }} at {{ date(sent_at) }}",
    "html": mail(
        "en",
        cell("This is a test message from Flashduty", "padding:20px 24px 4px;font-weight:600")
        + fields(field("Channel", "{{ channel_name }}"), field("Sent by", "{{ sender_name }}"), field("Time", "{{ date(sent_at) }}"))
        + cell("If you read this, the channel works. Nothing needs to be done.", "padding:4px 24px 20px", "dim"),
    ),
    "voice": "This is a test call from Flashduty. Nothing needs to be done.",
}

_NUMBERS: Final = {
    "subject": "The numbers that call you have changed",
    "plain": (
        "Calls about incidents come to you from these numbers from now on:\n{% for number in numbers %}\n{{ number }}\n{% endfor %}\n"
        "Keep them as a contact so that your phone does not block them: {{ card_url|url }}"
    ),
    "markdown": (
        "Calls about incidents come to you from these numbers from now on:\n{% for number in numbers %}\n{{ bold(number) }}\n{% endfor %}\n"
        '{{ link("Keep them as a contact", card_url) }} so that your phone does not block them.'
    ),
    "html": mail(
        "en",
        cell("The numbers that call you have changed", "padding:20px 24px 4px;font-weight:600")
        + cell("Calls about incidents come to you from these numbers from now on:")
        + cell('{% for number in numbers %}\n<div style="font-size:18px;line-height:28px">{{ number }}</div>\n{% endfor %}\n')
        + cell(button("Download the contact card", "card_url", True), "padding:12px 24px")
        + cell("Import the card into your phone, so that it does not block the calls.", "padding:4px 24px 20px", "dim"),
    ),
    "voice": "The numbers that call you about incidents have changed. Open your own page to see them.",
}

TEXTS: Final[dict[str, dict[str, str]]] = {
    "triggered": _PAGE,
    "refire": _PAGE,
    "escalated": _PAGE,
    "acknowledged": _NOTICE,
    "closed": _NOTICE,
    "bundle": _BUNDLE,
    "code": _CODE,
    "test": _TEST,
    "numbers": _NUMBERS,
}
