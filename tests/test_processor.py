import os
import subprocess
import sys

import pytest

from experiments import processor as module
from experiments.processor import LEVELS, processor, xla_flags

ZEN = "processor : 0\nflags\t\t: fpu sse4_2 avx avx2 avx512f avx512_vnni avx512_bf16\n\nprocessor : 1\nflags\t\t: fpu\n"
ARM = "processor : 0\nFeatures : fp asimd\n"


@pytest.mark.parametrize(
    ("cpuinfo", "flags", "expected"),
    [
        (ZEN, "", "AVX512_BF16"),
        (ZEN, "--xla_cpu_max_isa=AVX2", "AVX2"),
        (ZEN, "--xla_dump_to=x --xla_cpu_max_isa=avx512", "AVX512"),
        (ZEN, "--xla_cpu_max_isa=AMX", "AVX512_BF16"),
        (ZEN, "--xla_cpu_max_isa=AVX2 --xla_cpu_max_isa=AVX", "AVX"),
        (ZEN, "--xla_cpu_max_isa=other", "AVX512_BF16"),
        ("flags : fpu sse4_2 avx avx2", "", "AVX2"),
        ("flags : fpu sse4_2 avx avx2", "--xla_cpu_max_isa=AVX512", "AVX2"),
        (ARM, "", "machine"),
        ("", "--xla_cpu_max_isa=AVX2", "machine"),
    ],
)
def test_the_instruction_set(monkeypatch, cpuinfo, flags, expected):
    monkeypatch.setattr(module.platform, "machine", lambda: "machine")
    assert processor({"XLA_FLAGS": flags, "NPROC": "3"}, cpuinfo) == f"{expected}, 3 cores"


def test_cores():
    assert processor({"PJRT_NPROC": "5", "NPROC": "3"}, ZEN).endswith(", 5 cores")
    assert processor({"NPROC": "all"}, ZEN).endswith(f", {len(os.sched_getaffinity(0))} cores")


def test_the_other_flags():
    given = "--b=2 --xla_force_host_platform_device_count=8 --a=1 --xla_dump_to=x --xla_cpu_max_isa=AVX2"
    assert xla_flags({"XLA_FLAGS": given}) == "--a=1 --b=2" and xla_flags({}) == ""


@pytest.mark.skipif(not module.CPUINFO.exists(), reason="this system has no /proc/cpuinfo")
def test_this_machine_with_one_core():
    """As a process is told: by the cores that it may run on."""
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from experiments.processor import *\n"
    )
    environment = {name: value for name, value in os.environ.items() if "NPROC" not in name}
    command = [sys.executable, "-c", program + "print(processor())"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    level, cores = done.stdout.strip().split(", ")
    assert cores == "1 cores" and (level in LEVELS or level == module.platform.machine())
