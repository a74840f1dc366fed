"""The record of a data set: in which order its universes were sliced, and which file each belongs to.

``<out>_shards/data_set.json`` is what makes it possible to add universes later without moving a slice from one file to
another. It is replaced as a whole before the slice files are, so that it is never behind them.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from utils.cli import UserError
from utils.files import write_text
from utils.slice_plan import draw_splits

RECORD_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One universe of a data set."""

    file: str  # its name: path below the sliced folder
    split: str | None  # None: it gives a slab to each
    shard: str  # its file in the folder of shards


@dataclass(frozen=True)
class DataSet:
    """Options that decide about a data set, and its universes in order."""

    options: dict[str, object]
    universes: list[Entry] = field(default_factory=list)


def load(path: Path) -> DataSet | None:
    """Read a record; None where there is none.

    Raises
    ------
    UserError
        If it is damaged.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["record_version"] != RECORD_VERSION:
            raise ValueError(f"it has version {content['record_version']}, not {RECORD_VERSION}")
        return DataSet(dict(content["options"]), [Entry(**entry) for entry in content["universes"]])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): restore it, or delete it to begin a new data set, in which slices may move "
            "from one file to another"
        ) from error


def save(path: Path, data_set: DataSet) -> None:
    """Write a record."""
    content = {"record_version": RECORD_VERSION, "options": data_set.options}
    content["universes"] = [asdict(entry) for entry in data_set.universes]
    write_text(path, json.dumps(content, indent=1) + "\n")


def assign(
    recorded: list[Entry], added: Iterable[str], shares: dict[str, float], seed: int, path: Path
) -> dict[str, str | None]:
    """Give every universe its split, those that have one keep it.

    Parameters
    ----------
    recorded : list of Entry
        Universes that are in the data set.
    added : iterable of str
        Names of those to be added, in order.
    shares : dict of str to float
        Every split's share.
    seed : int
    path : Path
        The record, for messages.

    Returns
    -------
    dict of str to (str or None)
        Splits by the universes' names, in the order of the data set; None where there are fewer universes than splits,
        so that all of them are cut into slabs.

    Raises
    ------
    UserError
        If that is impossible without moving slices from one split to another.
    """
    given = [entry.split for entry in recorded]
    names = [*(entry.file for entry in recorded), *added]
    way_out = f"choose another --out, or delete {path} to begin a new data set from the same shards"
    if len(names) < len(shares) and set(given) <= {None}:
        return dict.fromkeys(names)
    if None in given:
        raise UserError(
            f"with {len(names)} universes each goes to one of the {len(shares)} files as a whole, but {len(given)} of "
            f"them are in every file with a slab, and would have to move: {way_out}"
        )
    splits = draw_splits(len(names), shares, seed, given)
    if set(splits) != set(shares):
        missing = ", ".join(split for split in shares if split not in splits)
        raise UserError(f"of {len(names)} universes that are left none belongs to {missing}: add some, or {way_out}")
    return dict(zip(names, splits, strict=True))
