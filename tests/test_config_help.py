import pytest
from absl import flags

from configs import base
from experiments import quantize, tables
from experiments.config_help import OPTIONS, ROWS, asked, config_help, unknown_key
from experiments.methods import method_options


def flat(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "to_dict"):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_has_every_key_with_its_default():
    told = " ".join(config_help().split())
    for key, value in flat(base.get_config()):
        if key.startswith(f"{ROWS}."):
            assert key.split(".")[1] in told
        elif not key.startswith(f"{OPTIONS}."):
            line = told.split(f"--config.{key}")[1].split(" --config.")[0]
            assert f"(default: {value!r})" in line
    assert "--config.quant.alphabet: a name, such as 1.58" in told  # the comment in its line
    assert "--config.task: The function of this config that makes" in told  # and before it


def test_has_every_option_with_its_methods():
    told = " ".join(config_help().split())
    for method, options in method_options().items():
        for name, field in options.items():
            part = told.split(f"--config.{OPTIONS}.{name}: {field.metadata['help']} (")[1]
            assert method in part.split(")")[0].split(", ")


def test_is_asked_for():
    assert asked(["tables.py", "--help"]) and asked(["tables.py", "-helpfull"])
    assert not asked(["tables.py", "--config.out=help"])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--config.quant.sweps=3", "; did you mean --config.quant.options.sweeps?"),
        ("--config.alphabet=3", "; did you mean --config.quant.alphabet?"),
        ("-config.data.nam", "; did you mean --config.data.name?"),
        ("--config.seed.x=1", "; --help names them all"),
        ("--config.zzz.yyy=1", "; --help names them all"),
    ],
)
def test_a_key_that_there_is_not(word, said):
    key = word.lstrip("-").partition("=")[0]
    assert (
        unknown_key(["tables", "--config=configs/digits.py", "--config.seed=1", word])
        == f"there is no key --{key}{said}"
    )


def test_keys_that_there_are():
    assert (
        unknown_key(["tables", "--config.quant.options.sweeps=3", "--config.rows.rtn.method=rtn", "--other.x"]) is None
    )


@pytest.mark.parametrize("script", [tables, quantize])
def test_help_shows_flags_that_scripts_share(script):
    assert "dry_run" in [flag.name for flag in flags.FLAGS.get_key_flags_for_module(script)]
