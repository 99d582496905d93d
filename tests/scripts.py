"""Several command lines of the scripts, each in a process of its own that is forked when all imports are done."""

import json
import os
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

IMPORTS = ("experiments.common", "experiments.experiment", "experiments.reports.run")


class Done(NamedTuple):
    """How a command ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def run_all(lines, folder, **environment) -> list[Done]:
    """What becomes of each [module, *arguments], run one after the other like python -m; `folder` is for what they
    write."""
    command = [sys.executable, "-m", "tests.scripts", json.dumps([lines, str(folder)])]
    subprocess.run(command, check=True, timeout=600, env=os.environ | environment)
    return [Done(*json.loads((folder / f"{i}.json").read_text(encoding="utf-8"))) for i in range(len(lines))]


def _run(line, out, err):
    """In a new process: its exit code."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = line
    runpy.run_module(line[0], run_name="__main__", alter_sys=True)
    sys.exit(0)


def main():
    lines, folder = json.loads(sys.argv[1])
    for name in IMPORTS:
        import_module(name)
    for i, line in enumerate(lines):
        texts = [Path(folder, f"{i}.{kind}") for kind in ("out", "err")]
        code = _run(line, *texts)
        done = [code, *(text.read_text(encoding="utf-8") for text in texts)]
        Path(folder, f"{i}.json").write_text(json.dumps(done), encoding="utf-8")


if __name__ == "__main__":
    main()
