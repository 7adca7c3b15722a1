"""Makes the virtualenv and installs what pyproject.toml asks for: `python3 flashduty/bootstrap.py .venv [group ...]`.

Run by the machine's own Python before anything is installed: standard library only, and old Pythons must be able to read this file
to be told that they are too old, before the imports. A stamp in the virtualenv makes every later call instant and independent of the network."""

# ruff: noqa: E402

import sys

OLDEST, NEWEST = (3, 11), (3, 13)


def give_up(sentence):
    sys.stderr.write(f"{sentence}\n")
    sys.exit(1)


if not OLDEST <= sys.version_info[:2] <= NEWEST:
    give_up(
        f"Flashduty needs Python 3.11, 3.12 or 3.13 and {sys.executable or 'this python3'} is {sys.version_info[0]}.{sys.version_info[1]}: "
        "install one of them and name it, for example `make run PYTHON=python3.13`."
    )

import fcntl
import hashlib
import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import threading
import time
import tomllib

TREE = pathlib.Path(__file__).resolve().parent.parent
HOUSES = ("flashduty", "escalation", "channels_app", "templates_app", "mapping")


def main(venv, groups):
    """Brings `venv` up to the requirements of the project and of `groups`; exits with one sentence when that cannot be."""
    project = tomllib.loads((TREE / "pyproject.toml").read_text())
    wanted = {"run": project["project"]["dependencies"], **project.get("dependency-groups", {})}
    unknown = [group for group in groups if group not in wanted]
    if unknown:
        give_up(f"pyproject.toml has no dependency group {unknown[0]}.")
    python = venv / "bin" / "python"
    stamp_file = venv / "flashduty-installed.json"
    stamps = read(stamp_file) if python.exists() else {}
    needed = {name: hashlib.sha256(json.dumps(wanted[name]).encode()).hexdigest() for name in ["run", *groups]}
    if all(stamps.get(name) == value for name, value in needed.items()):
        return
    with_lock(venv)
    stamps = read(stamp_file) if python.exists() else {}  # another make may have done it while we waited
    missing = [name for name, value in needed.items() if stamps.get(name) != value]
    if not missing:
        return
    version = make_venv(venv, python)
    requirements = [line for name in dict.fromkeys(["run", *missing]) for line in wanted[name]]
    install(venv, python, requirements)
    for house in HOUSES:  # so that the first start does not compile them one by one
        subprocess.run([python, "-m", "compileall", "-q", TREE / house], check=False, stdout=subprocess.DEVNULL)
    fresh = stamp_file.with_suffix(".new")
    fresh.write_text(json.dumps(stamps | {name: needed[name] for name in missing} | {"python": version}, indent=1) + "\n")
    fresh.replace(stamp_file)


def read(path):
    try:
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def with_lock(venv):
    """One at a time in this tree; the lock ends with this process."""
    handle = os.open(TREE, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"waiting for another make that installs into {venv.name}")
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        pass  # a file system without locks: then as everybody else's pip does it


def make_venv(venv, python):
    """The version of the virtualenv's Python; the virtualenv is made when there is none, or when its Python is gone."""
    version = version_of(python)
    if version is None:
        for module in ("venv", "ensurepip"):
            try:
                importlib.import_module(module)  # one that is there and broken is of no more use than none
            except ImportError:
                package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
                give_up(
                    f"{sys.executable} comes without {module}, which makes the virtualenv: on Debian and Ubuntu, `apt-get install {package}`."
                )
        try:
            if venv.exists():
                say(f"{venv.name} has no working Python: making it anew")
                shutil.rmtree(venv)
        except OSError as e:
            give_up(f"{venv} cannot be made anew: {e.strerror} ({e.filename}).")
        watch(
            f"making a virtualenv with Python {sys.version.split()[0]}",
            # By its real name: a venv made through a symlink looks for the library beside the link, where a Python that was moved has none.
            [os.path.realpath(sys.executable), "-m", "venv", str(venv)],
            lambda: shutil.rmtree(venv, ignore_errors=True),
        )
        version = version_of(python)
        if version is None:
            give_up(f"{python} was made and does not start.")
    if not OLDEST <= version <= NEWEST:
        give_up(f"{venv} holds Python {version[0]}.{version[1]}, and Flashduty needs 3.11 to 3.13: remove that folder and try again.")
    if version != sys.version_info[:2]:
        say(f"{venv.name} holds Python {version[0]}.{version[1]} and stays as it is; for another one, name another folder with VENV=")
    return f"{version[0]}.{version[1]}"


def version_of(python):
    try:
        out = subprocess.run([python, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, env=environment())
        return tuple(map(int, out.stdout.split())) if out.returncode == 0 else None
    except (OSError, ValueError):
        return None


def install(venv, python, requirements):
    command = [
        python,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar=off",
        "--compile",
        *requirements,
    ]
    watch(f"installing {len(requirements)} packages and what they need into {venv.name}", [str(part) for part in command])


def watch(what, command, undo=lambda: None):
    """Runs `command` and says every few seconds how far it is, in a dumb terminal too; its own words only when it fails."""
    say(what)
    begun = told = time.monotonic()
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env=environment(),
            cwd=TREE,
        )
    except OSError as e:
        give_up(f"{command[0]} cannot be started: {e.strerror}.")
    lines: list[str] = []
    reader = threading.Thread(target=collect, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        while reader.is_alive():
            reader.join(0.1)
            if time.monotonic() - told > 2:
                told = time.monotonic()
                doing = next(
                    (line for line in reversed(lines) if re.match(r"\s*(Collecting|Downloading|Using cached|Installing|Building)", line)),
                    "",
                )
                say(f"  {told - begun:3.0f} s  {' '.join(doing.split())[:70]}")
        code = process.wait()
    except KeyboardInterrupt:
        process.kill()
        undo()
        give_up("Interrupted; the next call goes on from here.")
    if code:
        undo()
        sys.stderr.write("".join(lines[-25:]))
        errors = [line.strip() for line in lines if re.match(r"\s*(ERROR|Error|error)", line)]
        give_up(f"Failed while {what}: {errors[-1] if errors else f'exit code {code}'}")
    if told != begun:
        say(f"  {time.monotonic() - begun:3.0f} s  done")


def collect(stream, lines):
    for line in stream:
        lines.append(line)


def environment():
    """Ours, less what would send pip or Python somewhere else than into this virtualenv."""
    return {k: v for k, v in os.environ.items() if k not in ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PYTHONHOME", "PYTHONPATH")}


def say(line):
    print(line, flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        give_up("usage: python3 flashduty/bootstrap.py VENV [dependency group ...]")
    main(pathlib.Path(os.path.abspath(sys.argv[1])), sys.argv[2:])
