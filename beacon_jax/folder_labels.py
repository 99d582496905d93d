"""Which files of an image folder are a split's, and of which class, by the names of folders and files alone."""

import dataclasses
import re
from collections.abc import Iterator

from absl import logging

from beacon_jax.image_files import FolderFiles, Listed, RemoteFiles, ZipFiles, is_image, join

# What the folder of a split may be called, in any case; of several the first that has labels.
FOLDERS = {"train": ("train", "training"), "test": ("test", "testing", "validation", "valid", "val")}
_ALIASES = {alias for aliases in FOLDERS.values() for alias in aliases}
_WNID = re.compile(r"[nN]\d{8}")


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The files of a split in order, the label of each, and whether there are no splits."""

    files: list[str]
    labels: list[int]
    unsplit: bool


def labelled_files(tree: FolderFiles | ZipFiles | RemoteFiles, split: str, root: str) -> Labelled:
    """The images of a split, in sorted order, with their labels.

    A file's class is the folder below the split's folder that it lies in, however deep, or the wnid that its own name
    begins with (<wnid>_<name>). Classes are numbered over the folders of train and test, by their names: integers are
    the labels themselves, ImageNet's wnids have their numbers in ImageNet-1k, others are numbered in sorted order. A
    folder without images is a class, too. What is not read, and classes without images, are logged as warnings.

    Args:
      tree: the files.
      split: "train" or "test".
      root: what to call the whole in messages.

    Raises:
      ValueError: no images, no labelled folder for the split, or classes that cannot be told.
    """
    listed = Listed(tree)
    base = _base(listed)
    own, in_use = _split_folder(listed, base, split, root)
    classes = {name for folder in in_use for name in _classes(listed, folder)}
    for folder in in_use:
        _check_depth(listed, folder, root)
    number, where = _numbers(sorted(classes), root), join(root, own) if own else root
    files, labels, unread = [], [], []
    for name, found in _files(listed, own):
        if not is_image(name):
            unread.append(name)
            continue
        if found is None:
            raise ValueError(f"{name} in {root} has no class: expected <class>/<name> or <wnid>_<name>")
        files.append(name)
        labels.append(number[found])
    if not files:
        raise ValueError(f"{where} holds no images of a kind that PIL reads")
    _say(unread, classes, number, labels, where)
    return Labelled(files, labels, unsplit=own == base)


def _say(unread: list[str], classes: set[str], number: dict[str, int], labels: list[int], where: str) -> None:
    if unread:
        logging.warning("%s: %d files are not read, such as %s: PIL reads none such", where, len(unread), unread[0])
    seen = set(labels)
    empty = sorted(name for name in classes if number[name] not in seen)
    if empty:
        logging.warning(
            "%s: %d classes have no images, such as %s; they keep their numbers", where, len(empty), empty[0]
        )


def _base(tree) -> str:
    """The folder that all images lie in, with folders of splits or of classes; not one that is their only class."""
    base = ""
    while True:
        folders, files = tree.children(base)
        if any(map(is_image, files)) or any(name.casefold() in _ALIASES for name in folders):
            return base
        holding = [join(base, name) for name in folders]
        holding = [folder for folder, _ in zip((f for f in holding if _has_images(tree, f)), range(2), strict=False)]
        if len(holding) != 1:
            return base
        inner, files = tree.children(holding[0])
        if not inner or any(map(is_image, files)):
            return base
        base = holding[0]


def _has_images(tree, folder: str) -> bool:
    folders, files = tree.children(folder)
    return any(map(is_image, files)) or any(_has_images(tree, join(folder, name)) for name in folders)


def _split_folder(tree, base: str, split: str, root: str) -> tuple[str, list[str]]:
    """The folder of a split, and the folders of all splits in use: `base` itself where there are none."""
    folders, _ = tree.children(base)
    named: dict[str, str] = {}
    for name in folders:
        alias = name.casefold()
        if alias in _ALIASES:
            if alias in named:
                raise ValueError(f"{root} has two folders for one split, {named[alias]} and {name}; remove one")
            named[alias] = name
    labelled = {alias: join(base, name) for alias, name in named.items() if _classes(tree, join(base, name))}
    if not labelled:
        if named and len(named) == len(folders):
            raise ValueError(
                f"the images of {root} have no labels: {', '.join(named.values())} hold no folders of classes"
            )
        return base, [base]
    train = next((labelled[alias] for alias in FOLDERS["train"] if alias in labelled), None)
    test = _test_folder(tree, [labelled[alias] for alias in FOLDERS["test"] if alias in labelled], train)
    if train is None or test is None:
        others = [name for name in folders if name.casefold() not in _ALIASES]
        like = next((name for name in others if any(map(is_image, tree.children(join(base, name))[1]))), None)
        if like:
            only = train or test
            raise ValueError(f"is {only} of {root} a split, or a class as {like} beside it? rename or move one of them")
    own = train if split == "train" else test
    if own is None:
        expected = " or ".join(FOLDERS[split])
        alias = next((alias for alias in FOLDERS[split] if alias in labelled), None)
        if train is not None and alias is not None:
            known, strange = (", ".join(sorted(_classes(tree, folder))[:3]) for folder in (train, labelled[alias]))
            own, other = join(root, labelled[alias]), join(root, train)
            raise ValueError(f"{own} holds none of the classes of {other}: {strange}, and there {known}")
        found = ", ".join(sorted(labelled.values()))
        raise ValueError(f"{root} has no folder {expected} with the classes of the {split} split; it has {found}")
    in_use = [folder for folder in (train, test) if folder is not None]
    left = [name for name in folders if join(base, name) not in in_use]
    if left:
        logging.warning("%s: not read are %s", root, ", ".join(left))
    return own, in_use


def _test_folder(tree, candidates: list[str], train: str | None) -> str | None:
    """The first candidate with labels: with classes that are the training images', and not one folder for them all."""
    known = _classes(tree, train) if train is not None else set()

    def fits(found):
        return not known or found & known or all(_WNID.fullmatch(name) or _is_integer(name) for name in found | known)

    fitting = [folder for folder in candidates if fits(_classes(tree, folder))]
    several = [folder for folder in fitting if len(_classes(tree, folder)) > 1]
    return next(iter(several if len(known) != 1 and several else fitting), None)


def _classes(tree, folder: str) -> set[str]:
    """The classes of a folder: its folders, and the wnids in the names of its files."""
    folders, files = tree.children(folder)
    wnids = {found for name in files if is_image(name) and (found := _wnid_of(name))}
    return {_class_name(name) for name in folders} | wnids


def _class_name(folder: str) -> str:
    return folder.lower() if _WNID.fullmatch(folder) else folder


def _is_integer(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _wnid_of(file: str) -> str | None:
    start = file.split("_")[0]
    return start.lower() if _WNID.fullmatch(start) else None


def _files(tree, folder: str) -> Iterator[tuple[str, str | None]]:
    """(path, class) of every file below a folder, in sorted order of folders, then files."""
    folders, files = tree.children(folder)
    for name in files:
        yield join(folder, name), _wnid_of(name)
    for name in folders:
        for path in _below(tree, join(folder, name)):
            yield path, _class_name(name)


def _below(tree, folder: str) -> Iterator[str]:
    folders, files = tree.children(folder)
    yield from (join(folder, name) for name in files)
    for name in folders:
        yield from _below(tree, join(folder, name))


def _check_depth(tree, folder: str, root: str) -> None:
    """Refuses folders between the split and its classes, which would be taken for classes themselves."""
    inner = {}
    for name in tree.children(folder)[0]:
        folders, files = tree.children(join(folder, name))
        inner[join(folder, name)] = None if any(map(is_image, files)) else frozenset(folders)
    for path, folders in inner.items():
        wnid = next(filter(_WNID.fullmatch, folders or ()), None)
        if wnid and not _WNID.fullmatch(path.split("/")[-1]):
            raise ValueError(f"{path} in {root} lies above ImageNet's classes ({wnid}); set the root to {path}")
        splits = {name for name in folders or () if name.casefold() in _ALIASES}
        if splits:
            raise ValueError(f"{path} in {root} holds the splits {', '.join(sorted(splits))}; set the root to it")
    if all(_WNID.fullmatch(path.split("/")[-1]) for path in inner):
        return
    kinds = {folders for folders in inner.values() if folders != frozenset()}
    if len(kinds) == 1 and (common := next(iter(kinds))) and len(common) > 1:
        raise ValueError(
            f"which folders of {root} are the classes? {next(iter(inner))} and the others beside it hold no images, "
            f"but the same folders ({', '.join(sorted(common)[:3])} …); set the root to one of them"
        )


def _numbers(classes: list[str], root: str) -> dict[str, int]:
    integers = [name for name in classes if _is_integer(name)]
    if integers:
        return _integer_numbers(classes, integers, root)
    if not any(map(_WNID.fullmatch, classes)):
        return {name: label for label, name in enumerate(classes)}
    imagenet = {wnid: label for label, wnid in enumerate(_imagenet_wnids())}
    others = [name for name in classes if name not in imagenet]
    if others and len(others) < len(classes):
        raise ValueError(
            f"{len(classes) - len(others)} classes of {root} are ImageNet-1k's and {len(others)} are not, such as "
            f"{others[0]!r}; take these out, or rename all"
        )
    return {name: label for label, name in enumerate(classes)} if others else imagenet


def _integer_numbers(classes: list[str], integers: list[str], root: str) -> dict[str, int]:
    if len(integers) < len(classes):
        other = min(set(classes) - set(integers))
        raise ValueError(
            f"some classes of {root} are called by numbers, such as {integers[0]}, which are their labels, and some "
            f"are not, such as {other!r}; rename these"
        )
    number = {name: int(name) for name in classes}
    if len(set(number.values())) < len(number):
        twice = next(name for name in classes if sum(label == number[name] for label in number.values()) > 1)
        raise ValueError(f"two classes of {root} have the number {number[twice]}; rename one")
    if max(number.values()) > 2**31 - 1:
        raise ValueError(f"class {max(number.values())} of {root} is too large a number for a label")
    return number


def _imagenet_wnids() -> list[str]:
    """ImageNet-1k's classes in order, from the list that TFDS ships."""
    import tensorflow_datasets as tfds

    return tfds.builder("imagenet2012").info.features["label"].names
