"""What of a processor decides how XLA rounds on it: the instructions that it is compiled for, and the number of cores.

Cores divide the long sums of products among themselves, and instructions decide what is fused into one rounding, so
that float32 results of machines that differ in these, or of one machine with other limits, can differ in the last bits.
"""

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

from beacon_jax.quant.side_by_side import cores

CPUINFO = Path("/proc/cpuinfo")
# As XLA names them in --xla_cpu_max_isa, in its order, each with the flag by which Linux says that a processor has it.
LEVELS = {
    "SSE4_2": "sse4_2",
    "AVX": "avx",
    "AVX2": "avx2",
    "AVX512": "avx512f",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX": "amx_tile",
    "AMX_FP16": "amx_fp16",
}
_MAX_ISA = "--xla_cpu_max_isa"
# Flags of XLA that are said elsewhere, or that decide no number.
_APART = (_MAX_ISA, "--xla_force_host_platform_device_count", "--xla_dump")


def processor(environment: Mapping[str, str] = os.environ, cpuinfo: str | None = None) -> str:
    """Instruction set and cores that XLA uses, such as "AVX2, 8 cores".

    Args:
      environment: in which XLA_FLAGS, and PJRT_NPROC or NPROC may set limits.
      cpuinfo: what Linux says in /proc/cpuinfo; None to read it, where there is one.
    """
    if cpuinfo is None:
        cpuinfo = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.exists() else ""
    found = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    has = set(found[1].split()) if found else set()
    known = [level for level, flag in LEVELS.items() if flag in has]
    limit = re.findall(_MAX_ISA + r"=(\w+)", environment.get("XLA_FLAGS", ""))[-1:]  # the last counts
    if limit and limit[0].upper() in LEVELS:
        order = list(LEVELS)
        known = [level for level in known if order.index(level) <= order.index(limit[0].upper())]
    return f"{known[-1] if known else platform.machine()}, {_cores(environment)} cores"


def _cores(environment: Mapping[str, str]) -> int:
    for name in ("PJRT_NPROC", "NPROC"):  # by which its runtime goes
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return cores()


def xla_flags(environment: Mapping[str, str] = os.environ) -> str:
    """The other flags that XLA is given, in a fixed order; "" for none."""
    return " ".join(sorted(flag for flag in environment.get("XLA_FLAGS", "").split() if not flag.startswith(_APART)))
