"""A suite: functions that use a client as a person would, each told apart by name, run in order, each answered by one line.

A line is `ok<TAB>NAME<TAB>SECONDS` or `red<TAB>NAME<TAB>WHY`; the runner reads nothing else. The environment says where things are:
DOCKER_HOST the engine, COMPAT_DOCKER the docker command line, COMPAT_TMP a folder of the suite's own.
"""

import os
import re
import subprocess
import sys
import time
import traceback

DOCKER = os.environ.get("COMPAT_DOCKER", "docker")
TMP = os.environ.get("COMPAT_TMP", "/tmp")
BUSYBOX, REDIS, POSTGRES = "compat-busybox:1", "compat-redis:1", "compat-postgres:1"
FOUND = []


def scenario(function):
    """Marks a function as a scenario; its name, with spaces, is the scenario's."""
    FOUND.append(function)
    return function


class Result(str):
    """What a command printed, and how it ended."""

    code: int
    err: str


def sh(*words, code=0, input=None, env=None, cwd=None, timeout=60):
    """Runs a command; its exit code must be `code` (None: any)."""
    done = subprocess.run(words, capture_output=True, text=True, input=input, timeout=timeout, cwd=cwd, env={**os.environ, **(env or {})},
                          **({} if input is not None else {"stdin": subprocess.DEVNULL}))
    if code is not None and done.returncode != code:
        raise AssertionError(f"{' '.join(words)}: exit {done.returncode}, not {code}: {done.stdout[-400:]} {done.stderr[-600:]}")
    result = Result(done.stdout)
    result.code, result.err = done.returncode, done.stderr
    return result


def docker(*words, **options):
    return sh(DOCKER, *words, **options)


def equal(got, want):
    if got != want:
        raise AssertionError(f"got {got!r}, not {want!r}")


def has(text, *parts):
    for part in parts:
        if part not in text:
            raise AssertionError(f"no {part!r} in {text!r}")


def lacks(text, *parts):
    for part in parts:
        if part in text:
            raise AssertionError(f"{part!r} in {text!r}")


def matches(text, pattern):
    if not re.search(pattern, text, re.M):
        raise AssertionError(f"{pattern!r} does not match {text!r}")


def until(condition, what, seconds=30):
    """Waits for a condition, with a deadline; its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.05)


def raises(kind, call, *parts):
    """The error of a call that must fail, whose text has all parts."""
    try:
        call()
    except kind as err:
        has(str(err), *parts)
        return err
    raise AssertionError(f"no {kind.__name__}")


def main():
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    for function in FOUND:
        name = function.__name__.replace("_", " ")
        if only not in name:
            continue
        start = time.monotonic()
        try:
            function()
            print(f"ok\t{name}\t{time.monotonic() - start:.2f}", flush=True)
        except Exception as err:
            where = traceback.extract_tb(err.__traceback__)
            line = next((frame.lineno for frame in reversed(where) if frame.filename == sys.argv[0] or frame.filename.endswith(os.path.basename(sys.argv[0]))), 0)
            why = f"line {line}: {type(err).__name__}: {err}"
            print(f"red\t{name}\t{' '.join(why.split())[:1500]}", flush=True)
