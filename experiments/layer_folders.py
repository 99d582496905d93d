"""Where the layers of unfinished cells lie: layers/KEY below the run's folder, each with what it is about."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from beacon_jax.places import is_remote, listed, stat
from experiments import hosts
from experiments.grid import Cell
from experiments.provenance import taken
from experiments.results import ABOUT, DELETED, LayerStore, read_about
from experiments.run_folder import RunFolder


def open_store(
    folder: RunFolder, cell: Cell, reuse: str, *, check: Callable[[], None] = lambda: None, **more: Any
) -> LayerStore:
    """The layers of a cell; with reuse "any" those of the same settings that were made otherwise, where there are some.

    Args:
      folder: of the run.
      cell: with its facts.
      reuse: one of provenance.REUSE. What is of the same settings and made otherwise is printed.
      check: called before each layer is saved, after the folder's own.
      more: to be kept with what the layers are about.
    """
    own = folder.path / "layers" / cell.quant_key
    about = {"settings": cell.quant_settings, "made_with": cell.quant_made_with, **more}
    found = [(a["settings"], a["made_with"], path) for path, a in _folders(folder.path)] if hosts.first() else []
    what = f"models with finished layers in {folder.path / 'layers'}"
    (path,) = hosts.from_first(
        taken([(about["settings"], about["made_with"])], found, reuse, what) if hosts.first() else None
    )

    def check_both():
        folder.check()
        check()

    return LayerStore(path or own, about, check_both)


def remove_finished(folder: RunFolder, finished: Callable[[str, dict[str, Any]], bool]) -> None:
    """Removes the layers that a run left after their result was written.

    Args:
      folder: of the run.
      finished: (key, what the layers are about) → whether the result is there.
    """
    if not hosts.first():
        return
    for path, about in _folders(folder.path):
        if finished(path.name, about):
            LayerStore(path).clear()
    if is_remote(folder.path):  # where there are no empty folders, and none is renamed
        return
    for path in (folder.path / "layers").glob("*"):
        if path.name.endswith(DELETED):
            shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty
            path.rmdir()


def _folders(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """(folder, what its layers are about), the latest last."""
    found = sorted(listed(path / "layers", f"*/{ABOUT}"), key=lambda about: (stat(about).st_mtime_ns, str(about)))
    return [
        (about.parent, read_about(about, ("settings", "made_with")))
        for about in found
        if not about.parent.name.endswith(DELETED)
    ]
