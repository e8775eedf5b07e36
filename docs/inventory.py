"""An inventory for intersphinx from a list of names, so that links to torch need no download at build time."""

import zlib
from pathlib import Path

HEADER = b"""\
# Sphinx inventory version 2
# Project: torch
# Version: stable
# The remainder of this file is compressed using zlib.
"""


def write(names: Path, inventory: Path) -> Path:
    """names: a line for each, `role name page`."""
    lines = []
    for line in names.read_text().splitlines():
        role, name, page = line.split()
        anchor = "" if role == "module" else "#$"
        lines.append(f"{name} py:{role} 1 {page}{anchor} -\n")
    inventory.parent.mkdir(parents=True, exist_ok=True)
    inventory.write_bytes(HEADER + zlib.compress("".join(lines).encode()))
    return inventory
