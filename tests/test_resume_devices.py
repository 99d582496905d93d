"""A run that was stopped goes on with another number of devices, where that is asked for."""

import numpy as np
import pytest

from configs import digits
from experiments import common
from experiments.experiment import Experiment
from experiments.grid import single_cell
from experiments.layer_folders import open_store
from experiments.results import LayerStore
from experiments.run_folder import RunFolder
from experiments.task import make_task


class Stopped(Exception):
    pass


def begun(config, folder, reuse):
    """The experiment on the devices that config.execution gives, its cell, and the layers that it goes on from."""
    task = make_task(config)
    experiment = Experiment(config, task, folder)
    (cell,) = experiment.provenance.add_to([single_cell(config, task.fingerprint())])
    return experiment, cell, open_store(folder, cell, reuse)


def test_a_run_goes_on_with_more_devices(tmp_path, monkeypatch, capsys):
    """Started without a mesh, stopped after one of two layers, gone on with on eight devices."""
    config = digits.get_config()
    config.out = str(tmp_path)
    config.data.update(calibration_images=64, batch_size=64, test_images=64)
    config.quant.update(layers="blocks_[01]/mlp/fc1", calibrate_on="float", method="rtn", alphabet="2")
    save = LayerStore.save

    def save_and_stop(store, report, matrix):
        save(store, report, matrix)
        raise Stopped

    with RunFolder(tmp_path) as folder:
        with monkeypatch.context() as patched:
            patched.setattr(common, "make_mesh", lambda **_: None)
            patched.setattr(LayerStore, "save", save_and_stop)
            experiment, cell, store = begun(config, folder, "same")
            assert experiment.execution.mesh is None
            with pytest.raises(Stopped):
                experiment.quantize(cell, store)
        ((name, (_, first)),) = store.load().items()
        said = "1 of the models with finished layers in " + str(tmp_path / "layers")
        said += " have the same settings, but were made with mesh none instead of 8 × 1: "

        _, _, other = begun(config, folder, "same")
        assert other.load() == {}
        assert capsys.readouterr().out == said + "not taken (--config.reuse=any takes them)\n"

        experiment, cell, store = begun(config, folder, "any")
        assert capsys.readouterr().out == said + "taken, by --config.reuse=any\n"
        assert experiment.execution.mesh.shape == {"data": 8, "model": 1} and list(store.load()) == [name]
        done = experiment.quantize(cell, store)
    assert sorted(done.layers) == ["blocks_0/mlp/fc1", "blocks_1/mlp/fc1"] == sorted(store.load())
    np.testing.assert_array_equal(done.layers[name].codes, first.codes)
    np.testing.assert_array_equal(done.layers[name].scale, first.scale)
    leaf = done.params["blocks_0"]["mlp"]["fc1"]["kernel"]
    assert len(leaf.sharding.device_set) == 8
    np.testing.assert_array_equal(leaf, first.dequantize())
