"""The switch: Python itself loads it (PYTHONPATH) into every process the driver starts, and the product does not know of it.

It makes each commit and each step of a request to the ledger a *site* that lists itself (CHAOS_DIR/sites/), and does there what
CHAOS_DIR/plan.json says: {"id": number, "site": name, "n": at the how-manieth visit in one process, "halt": seconds}. Renaming the plan to
fired.<id>.<pid>.<monotonic ns> claims it, so one plan is for one process. With "halt" 0 the process ends itself by SIGKILL; otherwise the thread that
passed stands still until CHAOS_DIR/go.<id> is there, at most so long: meanwhile the driver kills whom it wants. CHAOS_DIR/who/<pid> says what
django-q2 and granian forked a process for. Without CHAOS_DIR it does nothing."""

import hashlib
import importlib.abc
import json
import os
import re
import signal
import sys
import time
import types

FOLDER = os.environ.get("CHAOS_DIR", "")
ROOT = os.environ.get("CHAOS_ROOT", "") + os.sep
LEDGER_PORT = int(os.environ.get("CHAOS_LEDGER_PORT", "0"))
PLAN = os.path.join(FOLDER, "plan.json")
PART = "web" if os.environ.get("FLASHDUTY_WEB") else "work" if os.environ.get("FLASHDUTY_TREE") else "start"

# Statements that change rows; outside a transaction each of them is a commit of its own. FOR UPDATE and FOR NO KEY UPDATE change nothing.
CHANGES = re.compile(r"\bINSERT\s+INTO\b|\bDELETE\s+FROM\b|(?<!FOR\s)(?<!KEY\s)\bUPDATE\s+[\"\w]", re.IGNORECASE)

_seen: set[str] = set()
_ours: dict[object, bool] = {}
_changes: dict[str, bool] = {}
_visits: dict[int, int] = {}  # plan id -> visits of its site in this process


def passed(step: str, where: str) -> None:
    """A site: said once, and the end of this process, or a halt, if the plan is for it."""
    site = f"{step} | {PART} | {where}"
    if site not in _seen:
        _seen.add(site)
        path = os.path.join(FOLDER, "sites", hashlib.sha256(site.encode()).hexdigest()[:24])
        if not os.path.exists(path):
            with open(f"{path}.{os.getpid()}.new", "w") as file:
                file.write(site)
            os.rename(f"{path}.{os.getpid()}.new", path)
    try:
        with open(PLAN) as file:
            plan = json.load(file)
    except (FileNotFoundError, ValueError):
        return
    if plan["site"] != site:
        return
    visits = _visits[plan["id"]] = _visits.get(plan["id"], 0) + 1
    if visits >= plan["n"]:
        try:
            os.rename(PLAN, os.path.join(FOLDER, f"fired.{plan['id']}.{os.getpid()}.{time.monotonic_ns()}"))
        except FileNotFoundError:
            return  # another process was first
        if not plan["halt"]:
            os.kill(os.getpid(), signal.SIGKILL)
        until, go = time.monotonic() + plan["halt"], os.path.join(FOLDER, f"go.{plan['id']}")
        while time.monotonic() < until and not os.path.exists(go):
            time.sleep(0.002)


def call_site() -> str:
    """module:function:line of the nearest frame of the product's own code, or of django-q2 where there is none."""
    frame: types.FrameType | None = sys._getframe(2)
    last = ""
    while frame is not None:
        code = frame.f_code
        mine = _ours.get(code)
        if mine is None:
            name = code.co_filename
            mine = _ours[code] = name.startswith(ROOT) and "site-packages" not in name and not name.startswith(os.path.dirname(__file__))
        if mine:
            return f"{frame.f_globals.get('__name__', '?')}:{code.co_name}:{frame.f_lineno}"
        if not last and f"{os.sep}django_q{os.sep}" in code.co_filename:
            last = f"{frame.f_globals.get('__name__', '?')}:{code.co_name}:{frame.f_lineno}"
        frame = frame.f_back
    return last or "elsewhere"


def in_psycopg(module) -> None:
    commit, execute, executemany = module.Connection.commit, module.Cursor.execute, module.Cursor.executemany

    def commits(self):
        if self.pgconn.transaction_status == 0:  # nothing to commit
            return commit(self)
        where = call_site()
        passed("before commit", where)
        result = commit(self)
        passed("after commit", where)
        return result

    def changes(query) -> bool:
        if not isinstance(query, str):
            return False
        known = _changes.get(query)
        if known is None:
            if len(_changes) > 2000:
                _changes.clear()
            known = _changes[query] = bool(CHANGES.search(query))
        return known

    def alone(real):
        def run(self, query, *args, **kwargs):
            wire = self.connection
            if not wire.autocommit or wire.pgconn.transaction_status != 0 or not changes(query):
                return real(self, query, *args, **kwargs)
            where = call_site()
            passed("before statement", where)
            result = real(self, query, *args, **kwargs)
            passed("after statement", where)
            return result

        return run

    module.Connection.commit = commits
    module.Cursor.execute = alone(execute)
    module.Cursor.executemany = alone(executemany)


def in_http(module) -> None:
    send, getresponse = module.HTTPConnection.send, module.HTTPConnection.getresponse

    def sends(self, data):
        if self.port != LEDGER_PORT or not isinstance(data, bytes):
            return send(self, data)
        head, blank, body = data.partition(b"\r\n\r\n") if data[:5] in (b"POST ", b"PUT /") else (b"", b"", data)
        if head:
            passed("before send", "ledger")
            if not body:
                return send(self, data)
            send(self, head + blank)
        passed("amid send", "ledger")
        result = send(self, body)
        passed("after send", "ledger")
        return result

    def answers(self, *args, **kwargs):
        result = getresponse(self, *args, **kwargs)
        if self.port == LEDGER_PORT:
            passed("after answer", "ledger")
        return result

    module.HTTPConnection.send = sends
    module.HTTPConnection.getresponse = answers


def in_processes(module) -> None:
    bootstrap = module.BaseProcess._bootstrap

    def begins(self, *args, **kwargs):
        target = getattr(self, "_target", None)
        with open("/proc/self/stat") as file:
            born = file.read().rpartition(")")[2].split()[19]
        with open(os.path.join(FOLDER, "who", str(os.getpid())), "w") as file:
            file.write(f"{getattr(target, '__name__', '?')} {born}")
        return bootstrap(self, *args, **kwargs)

    module.BaseProcess._bootstrap = begins


def _both(execute, hook):
    def run(module) -> None:
        execute(module)
        hook(module)

    return run


class Finder(importlib.abc.MetaPathFinder):
    """Puts a hook behind the execution of a module, whenever the product imports it."""

    hooks = {"psycopg": in_psycopg, "http.client": in_http, "multiprocessing.process": in_processes}

    def find_spec(self, name, path, target=None):
        hook = self.hooks.pop(name, None)
        if hook is None:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                setattr(spec.loader, "exec_module", _both(spec.loader.exec_module, hook))  # noqa: B010 (a method of one instance)
                return spec
        return None


if FOLDER:
    sys.meta_path.insert(0, Finder())
    for _name in [name for name in Finder.hooks if name in sys.modules]:  # imported before us
        Finder.hooks.pop(_name)(sys.modules[_name])
