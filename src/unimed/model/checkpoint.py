"""Checkpoints that others made: their settings, and tensors read one by one from safetensors, or torch's files if released so."""

import json
import math
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unimed.errors import InputError

FORMS = (("model.safetensors", "safetensors"), ("pytorch_model.bin", "bin"))
"""What Hugging Face calls weights in one file, and how files end that hold a part; an index beside parts is `<name>.index.json`."""

CONFIGURATION, PREPROCESSOR = "config.json", "preprocessor_config.json"
"""Beside the weights: the sizes, and how images are made ready."""

NAMED = 3
"""Tensors that a report names of each kind, at most; all are counted."""

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""Types that weights are kept in, by their names in a safetensors file."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A file of tensors, or a folder of such files; a tensor is read when it is asked for and kept by nobody here."""

    source: Path
    files: Mapping[Path, Any]
    """Every file with its tensors by name: an open safetensors file, or a mapping into a torch file."""

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every tensor by name."""
        return {name: _shape(opened, name) for opened in self.files.values() for name in _names(opened)}

    def dtype(self, names: Iterable[str]) -> torch.dtype:
        """The one type of the named tensors. Raises InputError when there are several, or one that weights are not kept in."""
        wanted = set(names)
        found = {_dtype(opened, name) for opened in self.files.values() for name in wanted.intersection(_names(opened))}
        if len(found) != 1 or not found <= DTYPES.keys():
            raise InputError(f"{self.source}: expected tensors of one type, of {', '.join(DTYPES)}, found {', '.join(sorted(found))}")
        return DTYPES[found.pop()]

    def names(self, file: Path) -> list[str]:
        """The tensors in one of the files."""
        return sorted(_names(self.files[file]))

    def tensor(self, name: str) -> Tensor:
        """One tensor. Raises KeyError for a name that is in no file."""
        for opened in self.files.values():
            if name in _names(opened):
                return opened[name] if isinstance(opened, Mapping) else opened.get_tensor(name)
        raise KeyError(name)


def _names(opened: Any) -> Iterable[str]:
    return opened.keys()


def _shape(opened: Any, name: str) -> Shape:
    return tuple(opened[name].shape) if isinstance(opened, Mapping) else tuple(opened.get_slice(name).get_shape())


def _dtype(opened: Any, name: str) -> str:
    if not isinstance(opened, Mapping):
        return str(opened.get_slice(name).get_dtype())
    return next((word for word, kind in DTYPES.items() if kind == opened[name].dtype), str(opened[name].dtype))


def read(place: Path) -> Checkpoint:
    """The checkpoint in a folder of Hugging Face's form, or in one file. Raises InputError when there is none or it is damaged."""
    if place.is_file():
        return Checkpoint(place, {place: _open(place)})
    for name, _ in FORMS:
        if (index := place / f"{name}.index.json").is_file():
            return _indexed(place, index)
        if (place / name).is_file():
            return Checkpoint(place, {place / name: _open(place / name)})
    raise InputError(f"{place}: expected {' or '.join(name for name, _ in FORMS)}, or an index of parts, found neither")


def _indexed(folder: Path, index: Path) -> Checkpoint:
    try:
        listed: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index}: expected a weight_map from tensors to files, found {type(error).__name__}") from error
    files = sorted(set(listed.values()))
    if outside := [name for name in files if Path(name).name != name or not (folder / name).is_file()]:
        raise InputError(f"{index}: expected the file {outside[0]} beside it, found none")
    opened = {folder / name: _open(folder / name) for name in files}
    held: dict[str, list[str]] = {}
    for file, part in opened.items():
        for name in _names(part):
            held.setdefault(name, []).append(file.name)
    if differ := sorted(name for name in held.keys() | listed.keys() if held.get(name) != [listed.get(name)]):
        raise InputError(f"{index}: expected each tensor in the file it names, found {len(differ)} elsewhere or missing ({_some(differ)})")
    return Checkpoint(folder, opened)


def _open(file: Path) -> Any:
    if file.suffix != ".safetensors":
        return _torch_file(file)
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise InputError(f"{file}: expected a whole safetensors file, found {error}") from error


def _torch_file(file: Path) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` wrote.

    The one place where such a file is opened: SAM-Med2D, LLaVA-1.5 and MedPLIB were released in no other form. `weights_only` reads
    tensors and plain containers and refuses whatever would run code; `mmap` leaves the numbers on disk until they are used.
    """
    if not zipfile.is_zipfile(file):
        raise InputError(f"{file}: expected a file of torch.save in its zip form, found another or a damaged one")
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, torch.serialization.pickle.PickleError) as error:
        raise InputError(f"{file}: expected tensors and nothing else, found {str(error).splitlines()[0]}") from error
    # SAM-Med2D's training saves its weights under `model`, beside the optimizer's state.
    found = found["model"] if isinstance(found, dict) and isinstance(found.get("model"), dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{file}: expected tensors by name, found other values")
    return found


def check(found: Mapping[str, Shape], expected: Mapping[str, Shape], source: Path) -> None:
    """Raise InputError unless names and shapes are exactly those expected; it counts all differences and names the first."""
    kinds = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name} {found[name]} for {expected[name]}" for name in sorted(expected.keys() & found.keys()) if found[name] != expected[name]
        ],
    }
    if wrong := [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names]:
        raise InputError(f"{source}: expected exactly the {len(expected)} tensors of its configuration, found {', '.join(wrong)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def settings(folder: Path, name: str = CONFIGURATION) -> dict[str, Any]:
    """The settings in a file of a checkpoint's folder. Raises InputError when there is none or it holds none."""
    try:
        found = json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / name}: expected the settings of a checkpoint, found {type(error).__name__}") from error
    if not isinstance(found, dict):
        raise InputError(f"{folder / name}: expected the settings of a checkpoint, found a {type(found).__name__}")
    return found


def image_statistics(folder: Path) -> tuple[list[float], list[float]] | None:
    """Mean and deviation of each colour, in [0, 1], by which a tower's images were normalised; None where no file says how.

    Raises InputError for a preprocessor that does not say them.
    """
    if not (folder / PREPROCESSOR).exists():
        return None
    given = settings(folder, PREPROCESSOR)
    mean, std = given.get("image_mean"), given.get("image_std")
    if not (_three_numbers(mean) and _three_numbers(std) and min(std) > 0):
        raise InputError(f"{folder / PREPROCESSOR}: expected image_mean and image_std for three colours, found {mean} and {std}")
    return [float(value) for value in mean], [float(value) for value in std]


def _three_numbers(found: Any) -> bool:
    return isinstance(found, list) and len(found) == 3 and all(isinstance(value, int | float) and math.isfinite(value) for value in found)


Rules = tuple[tuple[str, str | None], ...]
"""What others call a tensor, as a pattern for the whole name, and what it is called here, None for what is left aside; the first match
counts."""


def renamed(names: Iterable[str], rules: Rules, source: Path) -> tuple[dict[str, str], list[str]]:
    """From each tensor's name here to its name there, and the names left aside. Raises InputError for two that become one."""
    ours: dict[str, str] = {}
    aside = []
    for name in sorted(names):
        own = _renamed(name, rules)
        if own is None:
            aside.append(name)
        elif own in ours:
            raise InputError(f"{source}: expected one tensor for {own}, found {ours[own]} and {name}")
        else:
            ours[own] = name
    return ours, aside


def _renamed(name: str, rules: Rules) -> str | None:
    for pattern, own in rules:
        if match := re.fullmatch(pattern, name):
            return None if own is None else match.expand(own)
    return name
