"""Writes the API's description, as a node serves it under `/openapi.json`, to docs/openapi.json.

`python -m ops.openapi_file` rewrites it; with `--check` it only says whether it is current (exit status 1 if not), which
is what CI asks: a change of the wire shows in the diff of this file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dakera_cluster.api.openapi import document
from dakera_cluster.api.routes import ROUTES

TARGET = Path(__file__).resolve().parent.parent / "docs" / "openapi.json"


def text() -> str:
    return json.dumps(document(ROUTES), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.openapi_file", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 when the file is stale")
    arguments = parser.parse_args()
    new = text()
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == new:
        return 0
    if arguments.check:
        print("docs/openapi.json is stale; run `make docs`", file=sys.stderr)
        return 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
