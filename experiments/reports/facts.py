"""What identifies a run: settings and versions, in a file beside its results, and what the results were made with."""

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import numpy as np

from beacon_jax.disk import disk_errors
from beacon_jax.evaluate import Metric
from beacon_jax.places import exists, read
from beacon_jax.version import VERSION
from experiments.grid import RESULTS_VERSION
from experiments.reports.table import Column, Table
from experiments.results import Result

FILE = "run.json"


@dataclasses.dataclass(frozen=True)
class Described:
    """What reports say of a metric: `title`, `shown` and `better` as in beacon_jax.metrics.base.Metric."""

    title: str = ""
    shown: str = ".4g"
    better: str = ""


def run_facts(config, metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """What can be said of a run by its script, as it is written to FILE; where that lies is no part of it."""
    described = {name: Described(m.title or name, m.shown, m.better) for name, m in metrics.items()}
    return {
        "config": {key: value for key, value in config.to_dict().items() if key != "out"},
        "metrics": {name: dataclasses.asdict(own) for name, own in described.items()},
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what computes the numbers."""
    own = {"beacon_jax": VERSION, "results": str(RESULTS_VERSION), "python": platform.python_version()}
    return own | {module.__name__: module.__version__ for module in (jax, jaxlib, flax, np)}


def read_facts(folder: Path) -> dict[str, Any]:
    """What FILE in a folder says; {} where there is none, as beside results from before it was written.

    Raises:
      ValueError: a file that holds something else.
    """
    path = folder / FILE
    if not exists(path):
        return {}
    with disk_errors(path, "read"):
        text = read(path).decode("utf-8", errors="replace")
    try:
        facts = json.loads(text)
        if not all(isinstance(facts[key], dict) for key in ("config", "metrics", "versions")):
            raise TypeError
        for fields in facts["metrics"].values():
            Described(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged, or of another version of this script; remove it to go on") from error
    return facts


def metrics_of(facts: Mapping[str, Any], results: Sequence[Result]) -> dict[str, Described]:
    """How to show the metrics of results; by their names alone where the facts do not know them."""
    names = dict.fromkeys(name for result in results for name in result.metrics)
    known = {name: Described(**fields) for name, fields in facts.get("metrics", {}).items()}
    return {name: known.get(name, Described(title=name)) for name in [*(n for n in known if n in names), *names]}


def published(facts: Mapping[str, Any]) -> list[tuple]:
    """The paper's numbers of this model (see configs/base.py), none where the configuration is not known."""
    config = facts.get("config", {})
    table, model = config.get("table", {}), config.get("model", {})
    if not table.get("published") or table["published_model"] != model.get("name"):
        return []
    return [tuple(number) for number in table["published"]]


def flat(tree: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """{dotted key: value as text} of nested dicts; None is not set, and left out."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{key}.")
        elif value is not None:
            found[f"{before}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def made_with(results: Sequence[Result]) -> dict[str, str]:
    """{fact: what the results were made with}, several values with the rows that they are of."""
    values: dict[str, dict[str, dict[str, None]]] = {}
    for result in results:
        for fact, value in result.cell.made_with.items():
            values.setdefault(fact, {}).setdefault(value, {})[_place(result)] = None
    found = {}
    for fact, own in values.items():
        if len({tuple(places) for places in own.values()}) == 1:  # several are of several seeds
            found[fact] = ", ".join(own)
        else:
            found[fact] = "; ".join(f"{value} ({_few(list(places))})" for value, places in own.items())
    return found


def _place(result: Result) -> str:
    return result.cell.row


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def methods(results: Sequence[Result]) -> dict[str, str]:
    """{row: method and options, as far as they are set and the same at all alphabets}."""
    found: dict[str, dict[str, set[str]]] = {}
    for result in results:
        if result.cell.quant is not None:
            own = found.setdefault(result.cell.row, {})
            for key, value in flat({**result.cell.quant, "norm_tuning": result.cell.tuning}).items():
                own.setdefault(key.removeprefix("options."), set()).add(value)
    leave = ("alphabet", "bits_per_parameter", "candidate_alphabets")
    return {
        row: ", ".join(f"{key} {next(iter(v))}" for key, v in own.items() if len(v) == 1 and key not in leave)
        for row, own in found.items()
    }


def identity(facts: Mapping[str, Any], results: Sequence[Result]) -> list[tuple[str, dict[str, str]]]:
    """(heading, {key: value}) of all that identifies a run and its results."""
    found = [("Methods, with the settings that are the same at all bits", methods(results))]
    found.append(("Made with", made_with(results)))
    if facts:
        found.append(("Versions", dict(facts["versions"])))
        found.append(("Configuration", flat(facts["config"])))
    return found


def facts_table(title: str, facts: Mapping[str, str]) -> Table:
    """Two columns: key and value."""
    return Table("facts", title, (Column("key", ""), Column("value", "")), tuple(facts.items()))
