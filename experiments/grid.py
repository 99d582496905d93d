"""The cells of a table, from its config: which there are, and a fingerprint of all that decides each one's result."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from beacon_jax.norm_tuning import NormTuning
from beacon_jax.quant.alphabets import make_alphabet
from experiments import mixed, row_scales
from experiments.methods import method_options, rounding_only
from experiments.task import identity_of

TUNED = " + norm tuning"
FLOAT = "Float"
RESULTS_VERSION = 6  # raised when the same config comes to give another result (tests/test_results_version.py)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One result of a table.

    Fields:
      title: of its row, without norm tuning.
      alphabet: its column, an alphabet or a budget for mixed ones; "" for the float model.
      seed, calibration_images: of the calibration examples, and how many.
      quant: the fields of its QuantSpec, with a budget as in mixed.py; None for the float model.
      tuning: what `norm_tuning_fields` gives; None without norm tuning.
      settings: a digest of what the configuration says that decides the result, and of model and weights.
      quant_settings: of what decides the quantized model, which cells before and after norm tuning share.
      made_with: what else decides it (see provenance.py); empty before it is known.
    """

    title: str
    alphabet: str
    seed: int
    calibration_images: int
    quant: dict | None
    tuning: dict | None
    settings: str
    quant_settings: str
    made_with: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> str:
        """The fingerprint of its result."""
        return identity_of(settings=self.settings, made_with=self.made_with)

    @property
    def quant_made_with(self) -> dict[str, str]:
        """What of `made_with` decides the quantized model."""
        return {name: fact for name, fact in self.made_with.items() if not name.startswith(("test", "tuning"))}

    @property
    def quant_key(self) -> str:
        """The fingerprint of the quantized model."""
        return identity_of(settings=self.quant_settings, made_with=self.quant_made_with)

    @property
    def float_stats_key(self) -> tuple:
        """Cells for which this is equal share the statistics of the float model's inputs; keys can be sorted."""
        quant = self.quant or {}
        rows = quant.get("row_weights", "uniform"), quant.get("rows_per_example") or 0, quant.get("rows_seed", 0)
        return self.calibration_images, self.seed, row_scales.wanted(self.quant), *rows

    @property
    def row(self) -> str:
        """The title of its row."""
        return self.title + (TUNED if self.tuning else "")


def cells(config: ConfigDict, identity: str) -> list[Cell]:
    """Every cell of the table, the float model first; `identity` is the Task's, of model, weights and data.

    Raises:
      ValueError: an unknown row, alphabet or option, or one given twice; every such mistake is found before the first
        cell runs.
    """
    table = config.table
    for key in ("rows", "seeds", "calibration_images", "sweeps", "bits_per_parameter"):
        check_once(f"config.table.{key}", table[key])
    check_once("config.table.alphabets", [tuple(make_alphabet(name).tolist()) for name in _names(table)], _names(table))
    tunings = [None, norm_tuning_fields(config)] if config.norm_tuning.enabled else [None]
    sizes = tuple(table.calibration_images) or (config.data.calibration_images,)
    grid = [_cell(config, identity, FLOAT, "", 0, 0, None, None)]
    for (title, row), size, tuning in itertools.product(_rows(config), sizes, tunings):
        title += f", {size} examples" if len(sizes) > 1 else ""
        seeds = tuple(table.seeds) or (config.seed,)
        for (alphabet, fields), seed in itertools.product(_columns(config).items(), seeds):
            quant = {**_common_fields(config), **row, **fields}
            quant["options"] = _own_sweeps(table, quant, alphabet)
            mixed.spec_of(quant)
            grid.append(_cell(config, identity, title, alphabet, seed, size, quant, tuning))
    return grid


def grouped(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells in the order in which they are computed: of one quantized model together, none of one key twice.

    One after another comes what shares calibration examples and what is computed from these.
    """
    groups: dict[str, dict[str, Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.float_stats_key):
        groups.setdefault(cell.quant_key, {})[cell.key] = cell
    return [list(group.values()) for group in groups.values()]


def single_cell(config: ConfigDict, identity: str) -> Cell:
    """The one cell that config.quant and config.norm_tuning describe."""
    alphabet, budget = str(config.quant.alphabet), config.quant.bits_per_parameter
    quant = {**_common_fields(config), "alphabet": config.quant.alphabet}
    if budget is not None:
        (alphabet, fields), *_ = _budgets(config, (budget,)).items()
        quant = {**_common_fields(config), **fields}
    mixed.spec_of(quant)
    tuning = norm_tuning_fields(config) if config.norm_tuning.enabled else None
    count = config.data.calibration_images
    return _cell(config, identity, quant["method"], alphabet, config.seed, count, quant, tuning)


def _common_fields(config: ConfigDict) -> dict:
    """config.quant without what says how many bits."""
    return {key: v for key, v in config.quant.to_dict().items() if key not in ("alphabet", *mixed.KEYS)}


def _columns(config: ConfigDict) -> dict[str, dict]:
    """{column: its fields of a cell}: the alphabets, then the budgets."""
    names = _names(config.table)
    budgets = tuple(config.table.bits_per_parameter)
    if not budgets and config.quant.bits_per_parameter is not None:
        budgets = (config.quant.bits_per_parameter,)
    return {name: {"alphabet": name} for name in names} | _budgets(config, budgets)


def _budgets(config: ConfigDict, budgets: tuple[float, ...]) -> dict[str, dict]:
    candidates = [alphabet_name(alphabet) for alphabet in config.quant.candidate_alphabets] if budgets else []
    return {mixed.column(b): {"bits_per_parameter": float(b), "candidate_alphabets": candidates} for b in budgets}


def _rows(config: ConfigDict):
    """(title, fields of its QuantSpec) of every row, one for each number of sweeps where the method makes sweeps."""
    for name in config.table.rows:
        if name not in config.rows:
            raise ValueError(f"unknown row {name!r} in config.table.rows; expected some of {', '.join(config.rows)}")
        row = {key: value for key, value in config.rows[name].to_dict().items() if value is not None}
        title = row.pop("title")
        if not config.table.sweeps or "sweeps" not in method_options().get(row["method"], ()):
            yield title, row
            continue
        for sweeps in config.table.sweeps:
            yield f"{title}, K = {sweeps}", {**row, "options": {**row["options"], "sweeps": sweeps}}


def _own_sweeps(table, quant: dict, alphabet: str) -> dict:
    """The row's options, with the number of sweeps that table.sweeps_at gives Beacon at this alphabet."""
    at = {alphabet_name(name): sweeps for name, sweeps in table.sweeps_at}
    if quant["method"] == "beacon" and quant["options"]["sweeps"] is None and alphabet in at:
        return {**quant["options"], "sweeps": at[alphabet]}
    return quant["options"]


def _names(table) -> list[str]:
    return [alphabet_name(alphabet) for alphabet in table.alphabets]


def check_once(key: str, values: Sequence[Any], names: Sequence[Any] | None = None) -> None:
    """Raises ValueError where a value is there twice, which would count one result as two; names are to be shown."""
    for i, value in enumerate(values):
        if value in values[:i]:
            first, second = ((names or values)[j] for j in (values.index(value), i))
            also = "" if first == second else f" (as {first!r}, too)"
            raise ValueError(f"{key} has {second!r} twice{also}; each may be there once")


def alphabet_name(alphabet) -> str:
    """The name under which a table shows an alphabet given by name, number or levels."""
    name = str(alphabet) if np.isscalar(alphabet) else ",".join(f"{level:g}" for level in alphabet)
    make_alphabet(name)
    return name


def norm_tuning_fields(config: ConfigDict) -> dict:
    """config.norm_tuning, checked: the fields of NormTuning, images and batch_size."""
    fields = config.norm_tuning.to_dict()
    del fields["enabled"]
    norm_tuning(fields)
    return fields


def norm_tuning(fields: dict) -> NormTuning:
    """The options of `norm_tuning_fields`, without what concerns its images."""
    return NormTuning(**{key: value for key, value in fields.items() if key not in ("images", "batch_size")})


def _cell(config, identity, title, alphabet, seed, calibration_images, quant, tuning) -> Cell:
    decides = dict(version=RESULTS_VERSION, task=config.task, identity=identity)
    decides |= dict(forward_dtype=config.execution.forward_dtype, quant=_deciding(quant))
    decides |= dict(seed=seed, calibration_images=calibration_images)
    settings = identity_of(**decides, tuning=tuning)
    return Cell(title, alphabet, seed, calibration_images, quant, tuning, settings, identity_of(**decides))


def _deciding(quant: dict | None) -> dict | None:
    """What of a QuantSpec's fields decides the result: not what is unset, nor what counts as rounding."""
    if quant is None:
        return None
    fields = {key: value for key, value in quant.items() if key not in ("allow_few_rows", "strict", row_scales.KEY)}
    fields |= {row_scales.KEY: True} if row_scales.wanted(quant) else {}
    options = {key: v for key, v in quant["options"].items() if v is not None and key not in rounding_only()}
    return {**fields, "options": options}
