"""The keys of a configuration with their comments, for --help: read from the source of configs/base.py."""

import difflib
import functools
import inspect
import operator
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import base
from experiments.methods import method_options

WORDS = {f"{dashes}{word}" for dashes in ("-", "--") for word in ("help", "helpshort", "helpfull")}
OPTIONS, ROWS = "quant.options", "rows"
_GIVEN = re.compile(r"--?config\.([\w.]+)")
_ASSIGNED = re.compile(r"config\.([\w.]+) = (.*?)(?:  # (.*))?")


def asked(argv: Iterable[str]) -> bool:
    """Whether a command line asks for help."""
    return not WORDS.isdisjoint(argv)


def config_help() -> str:
    """Each key in the order of configs/base.py with its comment and default there, and the options of the methods."""
    config = base.get_config()
    lines = ["configuration (with the defaults of configs/base.py; the file that --config names may have others):"]
    for key, is_group, before, comment in _keys():
        if is_group:
            lines += ["", *_wrapped(before, "  ")]
            continue
        said = ": ".join(filter(None, (f"--config.{key}", comment or before)))
        lines += _wrapped(f"{said} (default: {at(config, key)!r})")
    rows = ", ".join(sorted(config[ROWS]))
    return "\n".join([*lines, "", *_options(), "", *_wrapped(f"rows that config.table.rows may name: {rows}")])


def _keys() -> Iterator[tuple[str, bool, str, str]]:
    """(key, whether it has keys of its own, the comment before its line, the comment in it), but for the rows."""
    before: list[str] = []
    for line in map(str.strip, inspect.getsource(base.get_config).splitlines()):
        if line.startswith("# "):
            before.append(line[2:])
            continue
        match = _ASSIGNED.fullmatch(line)
        if match and match[1] != OPTIONS and match[1].split(".")[0] != ROWS:
            yield match[1], match[2] == "ConfigDict()", " ".join(before), match[3] or ""
        before = []


def _options() -> list[str]:
    methods: dict[tuple[str, str], list[str]] = {}
    for method, own in method_options().items():
        for name, field in own.items():
            methods.setdefault((name, field.metadata["help"]), []).append(method)
    lines = ["  options of the methods; what is not given is the method's own default:"]
    for (name, said), having in methods.items():
        lines += _wrapped(f"--config.{OPTIONS}.{name}: {said} ({', '.join(having)})")
    return lines


def unknown_key(argv: Iterable[str]) -> str | None:
    """A sentence on the first key of --config in a command line that configs/base.py has not; None without any."""
    config = base.get_config()
    known = [key for key, *_ in _keys()] + [f"{OPTIONS}.{name}" for own in method_options().values() for name in own]
    for word in argv:
        match = _GIVEN.match(word)
        if match and not _there(config, match[1]):
            likely = _like(match[1], known)
            meant = f"did you mean --config.{likely}?" if likely else "--help names them all"
            return f"there is no key --config.{match[1]}; {meant}"
    return None


def _like(key: str, known: list[str]) -> str | None:
    """The known key whose last word is most like a key's, of equal ones the one that is most like it as a whole."""

    def likeness(own: str) -> tuple[float, float]:
        pairs = (own.split(".")[-1], key.split(".")[-1]), (own, key)
        last, whole = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return last, whole

    best = max(known, key=likeness)
    return best if max(likeness(best)) > 0.75 else None


def _there(config: ConfigDict, key: str) -> bool:
    try:
        at(config, key)
    except (KeyError, TypeError):
        return False
    return True


def at(config: ConfigDict, key: str) -> Any:
    """The value of a dotted key."""
    return functools.reduce(operator.getitem, key.split("."), config)


def _wrapped(text: str, first: str = "  ") -> list[str]:
    return textwrap.wrap(text, 118, initial_indent=first, subsequent_indent=first + "    ")
