"""What the benchmarks share: sides that take turns, peak memory in a fresh process, and a record of where they ran."""

import json
import os
import platform
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

CUDA = torch.cuda.is_available()
# glibc then gives freed memory back, so that what is resident is what is used.
RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def take_turns(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
    """Results of each side over the repeats; the order of the sides changes from one repeat to the next."""
    raw: dict[str, list[Any]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in sorted(sides, reverse=bool(repeat % 2)):
            raw[side].append(sides[side]())
    return raw


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status; getrusage would begin with the peak of the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def start_of_peak(memory_limit: float, time_limit: int) -> int:
    """Begin to measure the peak; passing a limit (GiB, seconds) ends this process. Returns the bytes held now."""
    limit = int(memory_limit * 2**30)
    signal.alarm(time_limit)
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + limit) / total))
        return torch.cuda.memory_allocated()
    resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") + limit, resource.RLIM_INFINITY))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what the process holds
    return _status("VmRSS")


def peak() -> int:
    """Bytes at the peak since `start_of_peak`: allocated on CUDA, else resident (Linux only)."""
    signal.alarm(0)
    return torch.cuda.max_memory_allocated() if CUDA else _status("VmHWM")


def in_fresh_process(arguments: Sequence[str], memory_limit: float, time_limit: int) -> dict[str, Any]:
    """What this script prints as JSON when it is called with these arguments, or {"reason": why it did not}."""
    command = [sys.executable, sys.argv[0], *arguments]
    ended = subprocess.run(command, env=os.environ | RETURN_FREED_MEMORY, capture_output=True, text=True)
    if ended.returncode == 0:
        return dict(json.loads(ended.stdout.splitlines()[-1]))
    if ended.returncode == -signal.SIGALRM:
        return {"reason": f"longer than {time_limit} s"}
    if any(words in ended.stderr for words in ("allocate memory", "out of memory", "bad_alloc", "MemoryError")):
        return {"reason": f"more than {memory_limit:g} GiB"}
    return {"reason": (ended.stderr.splitlines() or [f"ended with {ended.returncode}"])[-1]}


def device_name() -> str:
    return torch.cuda.get_device_name() if CUDA else "cpu"


def operation_shares(turn: Callable[[], Any]) -> dict[str, float]:
    """Of the operations that take a hundredth of a turn and more, their shares of its time; after a turn to warm up."""
    turn()
    with torch.profiler.profile() as profiler:
        turn()
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    whole = sum(times.values())
    return {
        name: round(time / whole, 3)
        for name, time in sorted(times.items(), key=lambda pair: -pair[1])
        if time > 0.01 * whole
    }


def write_record(path: Path, record: Mapping[str, Any], packages: tuple[str, ...]) -> None:
    """Write the numbers of a run with its command, machine and versions as JSON."""
    script = Path(sys.argv[0]).name
    # Where the files lie on this machine is nobody's business.
    arguments = [Path(each).name if os.path.isabs(each) or each.startswith("..") else each for each in sys.argv[1:]]
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    where = {
        "command": " ".join(["python", f"examples/benchmarks/{script}", *arguments]),
        "python": platform.python_version(),
        "packages": versions,
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),  # that PyTorch chose its kernels by
        "cpu_count": os.cpu_count(),
        "device": device_name(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**where, **record}, indent=1) + "\n")
