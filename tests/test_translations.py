"""The Chinese catalogue: everything the product says is in it, translated whole and compiled; pages and stories read Chinese."""

import ast
import gettext
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import translation
from django.utils.translation.template import templatize

from channels_app import links
from escalation import explain, targets
from escalation.ids import hex_id
from escalation.models import Event
from mapping.clock import db_now
from tests.world import layer

FOLDER = Path(settings.LOCALE_PATHS[0]) / "zh_Hans" / "LC_MESSAGES"
HOUSES = ("mapping", "templates_app", "channels_app", "escalation", "flashduty")
CHINESE = re.compile("[\u4e00-\u9fff]")
# Names and signs that are the same in both languages.
AS_THEY_ARE = {"API", "APP key", "APP keys", "Flashduty", "Id", "URL", "Webhook", "Webhooks", "webhook", "%(who)s: %(comment)s"}
AS_THEY_ARE |= {"%(occasion)s: %(told)s", ".", "%(who)s: %(state)s%(reason)s", "%(who)s by %(channel)s: %(state)s%(reason)s", ", ", "; "}
AS_THEY_ARE |= {"%(who)s (%(why)s)", "%(what)s (%(channel)s)", "%(who)s by %(channel)s", "%(hours)s on %(days)s", "app", "The app"}
# What the vendors' own consoles call their settings, and names.
AS_THEY_ARE |= {
    "AccessKey ID", "AccessKey secret", "SecretId", "SecretKey", "SdkAppId", "account SID", "auth token", "messaging service SID",
    "application ID", "endpoint", "verification token", "system id", "system type", "service type", "TLS",
    "Discord webhook", "Google Chat", "Mattermost", "Slack webhook", "Microsoft Teams (Workflows)", "Zoom incoming webhook",
}  # fmt: skip


@dataclass
class Entry:
    id: str = ""
    plural: str = ""
    context: str = ""
    said: list[str] = field(default_factory=list)
    flags: str = ""

    @property
    def key(self) -> str:
        """As the compiled file names it."""
        return f"{self.context}\x04{self.id}" if self.context else self.id


def entries() -> list[Entry]:
    """The catalogue as it is written, without its header."""
    found = []
    for block in (FOLDER / "django.po").read_text().split("\n\n"):
        entry, parts = Entry(), {}
        for line in block.splitlines():
            if line.startswith("#,"):
                entry.flags += line
            elif word := re.match(r'(msgctxt|msgid_plural|msgid|msgstr(?:\[\d+\])?) (".*")$', line):
                key = word[1]
                parts[key] = ast.literal_eval(word[2])
            elif line.startswith('"'):
                parts[key] += ast.literal_eval(line)
            else:
                assert line.startswith("#"), line
        entry.id, entry.plural, entry.context = parts.get("msgid", ""), parts.get("msgid_plural", ""), parts.get("msgctxt", "")
        entry.said = [text for name, text in parts.items() if name.startswith("msgstr")]
        found.append(entry)
    assert found[0].id == "" and "nplurals=1" in found[0].said[0]
    return found[1:]


def holes(text: str) -> list[str]:
    """What is filled in: %(name)s and %s, each with its conversion; a doubled sign is none."""
    return sorted(re.findall(r"%\(\w+\)[-#0 +]*[\d.]*[a-zA-Z]|%[-#0+]*[\d.]*[a-zA-Z]", text.replace("%%", "")))


def test_every_entry_is_translated_and_nobody_left_a_guess():
    found = entries()
    assert len(found) > 900
    assert [entry.key for entry in found if "fuzzy" in entry.flags] == []
    assert [entry.key for entry in found if len(entry.said) != 1 or not entry.said[0].strip()] == []
    assert [entry.key for entry in found if not CHINESE.search(entry.said[0]) and entry.id not in AS_THEY_ARE] == []
    assert len({entry.key for entry in found}) == len(found)


def test_what_is_filled_in_is_the_same_in_both_languages():
    wrong = []
    for entry in entries():
        for text in entry.said:
            if (
                holes(text) != holes(entry.plural or entry.id)
                or re.findall(r"\{[{%].*?[%}]\}", text) != re.findall(r"\{[{%].*?[%}]\}", entry.id)
                or "\n" in text
                or (len(entry.id) - len(entry.id.strip()), len(text) - len(text.strip())) not in ((0, 0), (1, 0), (1, 1), (2, 2))
            ):
                wrong.append((entry.key, text))
    assert wrong == []


def test_the_compiled_catalogue_is_the_written_one():
    with (FOLDER / "django.mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    said = {name if isinstance(name, str) else name[0]: text for name, text in compiled._catalog.items() if name}
    assert said == {entry.key: entry.said[0] for entry in entries()}, "run `make messages`"


# ---- what the code says --------------------------------------------------------------------------------------------------------------

CALLS = {"_": 0, "gettext": 0, "gettext_lazy": 0, "gettext_noop": 0, "ngettext": 0, "ngettext_lazy": 0, "pgettext": 1, "pgettext_lazy": 1}


def in_python(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS and node.args:
            texts = [arg.value if isinstance(arg, ast.Constant) else None for arg in node.args]
            at = CALLS[node.func.id]
            if all(isinstance(text, str) for text in texts[: at + 1]):
                yield "\x04".join(str(text) for text in texts[: at + 1])


_TEXT = r"""u?('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_IN_TEMPLATE = re.compile(rf"\b(?:(?:_|n?gettext)\(\s*|n?pgettext\(\s*{_TEXT}\s*,\s*){_TEXT}")


def in_template(path: Path) -> Iterator[str]:
    # Django's own way to show a template to xgettext: everything but calls of gettext is blanked out.
    for context, text in _IN_TEMPLATE.findall(templatize(path.read_text())):
        yield (f"{ast.literal_eval(context)}\x04" if context else "") + ast.literal_eval(text)


def test_everything_that_is_said_is_in_the_catalogue():
    known = {entry.key for entry in entries()}
    root, said = Path(settings.BASE_DIR), set()
    for house in HOUSES:
        for path in (root / house).rglob("*"):
            if path.suffix == ".py" and "migrations" not in path.parts:
                said |= {(text, path.name) for text in in_python(path)}
            elif path.suffix == ".html":
                said |= {(text, path.name) for text in in_template(path)}
    assert len(said) > 900
    assert sorted((text, name) for text, name in said if text not in known) == [], "run `make messages` and translate"


# ---- what people read ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def zhang(world):
    """Zhang reads Chinese and is on call; his alert has also gone to a group."""
    zhang = world.person("张三", ["sandbox_voice"], language="zh-hans", time_zone="Asia/Shanghai")
    world.rule(layer(zhang, groups=[world.group("值班群")], escalate_window=5))
    world.alert("checkout is down")
    world.fresh()
    return zhang


@pytest.mark.django_db
def test_signing_in_is_in_the_browsers_language(client):
    page = client.get("/admin/login/", headers={"Accept-Language": "zh-CN,zh;q=0.9"}).content.decode()
    assert "欢迎回到" in page and "登录" in page and "Welcome back" not in page
    assert "Welcome back" in client.get("/admin/login/", headers={"Accept-Language": "en"}).content.decode()


def test_ones_own_page(world, zhang, client):
    client.force_login(zhang)
    page = client.get("/me/").content.decode()
    for words in ("联系方式", "通知方式", "个人信息", "修改密码", "联系方式", "退出登录"):
        assert words in page
    answer = client.post("/me/", {"do": "point_add", "kind": "phone", "value": "+8613800138000"}, follow=True).content.decode()
    assert "已添加 +8613800138000" in answer


def test_the_signed_page(world, zhang, client):
    page = client.get(links.person_link(world.incident().pk, zhang.pk, db_now()).removeprefix("http://testserver")).content.decode()
    for words in ("后续计划", "已通知", "时间线", "认领", "升级", "关闭", "暂缓", "待处理", "严重", "环节 1"):
        assert words in page
    assert not re.search(r">\s*(Acknowledge|Escalate|Timeline|Triggered|Critical)\s*<", page)


def test_the_console(world, zhang, client):
    zhang.role = "administrator"
    zhang.save()
    client.force_login(zhang)
    assert "未关闭故障" in client.get("/admin/").content.decode()
    page = client.get(f"/admin/escalation/incident/{world.incident().pk}/change/").content.decode()
    for words in ("处理过程", "协作空间", "分派策略", "已通知", "待处理"):
        assert words in page


def test_a_story_that_is_explained(world, zhang):
    """Stored reasons are English and become words of whoever reads them; a group is named once."""
    with translation.override("zh-hans"):
        story = explain.as_text(explain.explain(world.incident(), world.now))
    assert "环节 1" in story and "已通知" in story and "值班群：已送达" in story and story.count("值班群") == 2
    world.ack(actor=zhang, via="link")
    world.pass_time(minutes=1)
    with translation.override("zh-hans"):
        told = explain.explain(world.incident(), world.now)
        text = explain.as_text(told)
    assert told.nothing_ahead == "分派已结束：已认领" and "张三 认领了故障（链接）" in text
    world.expect(("值班群", "group", "acknowledged"))
    assert not re.search(r"acknowledged|delivered|Layer|Rule:|Paged|Critical", text)


def test_why_nobody_was_told(world):
    off = world.channel("sandbox_group", "旧群", status="disabled")
    world.rule(layer(groups=[off]))
    world.alert("db down")
    with translation.override("zh-hans"):
        text = explain.as_text(explain.explain(world.incident(), world.now))
    assert "环节 1 无人可通知：渠道 旧群 未启用" in text
    assert "无人可通知：最后一个环节未能联系到任何人；也没有设置兜底接收人" in text


def test_a_stored_reason_becomes_words_and_what_a_provider_said_stays():
    with translation.override("zh-hans"):
        assert targets.in_words(targets.CANCELLED_BY % {"name": "李雷"}) == "已由 李雷 取消"
        assert targets.in_words("The phone number is not verified.; channel #ops is not enabled") == "手机号未验证。; 渠道 #ops 未启用"
        assert targets.in_words("550 no such user") == "550 no such user" and targets.in_words("") == ""


def test_the_parts_of_a_count_are_in_the_plural(world):
    world.rule(layer(groups=[world.group("#a")]), layer(groups=[world.group("#a"), world.channel("sandbox_group", "#b")]))
    world.alert("db down")
    ahead = [item.text for item in explain.ahead(world.incident(), world.now)]
    assert "2 groups or addresses" in ahead[0]
    world.fresh()


@pytest.mark.parametrize("outcome", Event.Outcome.values)
def test_every_outcome_of_an_event_has_a_sentence(outcome):
    with translation.override("zh-hans"):
        assert CHINESE.search(explain.explain_event(Event(outcome=outcome, outcome_detail="")))
        assert CHINESE.search(str(Event.Outcome(outcome).label))


def test_the_link_of_a_group_opens_in_the_readers_language_and_zone(world, zhang, client):
    incident = world.incident()
    client.force_login(zhang)
    page = client.get(f"/i/{hex_id(incident.created_at, incident.pk)}/").content.decode()
    assert 'lang="zh-hans"' in page and "时间按 Asia/Shanghai 时区显示" in page
