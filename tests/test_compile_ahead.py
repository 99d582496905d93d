"""What is compiled ahead is what a run then compiles, and what devices exchange is no more than is needed."""

import re
from collections import Counter

import jax

from configs import digits
from experiments import compile_ahead, tables
from experiments.experiment import Experiment
from experiments.grid import cells
from experiments.run_folder import RunFolder
from experiments.targets import find_target
from experiments.task import make_task

# Single operations and small functions of JAX's own between the programs, and what depends on numbers.
SMALL = {"convert_element_type", "broadcast_in_dim", "copy", "multiply", "_multi_slice", "dynamic_slice", "gather"}


def small_config(tmp_path):
    config = digits.get_config()
    config.out = str(tmp_path)
    config.data.update(calibration_images=72, batch_size=64, test_images=100)
    config.quant.layers = "blocks_0/mlp/.*|blocks_1/mlp/fc1"
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
    missing = {key: count for key, count in real.items() if count > ahead[key] and key[0] not in SMALL}
    assert not missing
    (programs, left_out), names = done[0], {name for name, _ in real}
    assert {"_add_batch", "_prepared", "solve_codes", "forward", "measure_batch", "training_step"} <= names
    assert not left_out
    # Nothing is compiled ahead in vain either.
    known = {row.name for row in programs.rows}
    assert known <= names
