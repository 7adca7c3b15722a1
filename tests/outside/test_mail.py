"""The default mail in a real browser, in both languages: narrow and wide, light and dark, everything can be read and nothing sticks out."""

import shutil
from pathlib import Path

import pytest

from channels_app.models import Channel
from tests.fakes.smtp import Mailbox
from tests.outside.browser import PROGRAMS, Browser
from tests.world import World, layer

pytestmark = [pytest.mark.outside, pytest.mark.slow, pytest.mark.django_db]

# Every text that is seen, with its colour and what it stands on, and how they contrast (WCAG 2.2, 1.4.3).
CONTRAST = """
const parse = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
const over = (top, below) => { const a = top.length > 3 ? top[3] : 1; return [0, 1, 2].map(i => top[i] * a + below[i] * (1 - a)); };
const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                     return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ground = e => { const c = parse(getComputedStyle(e).backgroundColor);
                      const below = () => e.parentElement ? ground(e.parentElement) : arguments[0];
                      return c.length > 3 && c[3] < 1 ? over(c, below()) : c; };
const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const text = walk.currentNode.textContent.trim(), e = walk.currentNode.parentElement;
  if (!text || !e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true}) || ["STYLE", "TITLE"].includes(e.tagName)) continue;
  const back = ground(e), ink = over(parse(getComputedStyle(e).color), back), [a, b] = [light(ink), light(back)];
  found.push([text.slice(0, 60), Math.round((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) * 100) / 100, getComputedStyle(e).color, back]);
}
return found;
"""
CANVAS = {"light": [255, 255, 255], "dark": [18, 18, 18]}  # what is below a page that says nothing


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mail")


@pytest.fixture
def mails(world: World) -> dict[str, str]:
    """Name of a mail -> its HTML, as it came out of a real SMTP server: a page with everything in it, and a close, in both languages."""
    with Mailbox() as server:
        settings = {"host": "127.0.0.1", "port": server.port, "security": "none", "from_email": "On-call <oncall@example.com>"}
        Channel.objects.create(kind="email", name="mail", settings=settings, allowed_hosts=[server.host])
        lee = world.person("Lee", ["sandbox_app"])
        readers = {
            "en": world.person("Ada", ["email"], language="en"),
            "zh": world.person("王芳", ["email"], email="w@example.com", language="zh-hans"),
        }
        world.rule(layer(lee, escalate_window=5), layer(*readers.values(), notify_step=10, max_times=2, escalate_window=30))
        found: dict[str, str] = {}
        for severity in ("Critical", "Warning", "Info"):
            title = f"订单队列积压 {severity} 支付网关 <b>checkout</b> " + "very-long-name-without-a-blank-" * 4
            labels = {
                "service": "checkout",
                "instance": "i-" + "0123456789abcdef" * 8,
                "trace": "https://grafana.example.com/d/" + "x" * 120,
            }
            world.alert(
                title, severity, key=severity, description="磁盘使用率 97%\nroot@db-1:/var/lib/postgresql " + "y" * 200, labels=labels
            )
            world.pass_time(minutes=5)
            world.do("close", actor=lee)
            for language, reader in readers.items():
                mine = [mail for mail in server.mails if reader.email in str(mail["To"])]
                assert mine, f"nothing came to {reader.email}"
                for number, mail in enumerate(mine):
                    part = mail.get_body(("html",))
                    assert part is not None
                    found[f"{language}-{severity}-{number}"] = part.get_content()
            server.mails.clear()
        world.fresh()
        return found


def test_the_default_mail_is_read_at_any_width_in_any_light(mails: dict[str, str], folder: Path) -> None:
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    assert not lacking, f"needs {', '.join(lacking)} (apt-get install chromium chromium-driver fonts-noto-cjk)"
    assert {name.partition("-")[0] for name in mails} == {"en", "zh"}
    wrong: list[str] = []
    for name, source in mails.items():
        (folder / f"{name}.html").write_text(source)
    for width in (375, 800):
        with Browser(folder / str(width), width) as browser:
            for scheme, canvas in CANVAS.items():
                browser.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
                for name in mails:
                    browser.open((folder / f"{name}.html").as_uri())
                    where = f"{name} at {width} px, {scheme}"
                    if (wider := browser.overflow()) > 0:
                        wrong.append(f"{where}: {wider} px wider than the window")
                    texts = browser.run(CONTRAST, canvas)
                    assert len(texts) > 5 and "checkout" in browser.text, where
                    wrong += [
                        f"{where}: {text!r} has a contrast of {ratio}: {ink} on {ground}"
                        for text, ratio, ink, ground in texts
                        if ratio < 4.5
                    ]
                    if width == 375 and name.endswith("Critical-0"):
                        browser.picture(f"{name}-{scheme}")
            fonts = fonts_of(browser, folder / "zh-Critical-0.html")
            assert any("CJK" in font for font in fonts), f"Chinese is written in {fonts}: apt-get install fonts-noto-cjk"
    assert not wrong, "\n".join(wrong)


def fonts_of(browser: Browser, page: Path) -> set[str]:
    """The families in which the browser really wrote the page."""
    browser.open(page.as_uri())
    for domain in ("DOM", "CSS"):
        browser.cdp(f"{domain}.enable")
    root = browser.cdp("DOM.getDocument")["root"]["nodeId"]
    fonts: set[str] = set()
    for cell in browser.cdp("DOM.querySelectorAll", nodeId=root, selector="td, a, span")["nodeIds"]:
        fonts |= {font["familyName"] for font in browser.cdp("CSS.getPlatformFontsForNode", nodeId=cell)["fonts"]}
    return fonts
