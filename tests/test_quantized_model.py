import numpy as np

from beacon_jax import QuantSpec, quantize


def test_it_prints_short_and_sums_up_in_a_table():
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    params = {"one": x[:6] * 0.3, "two": x[6:12] * 0.3}
    done = quantize(lambda params, x: (x @ params["one"]) @ params["two"], params, [x], QuantSpec(method="rtn"))
    assert len(repr(done)) < 400 and "\n" not in repr(done) and repr(done).startswith("QuantizedModel(2 layers; ")
    head, one, two, *_ = done.summary().splitlines()
    assert head.split()[:6] == ["layer", "shape", "method", "alphabet", "rows", "error"]
    assert one.split()[:5] == ["one", "6×6", "rtn", "2", "40"] and two.split()[0] == "two"
    assert float(one.split()[5]) == float(f"{done.reports[0].output_error:.3g}")
