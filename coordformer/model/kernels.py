# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""C code for a CPU, compiled when it is first needed, where there is a compiler: messages.c, points.c, attention.c.

PyTorch writes and reads each number once for each of its operations, and a core takes longer to load a number than to
compute with it. The files are compiled for the processor at hand in some seconds, and kept in the folder of assets
of huggingface_hub. Without a C compiler, with COORDFORMER_KERNEL=0, and in code that came with a checkpoint, PyTorch's
operations take their place: the same numbers, in more time.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import cached_assets_path
from torch import Tensor
from transformers.utils import logging

logger = logging.get_logger(__name__)

SOURCES = tuple(Path(__file__).with_name(name) for name in ("messages.c", "points.c", "attention.c"))
HEADER = Path(__file__).with_name("kernels.h")
# In the step of linking, `-ffast-math` would change how the whole process rounds tiny numbers, and `-fopenmp` would
# bring a second OpenMP beside PyTorch's, whose functions are found when the library is loaded.
COMPILE = ("-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC", "-c")
LINK = ("-shared",)
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def _structure(tensors: str, numbers: str) -> Any:
    return [(name, ctypes.c_void_p) for name in tensors.split()] + [(name, ctypes.c_int64) for name in numbers.split()]


class Messages(ctypes.Structure):
    """`struct messages` of messages.c."""

    _fields_ = _structure(
        "received sent gate_sent edge gate_edge near exist sums of_received of_sent of_gate_sent",
        "rows residues first count k width stride threads",
    )


class Points(ctypes.Structure):
    """`struct points` of points.c."""

    _fields_ = _structure(
        "states cos sin rotations translations observed strength missing inputs of_heads attended features",
        "tokens heads dim wide row positions places key_points value_points threads",
    )


class Attention(ctypes.Structure):
    """`struct attention` of attention.c."""

    _fields_ = _structure(
        "query key value bounds output norms of_output of_query of_key of_value",
        "segments longest heads dim query_row key_row value_row threads",
    )


@functools.cache
def load_kernel() -> ctypes.CDLL | None:
    """The compiled library; None where there is none to be had."""
    if os.environ.get("COORDFORMER_KERNEL") == "0" or not all(path.exists() for path in (HEADER, *SOURCES)):
        return None
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        logger.info("No C compiler %r: PyTorch takes the place of C code, and longer.", compiler[0])
        return None
    try:
        return ctypes.CDLL(str(_compile(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        logger.warning("The C code was not compiled; PyTorch takes its place, and longer. %s", reason)
        return None


def _compile(compiler: list[str]) -> Path:
    """The library of these sources, compiler and processor, from the folder of assets or compiled into it."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
    parts = [path.read_bytes() for path in (HEADER, *SOURCES)]
    parts += [" ".join([*compiler, *COMPILE, *LINK]).encode(), version, _processor().encode()]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    library = cached_assets_path("coordformer", "kernels", key) / "kernels.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            compiled = [Path(folder) / f"{source.stem}.o" for source in SOURCES]
            linked = Path(folder) / library.name
            commands: list[tuple] = [(*COMPILE, source, "-o", to) for source, to in zip(SOURCES, compiled, strict=True)]
            for command in [*commands, (*LINK, *compiled, "-o", linked)]:
                words = [*compiler, *map(str, command)]
                subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
            os.replace(linked, library)  # whole or not at all, whichever process is first
    return library


def _processor() -> str:
    """What tells processors of other instructions apart: a home directory is shared by many machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")


def is_rewritten() -> bool:
    """Whether operations are recorded or replaced: by torch.compile, torch.export, torch.jit.trace or torch.func.

    These know PyTorch's operations. C code would not be in the record, and a gradient of our own is not theirs.
    """
    rewritten = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return rewritten or torch._C._are_functorch_transforms_active()


def kernel_takes(*tensors: Tensor) -> bool:
    """Whether the C code takes these states: plain tensors on the CPU, of one type that it knows, not traced ones."""
    kinds = {(type(tensor), tensor.dtype, tensor.device.type) for tensor in tensors}
    known = [{(Tensor, dtype, "cpu")} for dtype in DTYPES]
    return kinds in known and not is_rewritten() and load_kernel() is not None


def run_kernel(function: str, structure: type[ctypes.Structure], dtype: torch.dtype, **values: Any) -> None:
    """Call a function of the C code for numbers of a type; `values` are contiguous tensors, and numbers.

    Raises:
        MemoryError: there is not enough for what the function works in.
    """
    found = {name: each.data_ptr() if torch.is_tensor(each) else each for name, each in values.items()}
    arguments = structure(threads=torch.get_num_threads(), **found)
    if getattr(load_kernel(), f"{function}_{DTYPES[dtype]}")(ctypes.byref(arguments)):
        raise MemoryError(f"{function}: memory is at its end; give fewer tokens at once.")
