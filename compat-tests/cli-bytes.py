#!/usr/bin/env python3
"""Runs the same commands with two command lines against the same engine and compares what they print, byte for byte.

usage: cli-bytes.py --docker PATH --ours PATH --host unix:///engine.sock

The commands are those of cli-commands.txt: `@` is the command line's own prefix (so that the two do not meet), `%` a number of its own.
Ids, times and durations are masked, nothing else. Prints each difference and a count; exits 1 if there is a difference that
cli-differences.txt does not name.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "benches"))
from cycle import archive  # noqa: E402  (the image both use)


def mask(text, prefix):
    text = text.replace(prefix, "@")
    text = re.sub(r"\b[0-9a-f]{64}\b", "<id64>", text)
    text = re.sub(r"\b[0-9a-f]{12}\b", "<id12>", text)
    text = re.sub(r"(Less than a second|\d+ seconds?|About a minute|\d+ minutes?|About an hour|\d+ hours?)( ago)?", "<span>", text)
    text = re.sub(r"(?m)^\d+( +\w+)$", r"<n>\1", text)
    text = re.sub(r"10\.77\.\d\.", "10.77.N.", text)
    return re.sub(r" {3,}", "   ", text)


def run(program, line, prefix, number, host, config):
    words = [word.replace("%", number).replace("@", prefix) for word in shlex.split(line)]
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
                          env={**os.environ, "DOCKER_HOST": host, "DOCKER_CONFIG": config, "DOCKER_CLI_HINTS": "false"})
    return done.returncode, mask(done.stdout, prefix), mask(done.stderr, prefix)


def lines_of(name):
    with open(os.path.join(HERE, name)) as file:
        return [line.rstrip("\n") for line in file if line.strip() and not line.startswith("#")]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--docker", required=True)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--host", required=True)
    args = parser.parse_args()
    known = set(lines_of("cli-differences.txt"))
    lines = lines_of("cli-commands.txt")
    same, surprises = 0, 0
    with tempfile.TemporaryDirectory() as config:
        def quiet(*words):
            subprocess.run([args.docker, "-H", args.host, *words], capture_output=True)
        tar = os.path.join(config, "image.tar")
        with open(tar, "wb") as out:
            out.write(archive())
        subprocess.run([args.docker, "-H", args.host, "load", "-q", "-i", tar], check=True, capture_output=True)
        try:
            for line in lines:
                theirs = run(args.docker, line, "zzt", "1", args.host, config)
                ours = run(args.ours, line, "zzo", "2", args.host, config)
                if theirs == ours:
                    same += 1
                else:
                    surprises += line not in known
                    print(f"{'known' if line in known else 'DIFF'} {line}\n  docker: {theirs}\n  ours:   {ours}")
        finally:
            for prefix in ("zzt", "zzo"):
                for name in "abcd":
                    quiet("rm", "-f", prefix + name)
                quiet("rmi", f"{prefix}image:1", f"{prefix}image:2")
                quiet("volume", "rm", prefix + "v")
                quiet("network", "rm", prefix + "n")
    print(f"{same} of {len(lines)} commands print the same bytes, {len(lines) - same - surprises} differ as known, {surprises} surprise")
    return surprises > 0


if __name__ == "__main__":
    sys.exit(main())
