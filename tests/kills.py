"""Scripts killed at random and started again: python -m tests.kills --count=100

Each kill is a SIGKILL before a file is opened, renamed or removed or a folder made, in the middle of a write, or at a
random moment. After a few kills the script runs to its end, and what it then leaves must be what a run that was never
killed leaves: every line and file the same but for times, nothing more, and no traceback on the way.
"""

import argparse
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from beacon_jax.models import decoder
from configs import base  # noqa: F401 (imported once, before the processes that are killed are forked)
from experiments import ablation, common, quantize, table_files, tables, train, train_language
from tests.own_task import MODULE

TINY = [
    "--config=configs/base.py",
    "--config.task=killed:task",
    "--config.data.calibration_images=32",
    "--config.norm_tuning.enabled=True",
    "--config.norm_tuning.loss=mse",
    "--config.norm_tuning.steps=2",
    "--config.quant.method=comq",
    "--config.table.rows=('rtn','comq')",
    "--config.table.alphabets=('2',)",
]
DIGITS = [
    "--config=configs/digits.py",
    "--config.train.epochs=2",
    "--config.train.batch_size=512",
    "--config.train.warmup_epochs=0.5",
]
LANGUAGE = [
    "--config=configs/language.py",
    "--config.model.name=tiny",
    "--config.train.epochs=2",
    "--config.train.batch_size=64",
    "--config.train.save_every=2",
]
SCRIPTS = {
    "tables": (tables.main, [*TINY, "--config.out={out}"]),
    "quantize": (quantize.main, [*TINY, "--config.out={out}"]),
    "train": (
        train.main,
        [*DIGITS, "--config.train.save_every=1", "--config.train.float_checkpoint={out}/model.safetensors"],
    ),
    "train_language": (train_language.main, [*LANGUAGE, "--config.train.float_checkpoint={out}/model.safetensors"]),
    "ablation": (
        ablation.main,
        [*TINY, "--alphabets=2", "--seeds=0,1", "--steps=0,4", "--held_out=16", "--config.out={out}"],
    ),
}
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")
TIMES = ("seconds", "gram_seconds", "solve_seconds")


def kill_before(out: Path, number: int) -> None:
    """Kills this process before the number-th thing that it does with files in `out`."""
    left = [number]

    def hook(event, args):
        if event in EVENTS and args and str(args[0]).startswith(str(out)):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def kill_within_write(number: int, share: float) -> None:
    """Kills this process when the number-th file is to reach the disk, of which only a part has been written."""
    left, fsync = [number], os.fsync

    def half(descriptor):
        left[0] -= 1
        if left[0] == 0:
            os.ftruncate(descriptor, int(share * os.fstat(descriptor).st_size))
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = half


def make_small() -> None:
    """Leaves out of this process what takes longer than all that is killed: pictures, and the size of a real model."""
    table_files.png.plot = lambda *given: given[-1].write_bytes(b"")
    table_files.write_report = quantize.write_report = lambda *given, **_: given[0].write_bytes(b"")
    texts = train_language.read_corpus
    train_language.read_corpus = lambda: [text for text in texts() if len(text) < 300][:100]
    train_language.CONTEXT = 16
    decoder.DECODERS["tiny"] = dict(vocabulary=300, width=16, depth=1, heads=2, hidden=16, dropout=0.1)


def start(main, arguments: list[str], out: Path, log: Path, prepare=lambda: None) -> int:
    """The process of a script, forked; compiled code is kept beside the log."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        make_small()
        sys.argv = [
            main.__module__,
            f"--compilation_cache={log.parent / 'cache'}",
            *(a.format(out=out) for a in arguments),
        ]
        prepare()
        common.run(main)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process: int) -> int:
    """Its exit code, minus the signal where one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def without_times(value):
    """A JSON value without what may differ from run to run, the folder included."""
    if isinstance(value, dict):
        return {key: without_times(v) for key, v in value.items() if key not in (*TIMES, "out")}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def left(out: Path) -> dict[str, object]:
    """{file: what it holds}; lines without times, in any order, and no contents of tables, which show times."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        held = path.read_bytes()
        if path.suffix == ".jsonl":
            # quantize adds a line each time, also where it was killed after the first.
            held = {json.dumps(without_times(json.loads(line)), sort_keys=True) for line in held.splitlines()}
        found[str(path.relative_to(out))] = None if path.suffix in (".md", ".csv") else held
    return found


def _differences(found, expected):
    return (sorted(found - expected), sorted(expected - found)) if isinstance(found, set) else "other bytes"


def whole_lines(out: Path) -> set[bytes]:
    """The lines that count."""
    return {line for path in out.glob("*.jsonl") for line in path.read_bytes().split(b"\n")[:-1]}


def kill_once(name: str, out: Path, log: Path, rng: random.Random, usual: float) -> tuple[str, int]:
    """(how, exit code) of a run that is killed in one way or another, unless it ends before."""
    how = rng.choice(("event", "event", "write", "moment"))
    number, share = rng.randint(1, 60), rng.random()
    if how == "event":
        return how, wait(start(*SCRIPTS[name], out, log, lambda: kill_before(out, number)))
    if how == "write":
        return how, wait(start(*SCRIPTS[name], out, log, lambda: kill_within_write(1 + number % 24, share)))
    process = start(*SCRIPTS[name], out, log)
    time.sleep(rng.uniform(0.3, 1) * usual)
    os.kill(process, signal.SIGKILL)
    return how, wait(process)


def run(kills: int, folder: Path, names: list[str], seed: int) -> str:
    """Kills as often as asked, in turns by script. AssertionError where something is lost, mixed or left."""
    (folder / "killed.py").write_text(MODULE, encoding="utf-8")
    sys.path.insert(0, str(folder))
    rng, log, total = random.Random(seed), folder / "log", 0
    reference, usual = {}, {}
    for name in names:
        out = folder / f"{name}_whole"
        assert wait(start(*SCRIPTS[name], out, log)) == 0, log.read_text()
        begun = time.monotonic()
        assert wait(start(*SCRIPTS[name], folder / f"{name}_again", log)) == 0, log.read_text()
        usual[name] = time.monotonic() - begun
        reference[name] = left(out)
        assert left(folder / f"{name}_again") == reference[name], f"{name} twice is not the same"
    for name in itertools.cycle(names):
        if total >= kills:
            break
        out = folder / f"{name}_{total}"
        for _ in range(rng.randint(1, 4)):
            before = whole_lines(out)
            how, code = kill_once(name, out, log, rng, usual[name])
            said = log.read_text(encoding="utf-8")
            assert code in (0, -signal.SIGKILL) and "Traceback" not in said, (name, how, said)
            assert before <= whole_lines(out), (name, how, "a line is lost")
            if code == 0:  # it had ended before
                break
            total += 1
        else:
            assert wait(start(*SCRIPTS[name], out, log)) == 0, (name, log.read_text(encoding="utf-8"))
        found = left(out)
        assert found.keys() == reference[name].keys(), (name, found.keys() ^ reference[name].keys())
        wrong = [path for path, held in found.items() if held != reference[name][path]]
        assert not wrong, (name, how, wrong, [_differences(found[path], reference[name][path]) for path in wrong])
        print(f"{total} kills", flush=True)
    return f"{total} kills of {', '.join(names)}: nothing lost, mixed or left"


def command_line(about, count):
    """The arguments of a script that kills so many times, if not told otherwise."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        parser = command_line(__doc__, 100)
        parser.add_argument("--scripts", nargs="*", default=list(SCRIPTS), choices=list(SCRIPTS))
        given = parser.parse_args()
        print(run(given.count, Path(temporary), given.scripts, given.seed))
