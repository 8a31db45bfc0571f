# SPDX-License-Identifier: MIT
"""Prints which share of each module's lines and branches tests take, and fails below 95 % in all or 90 % of a module.

python scripts/coverage_table.py build/coverage.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

LEAST, LEAST_OF_A_MODULE = 95.0, 90.0


def row(name: str, summary: dict[str, Any]) -> str:
    lines = f"{summary['covered_lines']}/{summary['num_statements']}"
    branches = f"{summary['covered_branches']}/{summary['num_branches']}"
    return f"{name:<40} {lines:>11} {branches:>11} {summary['percent_covered']:6.1f} %"


def main(path: str) -> int:
    found = json.loads(Path(path).read_text())
    modules = {name.partition("halotile/")[2]: about["summary"] for name, about in found["files"].items()}
    print(f"{'module':<40} {'lines':>11} {'branches':>11}")
    for name, summary in sorted(modules.items(), key=lambda one: one[1]["percent_covered"]):
        print(row(name, summary))
    print(row("in all", found["totals"]))
    low = [name for name, summary in modules.items() if summary["percent_covered"] < LEAST_OF_A_MODULE]
    if low:
        print(f"under {LEAST_OF_A_MODULE:g} %: {', '.join(sorted(low))}", file=sys.stderr)
    return int(bool(low) or found["totals"]["percent_covered"] < LEAST)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
