"""The frame of the e-mails: one table, inline styles, readable in light and dark mode and with pictures switched off.

Mail programs drop style sheets and scripts, some turn colours around in dark mode. So the frame says that it knows both modes, text
stands on colours it sets itself, and nothing depends on the few rules in the head that only some programs read.
"""

_HEAD = """\
<!DOCTYPE html>
<html lang="{lang}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="supported-color-schemes" content="light dark">
<style>
:root {{ color-scheme: light dark; supported-color-schemes: light dark; }}
@media (prefers-color-scheme: dark) {{
.page {{ background: #202124 !important; }}
.card {{ background: #2d2e31 !important; border-color: #4a4d51 !important; }}
.ink {{ color: #e8eaed !important; }}
.dim {{ color: #bdc1c6 !important; }}
}}
</style>
</head>
<body class="page" style="margin:0;padding:0;background:#f1f3f4;font-family:-apple-system,'Segoe UI','PingFang SC','Microsoft YaHei',Helvetica,Arial,sans-serif">
<table role="presentation" class="page" width="100%" cellpadding="0" cellspacing="0" style="background:#f1f3f4"><tr><td align="center" style="padding:24px 12px">
<table role="presentation" class="card" width="100%" cellpadding="0" cellspacing="0" style="max-width:600px;background:#ffffff;border:1px solid #dadce0;border-radius:8px">
"""

_TAIL = """\
</table>
</td></tr></table>
</body>
</html>
"""

BAR = '<tr><td style="height:6px;line-height:6px;font-size:0;border-radius:8px 8px 0 0;background:{{ severity_color(status if status == "Ok" else severity) }}">&nbsp;</td></tr>'


def mail(lang: str, rows: str) -> str:
    """A whole HTML template around table rows."""
    return _HEAD.format(lang=lang) + rows.strip() + "\n" + _TAIL


def cell(content: str, style: str = "padding:8px 24px", tone: str = "ink") -> str:
    """One row of the card; `ink` is ordinary text, `dim` is grey."""
    color = "#202124" if tone == "ink" else "#5f6368"
    return f'<tr><td class="{tone}" style="{style};color:{color};font-size:15px;line-height:22px">{content}</td></tr>\n'


def field(words: str, value: str, condition: str = "") -> str:
    """A line `words: value`, left out where the Jinja condition does not hold."""
    line = (
        f'<tr><td class="dim" style="padding:3px 12px 3px 0;color:#5f6368;font-size:14px;white-space:nowrap;vertical-align:top">{words}</td>'
        f'<td class="ink" style="padding:3px 0;color:#202124;font-size:14px;word-break:break-word">{value}</td></tr>\n'
    )
    return f"{{% if {condition} %}}\n{line}{{% endif %}}\n" if condition else line


def fields(*lines: str) -> str:
    """The card's list of fields."""
    return cell('<table role="presentation" cellpadding="0" cellspacing="0">\n' + "".join(lines) + "</table>")


def button(words: str, address: str, primary: bool) -> str:
    """A link that looks like a button in every mail program; `address` is a Jinja expression."""
    look = "background:#1a73e8;color:#ffffff" if primary else "background:#e8eaed;color:#202124"
    return (
        f'<a href="{{{{ {address}|url }}}}" style="display:inline-block;margin:4px 8px 4px 0;padding:10px 18px;border-radius:6px;'
        f'font-size:15px;text-decoration:none;{look}">{words}</a>'
    )
