"""Sources: payloads as they are really sent, the caps, reference variables, and any bytes at all."""

import gzip
import json
import tracemalloc
import zlib
from dataclasses import asdict
from pathlib import Path

import pytest
from django.utils import translation
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from escalation.sources import (
    SOURCES,
    STATUSES,
    BadEvent,
    BodyTooLarge,
    Parsed,
    clean,
    key_of,
    labels_of,
    loads,
    parse,
    parse_list,
    resolve,
    resolve_title,
    source,
    variables,
)

PAYLOADS = Path(__file__).parent / "payloads"
CASES = sorted(path for path in PAYLOADS.glob("*/*.json") if not path.name.endswith(".expected.json"))


@pytest.fixture(autouse=True, scope="module")
def english():
    with translation.override("en"):
        yield


def shown(item):
    """An item as the expected files have it: what is empty is left out."""
    if isinstance(item, BadEvent):
        return {"index": item.index, "error": str(item)}
    return {name: value for name, value in asdict(item).items() if value}


def standard(**event):
    (parsed,) = parse("standard", {"title_rule": "t", "event_status": "Warning", **event}, {})
    return parsed


# --- Payloads as they come -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_payload(path):
    expected = json.loads(path.with_suffix(".expected.json").read_text())
    assert [shown(item) for item in parse(path.parent.name, loads(path.read_bytes()), {})] == expected


def test_every_source_has_payloads_and_every_folder_a_source():
    assert {path.parent.name for path in CASES} == set(SOURCES)


def test_a_name_is_registered_once():
    with pytest.raises(RuntimeError, match="standard"):
        source("standard")(lambda payload, query: [])
    with pytest.raises(KeyError):
        parse("nope", {}, {})


def test_an_alert_keeps_its_key_from_firing_to_resolved():
    def keys(**more):
        alert = {"labels": {"alertname": "a", "n": {"deep": 1}}, "startsAt": "2026-03-04T08:00:00Z", **more}
        return [item.alert_key for item in parse("prometheus", {"alerts": [{**alert, "status": s} for s in ("firing", "resolved")]}, {})]

    for more in ({"fingerprint": "f"}, {}, {"labels": {}}, {"labels": None, "generatorURL": "http://p/"}):
        firing, resolved = keys(**more)
        assert firing == resolved != ""
    assert keys()[0] != keys(labels={"alertname": "b"})[0]
    many = {f"label_{n}": "x" for n in range(60)}
    assert keys(labels=many)[0] != keys(labels={**many, "label_59": "y"})[0]  # beyond the cap of what is kept


# --- What is refused, and how ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, payload, field, says",
    [
        ("standard", None, "body", "object"),
        ("standard", "x", "body", "object"),
        ("standard", [], "body", "1 to 500"),
        ("standard", [{}] * 501, "body", "501"),
        ("standard", {}, "title_rule", "required"),
        ("standard", {"title_rule": " ", "title": None}, "title_rule", "required"),
        ("standard", {"title_rule": ["a"]}, "title_rule", "text"),
        ("standard", {"title_rule": True}, "title_rule", "text"),
        ("standard", {"title_rule": "t"}, "event_status", "Critical, Warning, Info or Ok"),
        ("standard", {"title_rule": "t", "event_status": "OK"}, "event_status", '"Ok"'),
        ("standard", {"title_rule": "t", "event_status": "critical "}, "event_status", '"Critical"'),
        ("standard", {"title_rule": "t", "event_status": "P1"}, "event_status", "Critical"),
        ("standard", {"title_rule": "t", "event_status": ["Ok"]}, "event_status", "Critical"),
        ("standard", {"title_rule": "t", "event_status": 1}, "event_status", "Critical"),
        ("standard", {"title_rule": "t", "event_status": "Ok"}, "alert_key", "opened with"),
        ("standard", {"title_rule": "t", "event_status": "Ok", "alert_key": None}, "alert_key", "opened with"),
        ("standard", {"title_rule": "t", "event_status": "Info", "alert_key": {}}, "alert_key", "text"),
        ("standard", {"title_rule": "t", "event_status": "Info", "description": ["a"]}, "description", "text"),
        ("standard", {"title_rule": "t", "event_status": "Info", "labels": ["a"]}, "labels", "object"),
        ("standard", {"title_rule": "t", "event_status": "Info", "labels": "a=b"}, "labels", "object"),
        ("standard", {"title_rule": "t", "event_status": "Info", "images": "http://x"}, "images", "list"),
        (
            "standard",
            {"title_rule": "t", "event_status": "Info", "images": [{"src": "http://x/"}, {"alt": "a"}]},
            "images[1].src",
            "required",
        ),
        ("standard", {"title_rule": "t", "event_status": "Info", "images": ["http://x"]}, "images[0].src", "required"),
        ("prometheus", None, "alerts", "Alertmanager"),
        ("prometheus", [], "alerts", "Alertmanager"),
        ("prometheus", {"alerts": {}}, "alerts", "Alertmanager"),
        ("prometheus", {"alerts": []}, "alerts", "1 to"),
        ("prometheus", {"alerts": [None] * 20_001}, "alerts", "20001"),
    ],
)
def test_a_bad_event_names_the_field_and_the_fix(name, payload, field, says):
    with pytest.raises(BadEvent) as raised:
        parse(name, payload, {})
    assert raised.value.field == field
    assert says in raised.value.message


def test_a_list_takes_the_good_and_reports_the_bad_by_index():
    items = parse_list([{"title_rule": "t", "event_status": "Info"}] * 499 + [{"title_rule": "t"}])
    assert [type(item) for item in items[:499]] == [Parsed] * 499
    assert (items[499].index, items[499].field) == (499, "event_status")


# --- Caps ------------------------------------------------------------------------------------------------------------------


def test_what_is_too_long_is_cut():
    event = standard(
        title_rule="T" * 600,
        description="d" * 3000,
        labels={"k" * 200: "v" * 3000, **{f"n{n}": n for n in range(100)}},
        images=[{"src": f"https://i/{n}", "alt": str(n), "href": "https://h/" + "x" * 300} for n in range(30)]
        + [{"src": "https://i/" + "x" * 300}],
    )
    assert (len(event.title_rule), len(event.description), len(event.labels), len(event.images)) == (512, 2048, 50, 20)
    assert event.labels["k" * 128] == "v" * 2048
    assert all(len(image["href"]) == 256 for image in event.images)
    assert [image["src"] for image in event.images] == [f"https://i/{n}" for n in range(20)]
    assert standard(images=[{"src": "https://i/" + "x" * 300}]).images == []


def test_the_first_of_two_stays():
    assert standard(labels={"k" * 128 + "1": "a", "k" * 128 + "2": "b"}).labels == {"k" * 128: "a"}
    alert = {"status": "firing", "generatorURL": "https://p/", "annotations": {"runbook": "https://p/", "wiki": "https://w/"}}
    (event,) = parse("prometheus", {"alerts": [alert], "externalURL": "https://w/"}, {})
    assert event.links == [{"href": "https://p/", "title": "Source"}, {"href": "https://w/", "title": "wiki"}]


def test_images_without_a_name_do_not_overwrite_one_another():
    images = [{"src": f"https://i/{name}"} for name in "aba"]
    assert standard(images=images).images == images[:2]


def test_long_keys_stay_different():
    assert key_of("k" * 255) == "k" * 255
    first, second = key_of("k" * 300 + "1"), key_of("k" * 300 + "2")
    assert first != second
    assert first == key_of("k" * 300 + "1")
    assert len(first) == len(second) == 255
    assert len({key_of(text) for text in ("a\0", "a\ud800", "a\ufffd", "a\udfff")}) == 4
    assert standard(alert_key="k" * 300 + "1").alert_key == first


def test_zero_values_are_absent_and_numbers_are_texts():
    empty = standard(alert_key="", description=None, labels={}, images=None, unknown={"a": 1}, team_id=0)
    assert empty == Parsed(event_status="Warning", title_rule="t")
    assert standard(labels=None).labels == standard(labels=[]).labels == standard(labels="").labels == {}
    assert standard(title_rule=None, title="from title").title_rule == "from title"
    assert standard(title="second").title_rule == "t"
    assert standard(alert_key=0).alert_key == "0"  # somebody's first monitor, not an absence


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(max_size=4), st.text(max_size=4)), st.text())
def test_texts_are_storable_and_otherwise_untouched(labels, text):
    assert clean(text).encode() == text.replace("\0", "\ufffd").encode()
    assert clean("\ud83d" + text) == "\ufffd" + clean(text)
    kept = labels_of(labels)
    assert set(kept) == {clean(name) for name in labels if name}


# --- Reference variables ---------------------------------------------------------------------------------------------------

LABELS = {"resource": "127.0.0.1", "check": "cpu idle low", "a::b": "colons", "_x": "under", "evil": "${check} {{ .Title }}", "键": "值"}


@pytest.mark.parametrize(
    "text, becomes",
    [
        ("[TPL]${resource} / ${check}", "127.0.0.1 / cpu idle low"),
        ("[TPL]${resource} / ${nope}", "127.0.0.1 / <no value>"),
        ("[TPL]${resource} / Host Down", "127.0.0.1 / Host Down"),
        ("[TPL]{{.Labels.resource}} / {{.Labels.check}}", "127.0.0.1 / cpu idle low"),
        ("[TPL]{{ .Labels.resource }} / {{.Labels.nope}}", "127.0.0.1 / "),
        ("[TPL]{{.EventSeverity}} / Host Down", "Warning / Host Down"),
        ("[TPL]{{ .Title }}|{{ .Description }}|{{ .AlertKey }}|{{ .EventStatus }}", "t|what|k|Warning"),
        ("[TPL]{{ .IntegrationType }}|{{ .IntegrationName }}|{{ .Nope }}", "standard|Shop|"),
        ("[TPL]${a::b} ${_x} ${键} {{ .Labels.键 }}", "colons under 值 值"),
        ("[TPL]${Title} ${EventSeverity}", "<no value> <no value>"),  # labels only
        ("[TPL]${evil}", "${check} {{ .Title }}"),  # what was filled in is not read again
        ("${resource}", "${resource}"),
        (" [TPL]${resource}", " [TPL]${resource}"),
        ("[tpl]${resource}", "[tpl]${resource}"),
        ("rm -rf ${HOME} {{ .Title }}", "rm -rf ${HOME} {{ .Title }}"),
        ("[TPL]${} $resource $${ {{ }} {{ Title }} {{ .Labels }} {{ .Labels.a.b }} {{ .Title | upper }} {{ range .Labels }}", None),
        ("[TPL]", ""),
    ],
)
def test_reference_variables(text, becomes):
    event = Parsed(event_status="Warning", title_rule=text, alert_key="k", description="what", labels=LABELS)
    fields = variables(event, title="t", integration_type="standard", integration_name="Shop")
    assert resolve(text, fields) == (text.removeprefix("[TPL]") if becomes is None else becomes)


def test_a_title_is_never_empty_nor_too_long():
    assert resolve_title(Parsed("Info", "[TPL]${host} down", labels={"host": "db-1"})) == "db-1 down"
    assert resolve_title(Parsed("Info", "[TPL]{{ .IntegrationName }}"), integration_name="Shop") == "Shop"
    assert resolve_title(Parsed("Info", "[TPL]{{ .Labels.host }} ")) == "[TPL]{{ .Labels.host }} "
    assert len(resolve_title(Parsed("Info", "[TPL]" + "${a}" * 100, labels={"a": "x" * 2048}))) == 512


# --- Bytes -----------------------------------------------------------------------------------------------------------------


def test_bodies_that_are_fine():
    event = {"title_rule": "磁盘", "labels": {"a": 1}}
    plain = json.dumps(event).encode()
    assert loads(plain) == loads(b"\xef\xbb\xbf" + plain) == event
    assert loads(gzip.compress(plain), "gzip") == loads(gzip.compress(plain), " GZip ") == loads(zlib.compress(plain), "deflate") == event
    assert loads(gzip.compress(plain[:5]) + gzip.compress(plain[5:]), "gzip") == event
    assert loads(b'[NaN, -Infinity, 1e999, -1e999, %s, "\\ud800"]' % (b"9" * 5000))[:2] == ["NaN", "-Infinity"]
    assert loads(b"9" * 5000, cap=5000) == "9" * 5000


@pytest.mark.parametrize(
    "body, encoding, says",
    [
        (b"", "", "empty"),
        (b" \n", "", "empty"),
        (b"{", "", "not JSON"),
        (b"a=b", "", "line 1, column 1"),
        (b'{"a": 1} x', "", "not JSON"),
        (b'{"title_rule": "\xff"}', "", "UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "", "UTF-8"),
        (b"[" * 101 + b"]" * 101, "", "nested"),
        (b"[" * 1_000_000, "", "nested"),
        (b'{"a":' * 200_000, "", "nested"),
        (b'"\\\\"' + b"[" * 100_000, "", "nested"),
        (b"[" + b"[]," * 500_000 + b"[]]", "", "500000 lists"),
        (b"{}", "br", "gzip"),
        (b"{}", "gzip", "not the gzip data"),
        (gzip.compress(b"{}")[:-3], "gzip", "not the gzip data"),
        (gzip.compress(b"{}") + b"tail", "gzip", "not the gzip data"),
        (gzip.compress(b"") * 40, "gzip", "not the gzip data"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)}-bytes",
)
def test_bodies_that_are_refused(body, encoding, says):
    with pytest.raises(BadEvent) as raised:
        loads(body, encoding, cap=2 << 20)
    assert says in str(raised.value)
    assert not isinstance(raised.value, BodyTooLarge)


def test_depth_counts_brackets_outside_of_texts_only():
    deep = "[" * 100 + "]" * 100
    loads(deep.encode())
    loads(json.dumps({"a": ["[{" * 500, '"[' * 500, "\\" * 7 + "[" * 200, '\\"' + "[" * 200] + [[]] * 500}).encode())
    loads(("[" + ",".join([deep[1:-1]] * 20) + "]").encode())
    with pytest.raises(BadEvent, match="nested"):
        loads(f"[{deep}]".encode())


def test_bodies_over_the_cap():
    assert loads(b"1" * 100, cap=100)
    assert loads(gzip.compress(b" " * 99 + b"1"), "gzip", cap=100) == 1
    for body, encoding in ((b"1" * 101, ""), (gzip.compress(b" " * 100 + b"1"), "gzip"), (gzip.compress(b" " * 60) * 2, "gzip")):
        with pytest.raises(BodyTooLarge, match="larger than 100 bytes"):
            loads(body, encoding, cap=100)


def test_a_bomb_costs_no_more_than_the_cap():
    bomb = gzip.compress(b"[" * 200_000_000, 1)
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            loads(bomb, "gzip", cap=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


# --- Anything at all -------------------------------------------------------------------------------------------------------

BODIES = [path.read_bytes() for path in CASES]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(categories=None), max_size=6)
    | st.sampled_from(["", "Ok", "firing", "resolved", "[TPL]${a}{{ .Labels.a }}", "http://x/\ud800", 10**299, 0])
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=8
)


def whole_path(name, body, encoding=""):
    """What a door does with a body; returns the events, [] if it was refused as a whole."""
    try:
        items = parse(name, loads(body, encoding, cap=1 << 20), {})
    except BadEvent as error:
        assert error.field and error.message
        return []
    assert items
    for item in items:
        if isinstance(item, BadEvent):
            assert item.field and item.message
            continue
        assert item.event_status in STATUSES
        assert 0 < len(item.title_rule) <= 512 and len(item.alert_key) <= 255 and len(item.description) <= 2048
        assert item.event_status != "Ok" or item.alert_key or name == "prometheus"
        assert len(item.labels) <= 50 and len(item.images) <= 20 and len(item.links) <= 20
        assert all(0 < len(key) <= 128 and isinstance(value, str) and len(value) <= 2048 for key, value in item.labels.items())
        stored = json.dumps([asdict(item), resolve_title(item)], ensure_ascii=False, allow_nan=False)
        assert "\0" not in stored
        stored.encode()  # no lone surrogate left
    return items


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(SOURCES)), st.binary(max_size=200), st.sampled_from(["", "gzip", "deflate", "br"]))
@example("standard", b'{"title_rule":"t","event_status":"Ok","alert_key":"' + b"\\u0000" * 300 + b'"}', "")
def test_random_bytes(name, body, encoding):
    whole_path(name, body, encoding)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_bytes_of_real_payloads_changed(data):
    body = bytearray(data.draw(st.sampled_from(BODIES)))
    for _change in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body)))
        body[at : at + data.draw(st.integers(0, 8))] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"[" * 200, b"\\ud800", b"\\u0000", b"null", b"-", b"1e999"])
        )
    packed = data.draw(st.booleans())
    for name in SOURCES:
        whole_path(name, gzip.compress(bytes(body)) if packed else bytes(body), "gzip" if packed else "")


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_values_of_real_payloads_replaced(data):
    """Any value of a real payload may become any JSON, and the rest of the body must still be read or refused in words."""
    payload = json.loads(data.draw(st.sampled_from(BODIES)))
    for _change in range(data.draw(st.integers(1, 3))):
        place = payload
        while isinstance(place, (dict, list)) and place:
            step = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if data.draw(st.booleans()) or not isinstance(place[step], (dict, list)):
                place[step] = data.draw(ANYTHING)
                break
            place = place[step]
    for name in SOURCES:
        whole_path(name, json.dumps(payload).encode())
