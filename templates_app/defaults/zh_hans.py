"""默认文案：中文。每个事件一组文本（标题、纯文本、Markdown、邮件、语音）。"""

from typing import Final

from templates_app.defaults.layout import button, cell, field, fields, mail, notice, pill, report, report_text

_SUBJECT = "[#{{ num }}] {{ title }}"

_PAGE_PLAIN = """\
{{ fire_reason() }} #{{ num }} {{ title }}
级别：{{ severity_name(severity) }}{% if workspace.name %}，空间：{{ workspace.name }}{% endif %}

触发时间：{{ date(start_time) }}（{{ ago(start_time) }}）
{% if alert_count > 1 %}
关联告警：{{ alert_count }} 条
{% endif %}
{% if join_alert_labels("resource") %}
对象：{{ join_alert_labels("resource")|truncate(120) }}
{% endif %}
{% if description %}
{{ description|truncate(200) }}
{% endif %}
{% if ack_url() %}
认领：{{ ack_url()|url }}
{% endif %}
"""

_PAGE_MARKDOWN = """\
{{ bold(fire_reason()) }} #{{ num }} {{ bold(title) }}
{% if workspace.name %}
空间：{{ workspace.name }}
{% endif %}
级别：{{ color_severity(severity) }}
触发时间：{{ date(start_time) }}（{{ ago(start_time) }}）
{% if alert_count > 1 %}
关联告警：{{ alert_count }} 条
{% endif %}
{% if join_alert_labels("resource") %}
对象：{{ join_alert_labels("resource")|truncate(200) }}
{% endif %}
{% if responders %}
负责人：{{ responders|map(attribute="name")|join("、")|truncate(200) }}
{% endif %}
{% if description %}
{{ description|truncate(600) }}
{% endif %}
{% for link_ in links %}
{{ link(link_.title, link_.url) }}
{% endfor %}
{{ link("详情", detail_url) }}{% if ack_url() %} | {{ link("认领", ack_url()) }}{% endif %}

"""

_PAGE_VOICE = """\
{% if event == "escalated" %}故障已升级到您。{% elif event == "refire" %}故障仍待处理。{% else %}您有新的故障。{% endif %}
{{ severity_name(severity) }}级别，{{ title|truncate(80, "") }}{% if workspace.name %}，{{ workspace.name|truncate(30, "") }}空间{% endif %}{% if alert_count > 1 %}，共 {{ alert_count }} 条告警{% endif %}。
"""

# 邮件版式中各名称对应的文字。
_MAIL: Final = {
    "colon": "：",
    "comma": "，",
    "severity": "级别",
    "workspace": "空间",
    "since": "触发时间",
    "resource": "对象",
    "responders": "负责人",
    "rule": "分派策略",
    "level": "第 {{ assigned_to.layer_idx + 1 }} 层",
    "impact": "影响",
    "alerts": "关联告警",
    "was": "原级别：",
    "more": "另有 {{ alerts_left_out }} 条",
    "labels": "标签",
    "attached": "图片与链接",
    "image": "图片",
    "link": "链接",
    "timeline": "处理过程",
    "told": "已通知",
    "plan": "后续计划（无人认领时）",
    "again": "再次通知第 {{ line.layer_idx + 1 }} 层",
    "next": "升级到第 {{ line.layer_idx + 1 }} 层",
    "catch_all": "通知兜底人员",
    "acknowledge": "立即认领",
    "details": "查看详情",
    "acknowledged": "认领",
    "closed": "关闭",
    "automatically": "自动",
    "lasted": "持续",
    "root_cause": "根因",
    "resolution": "处理结果",
    "repeat": "本邮件可能重复发送。",
    "zone": "时间按您的时区显示{% if recipient.time_zone %}（{{ recipient.time_zone }}）{% endif %}。",
}
_SPAM = "如果本邮件进入了垃圾箱，请标记为“非垃圾邮件”，并将发件人加入通讯录；如果总是如此，请联系公司邮箱管理员将发件人加入白名单。"

_NOTICE_PLAIN = """\
{{ fire_reason() }} #{{ num }} {{ title }}
{% if event == "closed" %}
{% if closer %}{{ closer.name }} 关闭{% elif status == "Ok" %}告警已恢复，自动关闭{% else %}自动关闭{% endif %}，{{ date(close_time) }}，持续 {{ duration(close_time - start_time) }}
{% else %}
{% if acknowledger %}{{ acknowledger.name }} {% endif %}已认领{% if ack_time %}，{{ date(ack_time) }}{% endif %}

{% endif %}
{% if detail_url %}
{{ detail_url|url }}
{% endif %}
"""

_NOTICE_MARKDOWN = """\
{{ bold(fire_reason()) }} #{{ num }} {{ bold(title) }}
级别：{{ color_severity(severity) }}
{% if event == "closed" %}
{% if closer %}{{ closer.name }} 关闭{% elif status == "Ok" %}告警已恢复，自动关闭{% else %}自动关闭{% endif %}，{{ date(close_time) }}，持续 {{ duration(close_time - start_time) }}
{% if resolution %}
处理结果：{{ resolution|truncate(300) }}
{% endif %}
{% else %}
{% if acknowledger %}{{ acknowledger.name }} {% endif %}已认领{% if ack_time %}，{{ date(ack_time) }}{% endif %}

{% endif %}
{{ link("详情", detail_url) }}
"""

_NOTICE_VOICE = """\
故障{% if event == "closed" %}已关闭{% else %}已认领{% endif %}，{{ title|truncate(80, "") }}。
"""

_PAGE: Final = {
    "subject": _SUBJECT,
    "plain": _PAGE_PLAIN,
    "markdown": _PAGE_MARKDOWN,
    "html": report("zh-Hans", _MAIL),
    "mail_text": report_text(_MAIL),
    "voice": _PAGE_VOICE,
}
_NOTICE: Final = {
    "subject": _SUBJECT,
    "plain": _NOTICE_PLAIN,
    "markdown": _NOTICE_MARKDOWN,
    "html": notice("zh-Hans", _MAIL),
    "voice": _NOTICE_VOICE,
}

_BUNDLE: Final = {
    "subject": "{{ incidents|length }} 个故障待处理",
    "plain": """\
{{ incidents|length }} 个故障待处理
{% for i in incidents %}
#{{ i.num }} {{ severity_name(i.severity) }} {{ i.title|truncate(60 if incidents|length > 10 else 160) }}{% if i.possible_repeat %}（可能重复）{% endif %} {{ i.url|url }}
{% endfor %}
{% if left %}
另有 {{ left }} 个，随后发送
{% endif %}
""",
    "markdown": """\
{{ bold(incidents|length ~ " 个故障待处理") }}
{% for i in incidents %}
{{ color_severity(i.severity) }} #{{ link(i.num, i.url) }} {{ i.title|truncate(60 if incidents|length > 10 else 160) }}{% if i.possible_repeat %}（可能重复）{% endif %}

{% endfor %}
{% if left %}
另有 {{ left }} 个，随后发送
{% endif %}
""",
    "html": mail(
        "zh-Hans",
        cell("{{ incidents|length }} 个故障待处理", "padding:20px 24px 4px;font-weight:600")
        + cell(
            '\n{% for i in incidents %}\n<div class="line" style="padding:5px 0">'
            + pill("i.severity")
            + " {{ link('#' ~ i.num, i.url) }} {{ i.title|truncate(60 if incidents|length > 10 else 160) }}"
            "{% if i.possible_repeat %}（可能重复）{% endif %}</div>\n{% endfor %}\n"
        )
        + cell("{% if left %}另有 {{ left }} 个，随后发送{% endif %}", "padding:4px 24px 20px", "dim"),
    ),
    "voice": "您有 {{ incidents|length + left }} 个故障待处理。{% if incidents %}最严重的是：{{ incidents[0].title|truncate(80, '') }}。{% endif %}",
}

_CODE: Final = {
    "subject": "Flashduty 验证码",
    "plain": "Flashduty 验证码：{{ code }}，{{ minutes }} 分钟内有效。请勿告诉他人。",
    "markdown": "Flashduty #验证码 {{ bold(code) }}，{{ minutes }} 分钟内有效。请勿告诉他人。",
    "html": mail(
        "zh-Hans",
        cell("您的验证码", "padding:20px 24px 4px")
        + cell('<span style="font-size:28px;letter-spacing:4px;font-weight:600">{{ code }}</span>', "padding:8px 24px")
        + cell("{{ minutes }} 分钟内有效。请勿告诉他人；如果不是您本人操作，请忽略本邮件。", "padding:4px 24px 8px", "dim")
        + cell(_SPAM, "padding:0 24px 20px", "dim"),
    ),
    "voice": "您的验证码是 {{ code|list|join(' ') }}，{{ minutes }} 分钟内有效。",
}

_TEST: Final = {
    "subject": "Flashduty 测试消息",
    "plain": "#测试 这是来自 Flashduty 的测试消息。\n渠道：{{ channel_name }}\n发送人：{{ sender_name }}，{{ date(sent_at) }}",
    "markdown": "Flashduty #测试 {{ bold('这是来自 Flashduty 的测试消息') }}\n渠道：{{ channel_name }}\n发送人：{{ sender_name }}，{{ date(sent_at) }}",
    "html": mail(
        "zh-Hans",
        cell("这是来自 Flashduty 的测试消息", "padding:20px 24px 4px;font-weight:600")
        + fields(field("渠道", "{{ channel_name }}"), field("发送人", "{{ sender_name }}"), field("时间", "{{ date(sent_at) }}"))
        + cell("收到本邮件说明渠道可用，无需处理。", "padding:4px 24px 8px", "dim")
        + cell(_SPAM, "padding:0 24px 20px", "dim"),
    ),
    "voice": "这是来自 Flashduty 的测试电话，无需处理。",
}

_NUMBERS: Final = {
    "subject": "拨打给您的号码有变更",
    "plain": (
        "今后，故障电话将使用以下号码拨打给您：\n{% for number in numbers %}\n{{ number }}\n{% endfor %}\n"
        "请将这些号码保存为联系人，以免被手机拦截：{{ card_url|url }}"
    ),
    "markdown": (
        "今后，故障电话将使用以下号码拨打给您：\n{% for number in numbers %}\n{{ bold(number) }}\n{% endfor %}\n"
        '请{{ link("保存为联系人", card_url) }}，以免被手机拦截。'
    ),
    "html": mail(
        "zh-Hans",
        cell("拨打给您的号码有变更", "padding:20px 24px 4px;font-weight:600")
        + cell("今后，故障电话将使用以下号码拨打给您：")
        + cell('{% for number in numbers %}\n<div style="font-size:18px;line-height:28px">{{ number }}</div>\n{% endfor %}\n')
        + cell(button("下载联系人名片", "card_url", True), "padding:12px 24px")
        + cell("请将名片导入手机通讯录，以免来电被拦截。", "padding:4px 24px 20px", "dim"),
    ),
    "voice": "拨打给您的故障电话号码有变更，请打开您的个人页面查看。",
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
