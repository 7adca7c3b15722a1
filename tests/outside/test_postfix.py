"""Mail that comes back, end to end: our channel, Debian's Postfix, a receiver that refuses, Postfix's own report, and Dovecot, from which our
channel reads it over IMAP and POP3."""

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest

from channels_app import bounces
from channels_app.http import Http
from channels_app.transports.email import Email
from tests.fakes.message import page
from tests.fakes.smtp import Mailbox, free_port
from tests.fakes.tls import authority
from tests.outside.product import until

pytestmark = pytest.mark.outside

MAIN = """
compatibility_level = 3.6
config_directory = {root}/etc
queue_directory = {root}/queue
data_directory = {root}/data
maillog_file = {root}/postfix.log
maillog_file_prefixes = {root}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = relay.example.com
mydestination =
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
smtp_dns_support_level = disabled
transport_maps = inline:{{ example.net=smtp:[127.0.0.1]:{receiver} }}
virtual_mailbox_domains = mail.example.com
virtual_mailbox_maps = inline:{{ bounces@mail.example.com=bounces/ }}
virtual_mailbox_base = {root}/mail
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
recipient_delimiter = +
minimal_backoff_time = 1s
queue_run_delay = 1s
bounce_queue_lifetime = 1d
"""
MASTER = """
127.0.0.1:{smtp} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 1 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
tlsmgr unix - - n 1000? 1 tlsmgr
postlog unix-dgram n - n - 1 postlogd
"""
DOVECOT = """
base_dir = {root}/run
state_dir = {root}/state
log_path = {root}/dovecot.log
protocols = imap pop3
listen = 127.0.0.1
ssl = yes
ssl_cert = <{cert}
ssl_key = <{cert}
disable_plaintext_auth = no
default_internal_user = dovecot
default_login_user = dovenull
mail_location = maildir:{root}/mail/bounces
first_valid_uid = 1
passdb {{
  driver = static
  args = password=s3cret!mailbox
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={root}/mail
}}
service imap-login {{
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = {imaps}
    ssl = yes
  }}
}}
service pop3-login {{
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
"""


class Servers:
    def __init__(self, root: Path, receiver: int) -> None:
        owner = pwd.getpwnam("nobody")
        self.root, self.ca = root, authority(root)
        self.ports = {name: free_port() for name in ("smtp", "imap", "imaps", "pop3")}
        values = {
            "root": root, "receiver": receiver, "uid": owner.pw_uid, "gid": owner.pw_gid, "cert": self.ca.cert_file, **self.ports,
        }  # fmt: skip
        for name in ("etc", "queue", "data", "mail", "run", "state"):
            (root / name).mkdir()
        shutil.chown(root / "data", "postfix")
        shutil.chown(root / "mail", owner.pw_uid, owner.pw_gid)
        (root / "etc/main.cf").write_text(MAIN.format(**values))
        (root / "etc/master.cf").write_text(MASTER.format(**values).lstrip())
        (root / "dovecot.conf").write_text(DOVECOT.format(**values))

    def start(self) -> None:
        self._run("postfix", "-c", str(self.root / "etc"), "start")
        self._run("dovecot", "-c", str(self.root / "dovecot.conf"))

    def stop(self) -> None:
        self._run("postfix", "-c", str(self.root / "etc"), "stop", check=False)
        self._run("doveadm", "-c", str(self.root / "dovecot.conf"), "stop", check=False)

    @staticmethod
    def _run(*command: str, check: bool = True) -> None:
        # Not into pipes: the daemons inherit them, and whoever reads waits for their end.
        subprocess.run(command, check=check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)


@pytest.fixture(scope="module")
def receiver():
    with Mailbox() as running:
        yield running


@pytest.fixture(scope="module")
def servers(receiver):
    if os.geteuid() or not all(map(shutil.which, ("postfix", "dovecot"))):
        pytest.skip("needs root, and Debian's postfix, dovecot-imapd and dovecot-pop3d")
    # Not below /root: the servers' users have to get there.
    root = Path(subprocess.run(["mktemp", "-d", "/tmp/flashduty-mail.XXXXXX"], check=True, capture_output=True, text=True).stdout.strip())
    root.chmod(0o755)
    made = Servers(root, receiver.port)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(autouse=True)
def an_empty_mailbox_that_is_read_at_any_time(servers, monkeypatch):
    monkeypatch.setattr(bounces, "INTERVAL", 0.0)
    for mail in (servers.root / "mail/bounces").glob("*/*:2,*"):
        mail.unlink()


def channel(servers: Servers, protocol: str, security: str, **settings) -> Email:
    port = servers.ports["imaps" if (protocol, security) == ("imap", "tls") else protocol]
    settings = {
        "host": "127.0.0.1", "port": servers.ports["smtp"], "security": "none", "from_email": "oncall@mail.example.com",
        "envelope_from": "bounces@mail.example.com", "bounce_protocol": protocol, "bounce_host": "127.0.0.1", "bounce_port": port,
        "bounce_security": security, "bounce_username": "bounces", "bounce_password": "s3cret!mailbox", **settings,
    }  # fmt: skip
    assert Email.check(settings) == {}
    return Email(settings, Http("", servers.ca.pem, allow_private=True))


def heard(mail: Email) -> list:
    found: list = []

    def any_news() -> bool:
        found.extend(mail.poll([]))
        return bool(found)

    until(any_news, 30, "a report of Postfix")
    return found


@pytest.mark.parametrize(
    ("protocol", "security", "answer", "state", "uid"),
    [
        ("imap", "tls", "550 5.1.1 no such user", "bounced", "00000000-0000-4000-8000-000000000001"),
        ("imap", "starttls", "552 5.2.2 mailbox is full", "failed", "00000000-0000-4000-8000-000000000002"),
        ("pop3", "starttls", "550 5.1.1 no such user", "bounced", "00000000-0000-4000-8000-000000000003"),
        ("pop3", "none", "554 5.7.1 looks like spam", "failed", "00000000-0000-4000-8000-000000000004"),
    ],
)
def test_what_postfix_reports_is_understood(servers, receiver, protocol, security, answer, state, uid):
    receiver.refuse = {"RCPT": answer}
    mail = channel(servers, protocol, security)
    receipt = mail.send(page(delivery_id=uid), "li@example.net")
    (update,) = heard(mail)
    assert (update.message_id, update.state) == (receipt.message_id, state)
    assert answer in update.reason and "li@example.net" not in update.reason
    assert mail.poll([]) == [] == mail.poll([]), "marked (or, by POP3, deleted) after it was told"
    kept = list((servers.root / "mail/bounces").glob("*/*:2,S")) if protocol == "imap" else []
    assert bool(kept) is (protocol == "imap")


def test_each_mail_has_a_return_path_of_its_own(servers, receiver):
    receiver.refuse = {"RCPT": "550 5.1.1 no such user"}
    mail = channel(servers, "imap", "none", envelope_from="bounces+{id}@mail.example.com")
    receipt = mail.send(page(delivery_id="00000000-0000-4000-8000-000000000005"), "li@example.net")
    raw: list[bytes] = []

    def come() -> bool:
        raw.extend(bounces.collect(mail._mailbox, mail.http))
        return bool(raw)

    until(come, 30, "a report of Postfix")
    without = raw[0].replace(receipt.message_id.encode(), b"<hidden@by.the.server>")
    assert [update.message_id for update in mail._about_ours(without)] == [receipt.message_id]
