"""The one door to the internet: who may be reached, how long it may take, what a failure says, and what it never says."""

import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from channels_app import http, sockets
from channels_app.http import Answer, DeliveryError, Guard, Http, by_status
from tests.fakes.proxy import Proxy
from tests.fakes.server import Reply, Server, until
from tests.fakes.tls import authority

# What ends in time ends well before SOON on any machine, and what does not goes on for LONG: in between lies nothing but a mistake.
SOON, LONG = 15.0, 60.0


@pytest.fixture(scope="session")
def ca(tmp_path_factory):
    return authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server():
    with Server() as running:
        yield running


def door(server, **kwargs) -> Http:
    return Http(allowed_hosts=[server.host], **kwargs)


def refused(call) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        call()
    return caught.value


# --- where to --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ip",
    [
        "169.254.169.254", "169.254.0.23", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1",
        "100.100.100.200", "168.63.129.16", "fd00:ec2::254", "224.0.0.1", "ff02::1",
    ],
)  # fmt: skip
def test_some_addresses_are_never_reached(ip):
    for guard in (Guard(), Guard(allow_private=True), Guard(frozenset({f"{ip}:80", "metadata.example:80"}))):
        assert refused(lambda guard=guard: guard.judge("metadata.example", ip, 80)).permanent


@pytest.mark.parametrize(
    "ip",
    [
        "127.0.0.1", "127.9.9.9", "10.0.0.5", "172.16.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "::1", "::", "fd00::5", "::ffff:10.0.0.5",
        "::10.0.0.5", "64:ff9b::a00:5", "2002:a00:5::1", "198.18.0.1", "240.0.0.1", "255.255.255.255",
    ],
)  # fmt: skip
def test_private_addresses_need_permission(ip):
    error = refused(lambda: Guard().judge("inside.example", ip, 8443))
    assert error.permanent and error.config and not error.left
    Guard(allow_private=True).judge("inside.example", ip, 8443)
    Guard(frozenset({"inside.example:8443"})).judge("Inside.example", ip, 8443)
    refused(lambda: Guard(frozenset({"inside.example:8444", "inside.example"})).judge("inside.example", ip, 8443))


def test_permission_is_for_exactly_that_address_and_port():
    guard = Guard(frozenset({"10.0.0.5:8443", "[fd00::5]:443"}))
    guard.judge("10.0.0.5", "10.0.0.5", 8443)
    guard.judge("x.example", "::ffff:10.0.0.5", 8443)
    guard.judge("x.example", "fd00::5", 443)
    refused(lambda: guard.judge("10.0.0.5", "10.0.0.5", 443))
    refused(lambda: guard.judge("10.0.0.6", "10.0.0.6", 8443))


@pytest.mark.parametrize("ip", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "::ffff:8.8.8.8"])
def test_public_addresses_are_free(ip):
    Guard().judge("example.com", ip, 443)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::ffff:127.0.0.1]", "0.0.0.0", "localhost"]
)
def test_loopback_in_every_notation_is_refused_before_a_packet_leaves(server, host):
    error = refused(lambda: Http().post(f"http://{host}:{server.port}/", json={}))
    assert error.permanent and "private address" in error.text
    assert server.connections == 0


def test_the_connected_peer_has_the_last_word(server, monkeypatch):
    """A name that says a public address and a network that brings us elsewhere (a rebinding, a redirecting gateway)."""
    monkeypatch.setattr(sockets, "_resolve", lambda *args: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", server.port))])
    monkeypatch.setattr(sockets._Socket, "connect", lambda self, where: socket.socket.connect(self, ("127.0.0.1", server.port)))
    assert "private address" in refused(lambda: Http().post(f"http://rebound.example:{server.port}/", json={})).text
    assert server.seen == []


def test_smtp_gets_its_socket_under_the_same_rules(server):
    assert refused(lambda: Http().connect("127.0.0.1", server.port)).config
    with door(server).connect("127.0.0.1", server.port) as sock:
        assert sock.getpeername()[1] == server.port


# --- redirects, environment, addresses ---------------------------------------------------------------------------------------------


def test_a_redirect_is_not_followed(server):
    server.answer = Reply(302, headers={"Location": f"{server.url}/elsewhere"})
    answer = door(server).post(f"{server.url}/start", json={})
    assert answer.status == 302 and [seen.path for seen in server.seen] == ["/start"]
    error = refused(lambda: by_status(answer))
    assert error.permanent and error.config and "redirect" in error.text


def test_nothing_comes_from_the_environment(server, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert door(server).post(server.url, json={}).status == 200
    assert "authorization" not in server.seen[0].headers


def test_no_cookie_is_kept(server):
    server.answer = Reply(headers={"Set-Cookie": "a=b; Path=/"})
    for _ in range(2):
        door(server).post(server.url, json={})
    assert all("cookie" not in seen.headers for seen in server.seen)


@pytest.mark.parametrize(
    "url",
    ["", "ftp://example.com/", "example.com/x", "http://", "http://a:b:c/", "http://exa mple.com/", "http://[::1/", "file:///etc/passwd"],
)
def test_what_is_no_address(url):
    error = refused(lambda: Http().post(url, json={}))
    assert error.permanent and not error.left


def test_headers_that_would_break_the_request(server):
    for headers in ({"X-A": "a\r\nX-B: b"}, {"X A": "a"}, {"X-A": "中"}):
        error = refused(lambda headers=headers: door(server).post(server.url, json={}, headers=headers))
        assert error.permanent and not error.left
    assert server.seen == []


def test_json_goes_out_as_compact_utf8(server):
    door(server).post(server.url, json={"a": "数据库", "b": "\ud800"})
    assert server.seen[0].body == '{"a":"数据库","b":"?"}'.encode()
    assert server.seen[0].headers["content-type"] == "application/json; charset=utf-8"


# --- what a failure means ------------------------------------------------------------------------------------------------------------


def test_names_that_do_not_exist_are_our_network():
    error = refused(lambda: Http().post("http://nowhere.invalid/secret-path-1", json={}))
    assert (error.permanent, error.left, error.is_network) == (False, False, True)
    assert "nowhere.invalid" in error.text and "secret-path-1" not in error.text


def test_nobody_listens():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # and it stays ours: somebody else could listen there by now
        port = sock.getsockname()[1]
        error = refused(lambda: Http(allow_private=True).post(f"http://127.0.0.1:{port}/", json={}))
    assert (error.permanent, error.left, error.is_network) == (False, False, True)


def test_a_host_that_swallows_packets_costs_the_connect_time_only(monkeypatch):
    monkeypatch.setattr(sockets, "CONNECT_SECONDS", 0.2)
    with socket.socket() as sock:  # a listener that accepts nothing: its queue is full after the first connections
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        place = sock.getsockname()
        fill = [socket.socket() for _ in range(4)]
        for one in fill:
            one.setblocking(False)
            one.connect_ex(place)
        started = time.monotonic()
        error = refused(lambda: Http(allow_private=True).post(f"http://127.0.0.1:{place[1]}/", json={}, timeout=LONG))
        assert time.monotonic() - started < SOON
        for one in fill:
            one.close()
    assert (error.left, error.is_network) == (False, True)


def test_a_name_server_that_hangs_costs_the_connect_time_only(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(sockets, "CONNECT_SECONDS", 0.1)
    real = socket.getaddrinfo

    def hangs(host, port, *args, flags=0, **kwargs):
        if not flags:
            release.wait(LONG)
        return real("127.0.0.1" if not flags else host, port, *args, flags=flags, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    started = time.monotonic()
    error = refused(lambda: Http().post("http://slow.example/", json={}, timeout=LONG))
    took = time.monotonic() - started
    release.set()
    assert took < SOON and error.is_network and "name server" in error.text


@pytest.mark.parametrize("end", ["close", "reset"])
def test_no_answer_after_the_request_left(server, end):
    server.answer = Reply(raw=b"", end=end)
    error = refused(lambda: door(server).post(f"{server.url}/hook/aaaabbbbcccc", json={"x": "private words"}))
    assert (error.permanent, error.left, error.is_network) == (False, True, False)
    assert "aaaabbbbcccc" not in error.text and "private words" not in error.text


@pytest.mark.parametrize(
    "reply",
    [
        Reply(raw=b"", end="hang"),
        Reply(raw=b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 3000, drip=0.02),
        Reply(200, b"x" * 3000, drip=0.02),
    ],
    ids=["silence", "headers drip", "body drips"],
)
def test_the_whole_request_has_one_deadline(server, reply):
    server.answer = reply
    started = time.monotonic()
    error = refused(lambda: door(server).post(server.url, json={}, timeout=1.2))
    assert 1.15 < time.monotonic() - started < SOON
    assert error.left and not error.permanent and "1.2 s" in error.text


def test_several_requests_have_one_time_for_all_where_it_is_set(server):
    server.answer = lambda _seen: Reply(200, {}) if len(server.seen) == 1 else Reply(raw=b"", end="hang")
    started = time.monotonic()
    with http.deadline(1.5):
        door(server).post(server.url, json={}, timeout=LONG)
        assert refused(lambda: door(server).post(server.url, json={}, timeout=LONG)).left
        assert 1.45 < time.monotonic() - started < SOON, "the second has what the first left"
        error = refused(lambda: door(server).post(server.url, json={}, timeout=LONG))
        assert not error.left and not error.permanent and not error.is_network and "no time left" in error.text
    assert until(lambda: len(server.seen) >= 2) and len(server.seen) == 2
    server.answer = Reply()
    assert door(server).post(server.url, json={}).status == 200, "and afterwards none is over"


def test_a_body_that_breaks_off_is_no_answer_unless_only_the_status_was_asked_for(server):
    server.answer = Reply(200, b'{"code":0', claims=5, end="close")
    assert refused(lambda: door(server).post(server.url, json={})).left
    assert door(server).post(server.url, json={}, status_only=True).status == 200


def test_a_refusal_is_a_refusal_though_its_body_breaks_off(server):
    server.answer = Reply(403, b"no bo", claims=5, end="close")
    error = refused(lambda: by_status(door(server).post(server.url, json={})))
    assert error.permanent and not error.left


def test_a_dripping_body_nobody_needs_costs_a_second(server, monkeypatch):
    monkeypatch.setattr(http, "STATUS_SECONDS", 0.1)
    server.answer = Reply(200, b"x" * 3000, drip=0.02)
    started = time.monotonic()
    assert door(server).post(server.url, json={}, status_only=True, timeout=LONG).status == 200
    assert time.monotonic() - started < SOON


def test_a_body_has_an_end(server):
    server.answer = Reply(200, b"x" * (http.MAX_BODY + 1))
    error = refused(lambda: door(server).post(server.url, json={}))
    assert error.left and "256 kB" in error.text
    server.answer = Reply(200, b"x" * http.MAX_BODY)
    assert len(door(server).post(server.url, json={}).body) == http.MAX_BODY


def test_a_compressed_bomb_has_the_same_end(server):
    import gzip

    server.answer = Reply(200, gzip.compress(b"x" * 50_000_000), headers={"Content-Encoding": "gzip"})
    assert refused(lambda: door(server).post(server.url, json={})).left


@pytest.mark.parametrize(
    ("status", "permanent", "left"),
    [
        (407, False, False), (400, True, False), (401, True, False), (403, True, False), (404, True, False), (410, True, False), (413, True, False),
        (408, False, False), (425, False, False), (429, False, False), (500, False, False), (502, False, True), (520, False, True), (522, False, False), (524, False, True), (503, False, False),
        (504, False, True), (301, True, False), (307, True, False), (304, True, False),
    ],
)  # fmt: skip
def test_statuses(server, status, permanent, left):
    server.answer = Reply(status)
    error = refused(lambda: by_status(door(server).post(server.url, json={})))
    assert (error.permanent, error.left) == (permanent, left)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_success(server, status):
    server.answer = Reply(status)
    by_status(door(server).post(server.url, json={}))


def _wait(value, date=None):
    return Answer(429, {"Retry-After": value, **({"Date": date} if date else {})}, b"").retry_after()


def test_retry_after():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert _wait("7") == 7.0
    assert _wait("1.5") == 1.5
    assert _wait(format_datetime(now + timedelta(seconds=90), usegmt=True), format_datetime(now, usegmt=True)) == 90.0
    assert _wait(format_datetime(now, usegmt=True)) == 0.0  # long past by our clock
    assert _wait("999999999") == 86_400.0
    assert _wait("-5") == 0.0
    assert [_wait(text) for text in ("soon", "", "nan", "inf-")] == [None] * 4


def test_an_error_never_repeats_a_secret(server):
    server.answer = lambda seen: Reply(
        400, f"bad {seen.path} {seen.headers['authorization']} {seen.headers['x-token']} shared-secret-1 tail"
    )
    channel = door(server)
    channel.hide(["shared-secret-1"])
    url = f"http://{server.host}/hook/path-secret?key=query%2Dsecret&a=1"
    headers = {"Authorization": "Bearer header-secret", "X-Token": "other-secret"}
    text = refused(lambda: by_status(channel.post(url, json={}, headers=headers))).text
    assert "tail" in text and "secret" not in text


# --- TLS, proxies -------------------------------------------------------------------------------------------------------------------


def test_tls_needs_an_authority_one_knows(ca):
    with Server(context=ca.server) as server:
        error = refused(lambda: door(server).post(f"{server.url}/hook/aaaabbbb", json={}))
        assert (error.permanent, error.left, error.is_network) == (False, False, False)
        assert "not trusted" in error.text and "aaaabbbb" not in error.text
        assert server.seen == []
        channel = door(server, ca_bundle=ca.pem)
        assert channel.post(server.url, json={}).status == 200
        assert door(server, ca_bundle=ca.pem).post(server.url, json={}).status == 200
        assert server.seen[-1].connection == server.seen[-2].connection, "the pool is shared, TLS included"
        wrong_name = Http(ca_bundle=ca.pem, allow_private=True)
        assert "not trusted" in refused(lambda: wrong_name.post(f"https://127.1:{server.port}/", json={})).text


def test_tls_with_a_server_that_speaks_none(server):
    error = refused(lambda: door(server).post(f"https://{server.host}/", json={}))
    assert (error.permanent, error.left) == (False, False) and "secure connection" in error.text


def test_tls_reads_have_the_same_deadline(ca):
    with Server(Reply(200, b"x" * 3000, drip=0.02), context=ca.server) as server:
        started = time.monotonic()
        assert refused(lambda: door(server, ca_bundle=ca.pem).post(server.url, json={}, timeout=1.5)).left
        assert time.monotonic() - started < SOON


def test_a_handshake_that_never_comes_leaves_nothing(monkeypatch):
    monkeypatch.setattr(sockets, "CONNECT_SECONDS", 0.2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(5)
        error = refused(lambda: Http(allow_private=True).post(f"https://127.0.0.1:{mute.getsockname()[1]}/", json={}))
    assert (error.permanent, error.left) == (False, False)


def test_through_a_proxy_the_proxy_is_judged(ca):
    with Proxy() as proxy, Server(context=ca.server) as server:
        error = refused(lambda: Http(proxy.url).post("http://example.com/x", json={}))
        assert error.config and "private address" in error.text and proxy.carried == []
        channel = Http(proxy.url, ca.pem, [proxy.host])
        assert channel.post("http://example.com/x", json={"a": 1}).body == b'carried {"a":1}'
        assert channel.post(f"https://localhost:{server.port}/y", json={}).status == 200
        assert proxy.carried == ["POST http://example.com/x", f"CONNECT localhost:{server.port}"]
        assert refused(lambda: channel.post("http://169.254.169.254/latest", json={})).config
        assert refused(lambda: channel.post("http://0xa9fea9fe/latest", json={})).config


def test_a_proxy_that_refuses_is_our_network(ca):
    with Proxy(password="proxy-password") as proxy:
        channel = Http(proxy.url.replace("proxy-password", "wrong-password"), "", [proxy.host])
        error = refused(lambda: channel.post("https://example.com/hook/abcdefgh", json={}))
        assert (error.permanent, error.left, error.is_network) == (False, False, True)
        assert "407" in error.text and "password" not in error.text and "abcdefgh" not in error.text
        assert Http(proxy.url, "", [proxy.host]).post("http://example.com/", json={}).status == 200


def test_settings_are_checked():
    assert Http.check("http://proxy.example:3128", "", ["10.0.0.5:8443", "relay:25"]) == {}
    assert all(set(Http.check(allowed_hosts=[host])) == {"allowed_hosts"} for host in ("a:²", "a:٣", "a:", ":1", "a:99999", "a:-1"))
    wrong = Http.check("socks5://proxy.example", "no certificate", ["10.0.0.5", "http://x:1"])
    assert sorted(wrong) == ["allowed_hosts", "ca_bundle", "proxy"]
    assert refused(
        lambda: Http("", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----").post("http://example.com/", json={})
    ).config


# --- connections --------------------------------------------------------------------------------------------------------------------


def test_connections_are_kept_and_shared_by_all_that_have_the_same_settings(server):
    for _ in range(5):
        door(server).post(server.url, json={})
    assert server.connections == 1
    Http(allowed_hosts=[server.host, "other:1"]).post(server.url, json={})
    assert server.connections == 2, "what one channel may reach does not serve another"


def test_a_connection_that_idled_too_long_is_replaced(server, monkeypatch):
    channel = door(server)
    channel.post(server.url, json={})
    monkeypatch.setattr(http, "IDLE_SECONDS", -1.0)
    channel.post(server.url, json={})
    assert server.connections == 2


def test_a_connection_that_the_server_closed_is_replaced(server):
    server.answer = lambda seen: Reply(200, end="close" if seen.connection == 1 else "keep")
    channel = door(server)
    channel.post(server.url, json={})
    adapter = http._adapter("", "", channel.guard)
    pool = adapter.poolmanager.connection_from_url(server.url)
    assert until(lambda: pool.pool.queue[-1] is None or not pool.pool.queue[-1].is_connected)
    assert channel.post(server.url, json={}).status == 200


def test_half_an_answer_is_not_the_beginning_of_the_next(server):
    server.answer = lambda seen: Reply(200, b"y" * (http.MAX_BODY * 2)) if len(server.seen) == 1 else Reply(200, b"second")
    channel = door(server)
    refused(lambda: channel.post(server.url, json={}))
    assert channel.post(server.url, json={}).body == b"second"


def test_64_threads_share_one_door(server):
    """Each gets its own answer, nobody waits for another's connection."""
    server.answer = lambda seen: Reply(200, seen.body)
    channel, wrong = door(server), []

    def send(number):
        for turn in range(5):
            body = f"{number}-{turn}".encode()
            if channel.post(server.url, data=body, timeout=LONG).body != body:
                wrong.append(body)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LONG)
    assert wrong == [] and len(server.seen) == 320
    assert server.connections <= 64
