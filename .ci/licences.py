#!/usr/bin/env python3
"""Every crate we link must have a licence we may ship, and none may be on the list of known-bad versions.

Works offline: it reads `cargo metadata --locked`. .ci/advisories.txt has one `crate version-requirement  reason` a line
(requirement: `<X.Y.Z`), kept by hand from the advisory database.
"""

import json
import pathlib
import re
import subprocess
import sys

ALLOWED = {
    "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "0BSD",
    "Unicode-3.0", "Unlicense", "BSL-1.0", "CC0-1.0", "CDLA-Permissive-2.0",
}


def acceptable(expression):
    """Whether an SPDX expression (or the older `A/B`) leaves us a licence we may use."""
    expression = expression.replace("/", " OR ")
    tokens = re.findall(r"\(|\)|[^\s()]+", expression)
    words, i = [], 0
    while i < len(tokens):
        if i + 2 < len(tokens) and tokens[i + 1] == "WITH":
            words.append(" ".join(tokens[i:i + 3]))
            i += 3
        else:
            words.append(tokens[i])
            i += 1
    python = " ".join(
        word.lower() if word in ("AND", "OR") else word if word in "()" else str(word in ALLOWED) for word in words)
    return eval(python, {"__builtins__": {}})  # only True, False, and, or, parentheses


def numbers(version):
    return tuple(int(part) for part in re.split(r"[-+]", version)[0].split("."))


def main():
    here = pathlib.Path(__file__).resolve().parent
    metadata = json.loads(subprocess.check_output(
        ["cargo", "metadata", "--format-version", "1", "--locked"], cwd=here.parent))
    bad = []
    for package in metadata["packages"]:
        name, version, licence = package["name"], package["version"], package.get("license")
        if not licence and not package.get("license_file"):
            bad.append(f"{name} {version}: no licence")
        elif licence and not acceptable(licence):
            bad.append(f"{name} {version}: licence {licence}")
    for line in (here / "advisories.txt").read_text().splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        crate, requirement, reason = line.split(None, 2)
        for package in metadata["packages"]:
            if package["name"] == crate and numbers(package["version"]) < numbers(requirement.removeprefix("<")):
                bad.append(f"{crate} {package['version']}: {reason}")
    print("\n".join(bad) if bad else f"licences and advisories: {len(metadata['packages'])} crates, all good")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
