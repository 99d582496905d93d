"""Chips that code can be compiled for without having them, and their memory."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

GB = 10**9


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of chip.

    Attributes:
      platform: as JAX calls it.
      memory: bytes of a device.
      source: of the number.
      specification: what the compiler is told of a GPU: the text of XLA's GpuTargetConfigProto.
    """

    platform: str
    memory: int
    source: str
    specification: str = ""


def _nvidia(name: str, major: int, *, memory: int, **numbers: int | float) -> str:
    """The specification of an NVIDIA card of the data centre; the numbers that these share are filled in."""
    shared = dict(
        threads_per_block_limit=1024,
        threads_per_warp=32,
        shared_memory_per_block=49152,
        threads_per_core_limit=2048,
        block_dim_limit_x=2147483647,
        block_dim_limit_y=65535,
        block_dim_limit_z=65535,
        registers_per_core_limit=65536,
        registers_per_block_limit=65536,
        device_memory_size=memory,
    )
    fields = " ".join(f"{key}: {value}" for key, value in (shared | numbers).items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} }} }} "
        f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{name}"'
    )


_H100 = dict(memory=84_942_979_072)
_A100 = dict(memory=85_100_068_864)
_CLOUD, _XLA = "Cloud TPU documentation", "the card's specification in XLA, xla/backends/gpu/target_config/specs"
CHIPS: dict[str, Chip] = {
    "v5e": Chip("tpu", 16 * GB, _CLOUD),
    "v5p": Chip("tpu", 95 * GB, _CLOUD),
    "v6e": Chip("tpu", 32 * GB, _CLOUD),
    "h100": Chip(
        "cuda",
        _H100["memory"],
        _XLA,
        _nvidia(
            "NVIDIA H100 80GB HBM3",
            9,
            **_H100,
            shared_memory_per_core=233_472,
            shared_memory_per_block_optin=232_448,
            core_count=132,
            fpus_per_core=128,
            memory_bandwidth=3_352_320_000_000,
            l2_cache_size=52_428_800,
            clock_rate_ghz=1.98,
        ),
    ),
    "a100": Chip(
        "cuda",
        _A100["memory"],
        _XLA,
        _nvidia(
            "NVIDIA A100-SXM4-80GB",
            8,
            **_A100,
            shared_memory_per_core=167_936,
            shared_memory_per_block_optin=166_912,
            core_count=108,
            fpus_per_core=64,
            memory_bandwidth=2_039_040_000_000,
            l2_cache_size=41_943_040,
            clock_rate_ghz=1.41,
        ),
    ),
    "cpu": Chip("cpu", 0, "not limited here"),
}
# platform -> what to install, and the modules of which one must be there
_COMPILERS = {
    "tpu": ("jax[tpu]=={}", ("libtpu",)),
    "cuda": ("jax[cuda12]=={}", ("jax_cuda12_plugin", "jax_cuda13_plugin")),
}
# So that the TPU's library looks for no chip, and does not wait for another process that has it open.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
EXAMPLES = "v5e:1, v5e:2x2, v5p:2x2x1, v6e:2x2, h100, h100:4, a100, cpu, cpu:8"


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for: their name, the chip, and the devices."""

    name: str
    chip: Chip
    devices: Sequence[jax.Device]


def find_target(name: str) -> Target:
    """The target of a name as in EXAMPLES: a chip, and how many, a TPU's as the shape of its slice.

    Raises:
      ValueError: an unknown chip, or a number or shape that it cannot have.
      ImportError: the chip's compiler is not installed.
    """
    kind, colon, shape = name.partition(":")
    if kind not in CHIPS or (colon and not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape)):
        raise ValueError(f"unknown target {name!r}; expected a chip of {', '.join(CHIPS)}, such as {EXAMPLES}")
    chip, shape = CHIPS[kind], shape or "1"
    if chip.platform == "cpu":
        return Target(name, chip, _some(jax.devices("cpu"), name, shape))
    package, modules = _COMPILERS[chip.platform]
    if not any(importlib.util.find_spec(module) for module in modules):
        raise ImportError(
            f"compiling for {name} takes the compiler of its chip: pip install {package.format(jax.__version__)}"
        )
    try:
        return Target(name, chip, _tpus(kind, shape) if chip.platform == "tpu" else _gpus(chip, shape, name))
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f"no target {name!r}, such as {EXAMPLES}: {str(error).splitlines()[0][:200]}") from error


def _some(devices, name, shape):
    if "x" in shape or int(shape) > len(devices):
        raise ValueError(f"{name!r} is not 1 to {len(devices)} of the devices that there are")
    return devices[: int(shape)]


def _tpus(kind, shape):
    os.environ.update(_NO_TPU)
    axes = 3 if kind == "v5p" else 2
    options = {}
    if shape == "1":
        shape, options = "x".join(["1"] * axes), {"chips_per_host_bounds": [1, 1, 1]}
    topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{shape}", **options)
    return topology.devices


def _gpus(chip, shape, name):
    if "x" in shape:
        raise ValueError(f"{name!r} is no number of GPUs of one machine, as {EXAMPLES}")
    return topologies.get_topology_desc(
        platform="cuda", topology_name="", topology=f"1x1x{shape}", target_config=chip.specification
    ).devices
