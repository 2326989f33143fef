#!/usr/bin/env bash
# Version:  torch 2.13.0 (CPU, x86-64)
# Behavior: torch.exp of float32 takes about 200 times as long where results are subnormal (arguments of -87.34 to
#           -103.97), about 100 times where they are 0 (all below, far ones like -1e30, too), and 20 times at -inf. Of
#           float64 the same below -708.4. A hundredth of such numbers makes a tensor ten times as slow.
#           torch.set_flush_denormal(True) does not change it. It does mend bfloat16, softmax and sigmoid, which take
#           about 9 times as long at subnormal results alone, and exp2.
# A guess:  a result of 0 costs no more than others; or flushing subnormal numbers mends it.
# Why:      Gaussian radial basis functions of distances underflow at many pairs of a protein, as masks of -1e30 do in
#           an exponential. Clamping the argument at -80 makes them as fast as others, at 1.8e-35 in the place of 0.
# Source:   aten/src/ATen/cpu/vml.h: exp of contiguous float32 and float64 is vmsExp and vmdExp of MKL, with
#           VML_FTZDAZ_OFF; https://github.com/pytorch/pytorch/issues/48388 is of GELU; the output below.
# Run:      bash findings/torch_exp_is_slow_where_it_underflows.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import time

import torch

torch.set_num_threads(1)
places = torch.rand(110_592, dtype=torch.float64)


def softmax(values):
    return torch.softmax(values.view(1024, 108), -1)


def timed(function, values):
    function(values)
    for _ in range(15):
        start = time.perf_counter()
        function(values)
        yield time.perf_counter() - start


def seconds(function, first, dtype, mixed=False):
    """The least of 15 runs on arguments from `first` down by half; at every other place alone where `mixed`."""
    values = (first - 0.5 * places).to(dtype)
    if mixed:
        values[::2] = -places.to(dtype)[::2]
    return min(timed(function, values))


cases = [  # function, dtype, arguments: usual ones, of subnormal results, of results that are 0
    (torch.exp, torch.float32, (0, -95, -200)),
    (torch.exp, torch.float64, (0, -720, -2000)),
    (torch.exp, torch.bfloat16, (0, -95, -200)),
    (torch.exp2, torch.float32, (0, -137, -300)),
    (torch.sigmoid, torch.float32, (0, -87.4, -200)),
    (softmax, torch.float32, (0, -95, -200)),
]
ratios = {}
for flush in (False, True):
    torch.set_flush_denormal(flush)
    for function, dtype, (usual, *firsts) in cases:
        name = f"{function.__name__} {str(dtype).removeprefix('torch.')}"
        mixed = function is softmax  # of equal scores nothing is small
        base = seconds(function, usual, dtype, mixed)
        found = [seconds(function, first, dtype, mixed) / base for first in firsts]
        ratios[name, flush] = found
        longer = f"{found[0]:5.1f} times as long if subnormal, {found[1]:5.1f} if 0"
        print(f"flush_denormal {flush!s:5}  {name:16}: {longer}")
for first in (-95, float("-inf")):
    values = -places.float()
    base = min(timed(torch.exp, values))
    values[::100] = first
    print(f"exp float32, every hundredth {first}: {min(timed(torch.exp, values)) / base:.1f} times as long")
clamped = seconds(lambda values: torch.exp(values.clamp(min=-80)), -95, torch.float32)
slow = seconds(torch.exp, -95, torch.float32)
print(f"exp float32 clamped at -80: {slow / clamped:.1f} times as fast")
for name in ("exp float32", "exp float64"):
    for flush in (False, True):
        assert min(ratios[name, flush]) > 3, "results that underflow are no longer slow"
assert slow > 3 * clamped
PYTHON
# Output seen:
#   flush_denormal False  exp float32     : 224.6 times as long if subnormal,  89.9 if 0
#   flush_denormal False  exp float64     : 206.0 times as long if subnormal,  48.8 if 0
#   flush_denormal False  exp bfloat16    :   8.9 times as long if subnormal,   1.0 if 0
#   flush_denormal False  exp2 float32    :  12.2 times as long if subnormal,   1.0 if 0
#   flush_denormal False  sigmoid float32 :   8.5 times as long if subnormal,   0.9 if 0
#   flush_denormal False  softmax float32 :   9.5 times as long if subnormal,   1.0 if 0
#   flush_denormal True   exp float32     : 223.7 times as long if subnormal,  90.2 if 0
#   flush_denormal True   exp float64     : 199.0 times as long if subnormal,  47.1 if 0
#   flush_denormal True   exp bfloat16    :   1.0 times as long if subnormal,   1.0 if 0
#   flush_denormal True   exp2 float32    :   1.0 times as long if subnormal,   1.0 if 0
#   flush_denormal True   sigmoid float32 :   0.9 times as long if subnormal,   0.9 if 0
#   flush_denormal True   softmax float32 :   1.0 times as long if subnormal,   1.0 if 0
#   exp float32, every hundredth -95: 12.0 times as long
#   exp float32, every hundredth -inf: 2.0 times as long
#   exp float32 clamped at -80: 96.0 times as fast
