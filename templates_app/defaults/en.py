"""The default texts in English: for each event a subject, plain text, markdown, e-mail and voice."""

from typing import Final

from templates_app.defaults.layout import button, cell, field, fields, mail, notice, pill, report, report_text

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

# What stands for the names in the mail's layout.
_MAIL: Final = {
    "colon": ": ",
    "comma": ", ",
    "severity": "Severity",
    "workspace": "Workspace",
    "since": "Since",
    "resource": "Resource",
    "responders": "Responders",
    "rule": "Rule",
    "level": "level {{ assigned_to.layer_idx + 1 }}",
    "impact": "Impact",
    "alerts": "Alerts",
    "was": "It was",
    "more": "and {{ alerts_left_out }} more",
    "labels": "Labels",
    "attached": "Images and links",
    "image": "Image",
    "link": "Link",
    "timeline": "What happened so far",
    "told": "Who was told",
    "plan": "What comes next, if nobody acknowledges",
    "again": "Level {{ line.layer_idx + 1 }} is told again",
    "next": "Escalation to level {{ line.layer_idx + 1 }}",
    "catch_all": "The catch-all is told",
    "acknowledge": "Acknowledge",
    "details": "Details",
    "acknowledged": "Acknowledged",
    "closed": "Closed",
    "automatically": "automatically",
    "lasted": "Lasted",
    "root_cause": "Root cause",
    "resolution": "Resolution",
    "repeat": "This message may be a repeat.",
    "zone": "Times are shown in your time zone{% if recipient.time_zone %} ({{ recipient.time_zone }}){% endif %}.",
}
_SPAM = "If this mail was among the spam, mark it as “not spam” and add the sender to your contacts; if all of them go there, ask your mail administrator to let the sender in."

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

_NOTICE_VOICE = """\
Incident {% if event == "closed" %}closed{% else %}acknowledged{% endif %}: {{ title|truncate(80, "") }}.
"""

_PAGE: Final = {
    "subject": _SUBJECT,
    "plain": _PAGE_PLAIN,
    "markdown": _PAGE_MARKDOWN,
    "html": report("en", _MAIL),
    "mail_text": report_text(_MAIL),
    "voice": _PAGE_VOICE,
}
_NOTICE: Final = {
    "subject": _SUBJECT,
    "plain": _NOTICE_PLAIN,
    "markdown": _NOTICE_MARKDOWN,
    "html": notice("en", _MAIL),
    "voice": _NOTICE_VOICE,
}

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
            '\n{% for i in incidents %}\n<div class="line" style="padding:5px 0">'
            + pill("i.severity")
            + " {{ link('#' ~ i.num, i.url) }} {{ i.title|truncate(60 if incidents|length > 10 else 160) }}"
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
            "padding:4px 24px 8px",
            "dim",
        )
        + cell(_SPAM, "padding:0 24px 20px", "dim"),
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
        + cell("If you read this, the channel works. Nothing needs to be done.", "padding:4px 24px 8px", "dim")
        + cell(_SPAM, "padding:0 24px 20px", "dim"),
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
