# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Sums of messages in C: `messages.c`, compiled when it is first needed, where there is a compiler.

PyTorch writes and reads each number of an edge once for each of its operations, and a core takes longer to load a
number than to compute with it. The file is compiled for the processor at hand in about a second, and kept in the folder
of assets of huggingface_hub. Without a C compiler, with COORDFORMER_KERNEL=0, and in code that came with a checkpoint,
PyTorch's operations take its place (`neighbor_graph`): the same numbers, in more time.
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

SOURCE = Path(__file__).with_name("messages.c")
# In the step of linking, `-ffast-math` would change how the whole process rounds tiny numbers, and `-fopenmp` would
# bring a second OpenMP beside PyTorch's, whose functions are found when the library is loaded.
COMPILE = ("-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC", "-c")
LINK = ("-shared",)
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

TENSORS = (
    "received", "sent", "gate_sent", "edge", "gate_edge", "near", "exist", "sums", "of_received", "of_sent",
    "of_gate_sent",
)  # fmt: skip
NUMBERS = ("rows", "residues", "first", "count", "k", "width", "stride", "threads")


class Messages(ctypes.Structure):
    """`struct messages` of the C code."""

    _fields_ = [(name, ctypes.c_void_p) for name in TENSORS] + [(name, ctypes.c_int64) for name in NUMBERS]


@functools.cache
def load_kernel() -> ctypes.CDLL | None:
    """The compiled library; None where there is none to be had."""
    if os.environ.get("COORDFORMER_KERNEL") == "0" or not SOURCE.exists():
        return None
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        logger.info("No C compiler %r: messages are summed by PyTorch, which takes longer.", compiler[0])
        return None
    try:
        return ctypes.CDLL(str(_compile(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        logger.warning("messages.c was not compiled; messages are summed by PyTorch, which takes longer. %s", reason)
        return None


def _compile(compiler: list[str]) -> Path:
    """The library of this source, compiler and processor, from the folder of assets or compiled into it."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
    parts = [SOURCE.read_bytes(), " ".join([*compiler, *COMPILE, *LINK]).encode(), version, _processor().encode()]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    library = cached_assets_path("coordformer", "kernels", key) / "messages.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            compiled, linked = Path(folder) / "messages.o", Path(folder) / "messages.so"
            for command in (
                [*compiler, *COMPILE, str(SOURCE), "-o", str(compiled)],
                [*compiler, *LINK, str(compiled), "-o", str(linked)],
            ):
                subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
            os.replace(linked, library)  # whole or not at all, whichever process is first
    return library


def _processor() -> str:
    """What tells processors of other instructions apart: a home directory is shared by many machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")


def kernel_takes(*tensors: Tensor) -> bool:
    """Whether the kernel takes these states: plain tensors of one type that it knows, not traced ones."""
    kinds = {(type(tensor), tensor.dtype) for tensor in tensors}
    return kinds in [{(Tensor, dtype)} for dtype in DTYPES] and load_kernel() is not None


def run_kernel(direction: str, dtype: torch.dtype, **values: Any) -> None:
    """Call `forward` or `backward` of the C code with contiguous tensors and numbers; it says which are needed."""
    found = {name: each.data_ptr() if torch.is_tensor(each) else each for name, each in values.items()}
    messages = Messages(threads=torch.get_num_threads(), **found)
    getattr(load_kernel(), f"{direction}_{DTYPES[dtype]}")(ctypes.byref(messages))
