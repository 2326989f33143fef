"""What the benchmarks share: sides that take turns, and a record of where they ran."""

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any


def take_turns(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
    """Results of each side over the repeats; the order of the sides changes from one repeat to the next."""
    raw: dict[str, list[Any]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in sorted(sides, reverse=bool(repeat % 2)):
            raw[side].append(sides[side]())
    return raw


def write_record(path: Path, record: Mapping[str, Any], packages: tuple[str, ...]) -> None:
    """Write the numbers of a run with its command, machine and versions as JSON."""
    script = Path(sys.argv[0]).name
    where = {
        "command": " ".join(["python", f"examples/benchmarks/{script}", *sys.argv[1:]]),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**where, **record}, indent=1) + "\n")
