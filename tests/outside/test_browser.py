"""In a real browser: an alert arrives on the sandbox's phones, a call is answered by key, and the page behind a link works without a password."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.outside.browser import PROGRAMS, Browser
from tests.outside.product import Product, until

pytestmark = [pytest.mark.outside, pytest.mark.slow]

LEE, WANG = "Sam Lee", "王芳"


@pytest.fixture(scope="module")
def product(tmp_path_factory) -> Iterator[Product]:
    names = [name for name in PROGRAMS if shutil.which(name) is None]
    if names:
        pytest.skip(f"needs {', '.join(names)} (apt-get install chromium chromium-driver)")
    with Product(tmp_path_factory.mktemp("product")) as product:
        yield product


def alert(product: Product, title: str, **fields: str) -> None:
    body = {"title_rule": title, "event_status": "Critical", "alert_key": title, **fields}
    assert requests.post(product.demo["push_url"], json=body, timeout=60).status_code == 200


def sign_in(browser: Browser, product: Product, to: str) -> None:
    browser.open(f"{product.base_url}/admin/login/?next={to}")
    browser.type("input[name=username]", product.demo["admin_email"])
    browser.type("input[name=password]", product.demo["admin_password"])
    browser.click("form [type=submit]")
    until(lambda: browser.url.endswith(to), 10, f"signed in and at {to}")
    browser.complaints()  # those of the console's own sign-in page are not ours


def link_on_phone(browser: Browser, who: str, title: str) -> str:
    """The signed link in the newest message about `title` on this person's phone."""
    script = """const phone = [...document.querySelectorAll(".who")].find(e => e.innerText.includes(arguments[0]));
        return [...phone.querySelectorAll(".msg")].find(e => e.innerText.includes(arguments[1])).querySelector("p a").href"""
    return str(browser.run(script, who, title))


@pytest.mark.parametrize("width", [1280, 390])
def test_an_alert_arrives_on_the_phones_and_the_boss_answers_by_key(product: Product, tmp_path: Path, width: int) -> None:
    title = f"Orders are stuck {width}"
    with Browser(tmp_path, width) as browser:
        sign_in(browser, product, "/sandbox/")
        alert(product, title)
        until(browser.sees(".who .msg", title), 10, "the page is on a phone")
        until(browser.sees(".chat .msg", title), 10, "the page is in the group chat")
        assert browser.overflow() <= 0
        browser.click(".who .msg button", "Escalate")
        until(browser.sees(".call.ringing", title), 10, "the boss's phone rings")
        browser.run("document.querySelector('.call.ringing').scrollIntoView({inline: 'center'})")
        browser.click(".call .up")
        until(browser.sees(".call.talking .speech", title), 10, "the boss hears what it is about")
        browser.click(".call [data-key='1']")
        until(browser.sees(".who .msg", "Processing"), 10, "the cards say that somebody has it")
        assert browser.complaints() == []
    found = product.api("/incident/list", start_time=int(time.time()) - 3600, end_time=int(time.time()) + 60)["items"]
    mine = next(incident for incident in found if incident["title"] == title)
    assert mine["progress"] == "Processing"


def test_the_page_behind_a_link_works_in_a_phone_without_a_password(product: Product, tmp_path: Path) -> None:
    title = 'Mail queue <img src=x onerror="window.hit=1"><script>window.hit=1</script>'
    with Browser(tmp_path / "desk") as desk:
        sign_in(desk, product, "/sandbox/")
        alert(product, title, description="<script>window.hit=1</script>")
        until(desk.sees(".who .msg", "Mail queue"), 10, "the page is on a phone")
        assert desk.run("return window.hit") is None
        link = link_on_phone(desk, LEE, "Mail queue")
        group = str(desk.run("return document.querySelector('.chat .msg:last-child footer a').href"))
        assert desk.complaints() == []

        with Browser(tmp_path / "phone", 390) as phone:
            phone.open(link)
            assert title in phone.text and phone.run("return window.hit") is None
            assert phone.overflow() <= 0
            assert phone.run("return document.activeElement.value") == "acknowledge"  # ?ack=1 put it forward, and did nothing else
            phone.click("button", "Acknowledge")
            until(phone.sees(".note.good", "It is yours"), 10, "acknowledged")
            phone.click("button[value=snooze]")
            until(phone.sees(".note.good", "comes back by itself"), 10, "snoozed")
            # Without a session the group's link shows nothing.
            phone.open(group)
            assert "/admin/login/" in phone.url and "Mail queue" not in phone.text

        until(desk.sees(".who .msg", "Processing"), 10, "the desk sees it without being touched")
        desk.open(group)  # whoever is signed in acts as themselves
        assert "Ada Admin" in desk.text
        desk.click("button[value=close]")
        until(desk.sees(".note.good", "Closed"), 10, "closed")
        assert desk.complaints() == []


def test_a_page_of_ones_own_fits_a_phone_and_keeps_what_is_chosen(product: Product, tmp_path: Path) -> None:
    with Browser(tmp_path, 390) as browser:
        sign_in(browser, product, "/me/")
        assert browser.overflow() <= 0
        browser.run("[...document.querySelectorAll('[name=severity][value=Info] ~ .way [name=way]')].at(-1).value = 'sms'")
        browser.click("[name=severity][value=Info] ~ div button", "Save")
        until(browser.sees(".sentence", "E-mail, SMS at once"), 10, "the sentence says what was chosen")
        browser.type("#keys [name=name]", "ci")
        browser.click("#keys button", "Make a key")
        until(browser.sees(".secret code"), 10, "the key is shown")
        assert browser.overflow() <= 0 and browser.complaints() == []


def test_dark_mode_has_dark_cards_and_light_words(product: Product, tmp_path: Path) -> None:
    with Browser(tmp_path) as browser:
        sign_in(browser, product, "/sandbox/")
        browser.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        shades = browser.run(
            "const c = getComputedStyle(document.querySelector('.bar')); return [c.backgroundColor, getComputedStyle(document.body).color]"
        )
        card, ink = (sum(map(int, shade[4:-1].split(","))) / 3 for shade in shades)
        assert card < 60 and ink > 180
