"""Lines of experiments.quantize as results."""

import dataclasses

import pytest

from configs import digits
from experiments.quantize_results import results_of_line
from tests.made_results import result


def line(**changed):
    made, config = result("RTN", "2", 90.0), digits.get_config()
    config.quant.method = "rtn"
    metrics = {name: dataclasses.asdict(measured) for name, measured in made.metrics.items()}
    layers = [dataclasses.asdict(layer) for layer in made.layers]
    facts = dict(key="k", quant_key="q", made_with={"jax": "0"}, config=config.to_dict(), tuning=None, layers=layers)
    return facts | dict(float=metrics, quantized=metrics) | changed


def test_a_line_is_two_or_three_results():
    before, after = results_of_line(line())
    assert (before.cell.row, before.cell.quant, before.layers) == ("Float", None, ())
    assert (after.cell.row, after.cell.alphabet, after.cell.calibration_images) == ("rtn", "2", 256)
    assert after.layers == result("RTN", "2", 90.0).layers and after.metrics["top1"].value == 90
    assert after.coverage is None and after.codes == {}  # of a line from before they were written
    tuned = results_of_line(line(tuned=line()["float"], tuning={"before": 2.0}, codes={"blocks_0/fc1": [1, 2, 3, 4]}))
    assert [one.cell.row for one in tuned] == ["Float", "rtn", "rtn + norm tuning"]
    assert tuned[1].codes == {"blocks_0/fc1": (1, 2, 3, 4)} and tuned[2].tuned == {"before": 2.0}


def test_a_budget_is_the_name_of_its_column():
    config = line()["config"]
    config["quant"]["bits_per_parameter"] = 2.5
    assert results_of_line(line(config=config))[1].cell.alphabet == "mixed 2.5"


def test_what_is_no_line():
    with pytest.raises(KeyError):
        results_of_line({"config": {}})
