"""What is compiled ahead is what a run then compiles, and what devices exchange is no more than is needed."""

import dataclasses
import importlib.util
import re
from collections import Counter
from pathlib import Path

import jax
import pytest

from configs import digits
from experiments import compile_ahead, tables
from experiments.experiment import Experiment
from experiments.grid import cells
from experiments.run_folder import RunFolder
from experiments.targets import Chip, find_target
from experiments.task import make_task

# The functions of this project; others are single operations and small functions of JAX's own between them.
OURS = {
    name
    for folder in ("beacon_jax", "experiments")
    for path in Path(folder).rglob("*.py")
    for name in re.findall(r"^def (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
} - {"_mean"}  # jnp.mean is called so, too


MAIN = {"add_batch", "_prepared", "solve_codes", "forward", "measure_batch", "training_step", "held_out_loss"}


def small_config(tmp_path):
    config = digits.get_config()
    config.out = str(tmp_path)
    config.data.update(calibration_images=72, batch_size=64, test_images=100)
    config.quant.layers = "blocks_0/mlp/fc1"
    config.table.update(alphabets=("2",), rows=("rtn", "beacon_ec"))
    config.norm_tuning.update(enabled=True, images=36, batch_size=16, steps=2, check_every=1)
    return config


def compiled(caplog, run) -> Counter:
    """How often each function is compiled for each kind of arguments while something runs."""
    jax.clear_caches()
    caplog.clear()
    with caplog.at_level("WARNING"), jax.log_compiles():
        run()
    said = re.compile(r"Compiling (\S+) with global shapes and types (.*)\. Argument mapping")
    found = [said.match(record.getMessage()) for record in caplog.records]
    return Counter((re.sub(r"^jit\((.*)\)$", r"\1", own[1]), own[2]) for own in found if own)


@pytest.mark.slow
def test_all_that_a_run_compiles_was_compiled_ahead(tmp_path, caplog):
    """A table with a shorter last batch, float statistics that rows share, and norm tuning, on eight devices."""
    config, results = small_config(tmp_path), {}
    target = find_target("cpu:8")
    done = []
    ahead = compiled(caplog, lambda: done.append(compile_ahead.compile_all(config, target)))
    task = make_task(config)

    def run():
        with RunFolder(tmp_path) as folder:
            experiment = Experiment(config, task, folder)
            grid = experiment.provenance.add_to(cells(config, task.fingerprint()))
            assert not tables.compute(grid, results, config, experiment, folder)

    real = compiled(caplog, run)
    assert len(results) == 5
    assert not {key: count for key, count in real.items() if count > ahead[key] and key[0] in OURS | {"forward"}}
    (programs, left_out), names = done[0], {name for name, _ in real}
    assert MAIN <= names and MAIN - {"forward"} <= OURS
    assert not left_out
    # Nothing is compiled ahead in vain either.
    known = {row.name for row in programs.rows}
    assert known <= names
    check_exchanges(programs)
    check_shown(programs, target)


def check_shown(programs, target):
    text = compile_ahead.show(programs, target)
    assert "| solve_codes" in text and f"\n{len(programs.rows)} programs, " in text and "warning" not in text
    small = dataclasses.replace(target, chip=Chip("cpu", 10**5, "here"))
    said = compile_ahead.warnings(programs, small, large=1)
    assert any(re.fullmatch(r"warning: forward \(.*\): .* do not fit the chip's 100 kB", line) for line in said)
    gathered = r"warning: forward \(.*\): an array of 640 B goes to other devices whole \(all-gather\)"
    assert any(re.fullmatch(gathered, line) for line in said)
    assert not any("solve_codes" in line and "whole" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu:8", "v5e:1", "v5e:2x2"])
def test_every_method_exchanges_no_more_than_is_needed(tmp_path, name):
    """Compiled for devices of a CPU, and for TPUs where their compiler is installed; true float32, and it fits."""
    if name.startswith("v5e") and importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU's compiler is not installed")
    config, target = small_config(tmp_path), find_target(name)
    config.table.rows = ("rtn", "gptq_ec", "comq", "beacon", "beacon_ec", "plus_ec")
    programs, left_out = compile_ahead.compile_all(config, target)
    assert not left_out and {"solve_codes", "_swept", "_beamed", "_solve"} <= {row.name for row in programs.rows}
    assert not compile_ahead.warnings(programs, target)
    if len(target.devices) > 1:
        check_exchanges(programs)
    else:
        assert not any(row.code.collectives() for row in programs.rows)


def check_exchanges(programs):
    """The solve: whether channels still change; statistics: their sums; nothing is gathered but the model's outputs."""
    for row in programs.rows:
        found = row.code.collectives()
        kinds = {v.instruction.collective for v in found}
        amount = sum(v.times * v.instruction.nbytes for v in found)
        if row.name == "forward":
            # A sum of parts, with zeros for those of other devices, is a way to gather a little.
            assert kinds <= {"all-gather", "all-reduce"} and amount <= row.outputs, row
            continue
        if row.name in ("_prepare", "_solve"):  # the kernel once, for XLA does not share out triangular solves
            gathered = [v for v in found if v.instruction.collective == "all-gather"]
            assert len(gathered) <= 1 and all(not v.loops and v.instruction.nbytes <= 48 * 192 * 4 for v in gathered)
            found = [v for v in found if v not in gathered]
        assert {v.instruction.collective for v in found} <= {"all-reduce"}, row
        in_loops = [v for v in found if v.loops]
        if row.name in ("solve_codes", "_swept"):  # in each of 6 sweeps, or at its end
            assert found and all(v.instruction.nbytes <= 4 for v in found) and sum(v.times for v in found) <= 7
        elif row.name == "add_batch":
            # The sums of this batch, and the means about which they are.
            assert amount <= row.overwritten + 2 * 4 * 192 and len(found) <= 3 and not in_loops, row
        else:
            assert sum(v.instruction.nbytes for v in found) < 1000 and not in_loops, row
