from configs import base
from experiments.methods import method_options, option_types, rounding_only


def test_every_option_of_every_method_can_be_set():
    assert {name for known in method_options().values() for name in known} == set(option_types())
    assert option_types() | {"sweeps": int, "centering": str, "damping": float, "act_order": bool} == option_types()
    assert option_types()["channel_chunk"] is int  # which may be None, too
    options = base.options(sweeps=3)
    assert options.sweeps == 3 and set(options) == set(option_types()) and options.damping is None


def test_what_changes_the_result_by_rounding_alone():
    found = rounding_only()
    assert {"block_size", "channel_chunk"} <= found and not found & {"sweeps", "damping", "centering"}
