"""The configuration of an experiment: read from YAML, validated, frozen. Imports nothing heavy."""

import dataclasses
import difflib
import functools
import re
import sys
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from utils.cli import UserError


def _key(unit: str, default=dataclasses.MISSING):
    """A configuration key: what it is measured in, and its default (the nineteen old keys have none)."""
    return dataclasses.field(default=default, metadata={"unit": unit})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One validated experiment. The first nineteen keys are those of the 2019 suite and are required.

    Every further key has a default under which the 2019 behaviour holds. README.md explains each at length.
    Attributes are read-only; `load_config` is the door through which all of them come.
    """

    tag: str = _key("name of the experiment: the mapping's name in the file")

    dataname: str = _key("base name of the slice files in data/")
    img_dim: int = _key("pixels per side")
    noise_vect_len: int = _key("length of the generator's input")
    nlayers: int = _key("(de)convolution layers in each network")
    convkern: int = _key("pixels per side of the kernels")
    convstride: int = _key("pixels")
    nconvfilters: tuple[int, ...] = _key("filters of each discriminator layer")
    ndeconvfilters: tuple[int, ...] = _key("filters of each generator layer; the dense layer feeds twice the first")
    label_flip: float = _key("chance, per sample, that its real and its fake label are both flipped")
    batchsize: int = _key("samples per step, over all devices together")
    print_batch: int = _key("steps between log lines")
    checkpt_batch: int = _key("steps between TensorBoard checkpoints")
    cscale: str = _key("colour scale of image plots: lin (s in [-1, 1]) or pwr (power norm on density)")
    datascale: float = _key("particles per voxel: a in s(x) = 2x/(x + a) - 1")
    learn_rate: tuple[float, float] = _key("Adam step sizes, [generator, discriminator]")
    DG_update_ratio: int = _key("discriminator updates per generator update, half on real, half on fake batches")
    Nepochs: int = _key("passes over the training set")
    datafmt: str = _key("channels_first (NCHW) or channels_last (NHWC)")
    multichannel: bool = _key("multi-channel rescaling: a second channel tanh(x/1000)")

    precision: str = _key("arithmetic of the hidden layers: float32, mixed_bfloat16, mixed_float16 or auto", "float32")
    seed: int = _key("seed of every random number of the run", 0)
    random_crops: bool = _key("training slices cut anew at random places of their periodic planes", False)
    augment: bool = _key("training slices, and generated ones when drawn, in random symmetries of the square", False)
    dequantise: bool = _key("add uniform noise in [0, 1) to integer pixels; generated densities are floored", False)
    count_noise: bool = _key("round generated densities stochastically to whole particles, as simulations do", False)
    adam_betas: tuple[float, float] = _key("Adam's decay rates of the two moments", (0.5, 0.999))
    lr_schedule: str = _key("course of the learning rates over the run: constant or cosine (to lr_floor)", "constant")
    lr_floor: float = _key("part of the learning rates that a cosine ends at", 0.0)
    generator_norm: str = _key("normalisation in the generator: batch or layer", "batch")
    full_size_filters: int = _key("filters of one more generator layer, at the size of the slice (0: no such layer)", 0)
    discriminator_norm: str = _key("normalisation in the discriminator: batch or none", "batch")
    sync_batchnorm: bool = _key("batch norm over the whole batch where several devices share it", False)
    r1_weight: float = _key("weight of the R1 penalty on real images (0: off)", 0.0)
    r1_growth: float = _key("factor by which the weight of the R1 penalty grows in the course of the run", 1.0)
    r1_interval: int = _key("steps between R1 penalties, each then weighted by the interval", 1)
    r1_coordinate: str = _key("what the R1 penalty is with respect to: images or log_density", "images")
    spectral_weight: float = _key("weight of the spectral loss of the generator (0: off)", 0.0)
    critic_weight: float = _key("weight of the generator's loss by a critic of spectra and means (0: no critic)", 0.0)
    match_histogram: bool = _key("a monotone map of generated densities to the training set's histogram", False)
    ema_decay: float = _key("decay per step of the averaged generator's weights (0: no averaging)", 0.0)
    best_metric: str = _key("score by which weights are kept as best: chisq or figure_of_merit", "chisq")
    checkpt_samples: int = _key("generated and validation slices per TensorBoard checkpoint, at most", 512)
    save_steps: int = _key("steps between complete checkpoints", 500)
    save_keep: int = _key("complete checkpoints kept", 2)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(self, field))
        for key, holds, allowed in _rules(self):
            if not holds:
                raise _bad_value(self.tag, key, getattr(self, key), allowed)

    @property
    def base_dim(self) -> int:
        """Pixels per side of the generator's first feature maps."""
        return self.img_dim // self.convstride**self.nlayers

    @property
    def channels(self) -> int:
        """Image channels that the discriminator sees."""
        return 1 + self.multichannel

    @property
    def batch_pixels(self) -> int:
        """Pixels of a batch of slices."""
        return self.batchsize * self.img_dim**2

    def as_dict(self) -> dict:
        """Keys and values as they stand in a file (lists, not tuples; without the tag)."""
        values = dataclasses.asdict(self)
        del values["tag"]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def to_yaml(self) -> str:
        """The resolved configuration as a file that `load_config` reads back to an equal object."""
        return yaml.dump(
            {self.tag: self.as_dict()}, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100
        )


PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16", "auto")
# Keys of runs of before: where they had these values, configurations mean the same without them.
REMOVED_KEYS = {
    "ceiling_weight": 0,
    "channel_weights": [1, 1, 0],
    "density_cap": 0,
    "joint_updates": False,
    "spectral_units": 0,
    "texture_weight": 0,
}
KEYS = tuple(field.name for field in dataclasses.fields(Config) if field.name != "tag")
DEFAULTS = {f.name: f.default for f in dataclasses.fields(Config) if f.default is not dataclasses.MISSING}
REQUIRED_KEYS = tuple(key for key in KEYS if key not in DEFAULTS)


def load_config(path: str | Path, tag: str, overrides: Iterable[str] = ()) -> Config:
    """Read and validate one tag of a configuration file.

    Parameters
    ----------
    path : path
        A YAML file with one mapping per tag. Anchors and merge keys are allowed, Python objects are not. Numbers
        are read as in YAML 1.2, so that ``2e-4`` is a number.
    tag : str
        Which mapping.
    overrides : iterable of str
        ``KEY=VALUE`` pairs that replace values of the file, the value written as in YAML.

    Returns
    -------
    Config

    Raises
    ------
    UserError
        If the file cannot be read, the tag is not there, or a key or value is not allowed; the message names file or
        tag, key, value, and what is allowed.
    """
    values = dict(_mapping_of_tag(path, tag))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"--set {override}: expected KEY=VALUE, such as --set batchsize=32")
        values[key.strip()] = _parse(text, f"--set {override}")
    for key, off in REMOVED_KEYS.items():
        if values.pop(key, off) != off:
            raise UserError(
                f"{path}, tag '{tag}': the key '{key}' is no longer there, and all is as with {off!r}; remove it to "
                f"train anew without, or, to go on with a run that has it, check out the commit that its run.json names"
            )
    for key, value in values.items():
        if key not in KEYS:
            raise UserError(
                f"{path}, tag '{tag}': unknown key '{key}' (value {value!r}); {_nearest(key, KEYS, 'allowed keys')}"
            )
    missing = [key for key in REQUIRED_KEYS if key not in values]
    if missing:
        raise UserError(
            f"{path}, tag '{tag}': missing key{'s' * (len(missing) > 1)} {', '.join(missing)}; add to the tag, or "
            f"merge a tag that has them (<<: *BASE)"
        )
    try:
        return Config(tag=tag, **values)
    except UserError as error:
        raise UserError(f"{path}, {error}") from None


def read_tags(path: str | Path) -> dict:
    """All tags of a configuration file, not validated: {tag: mapping}. Raises `UserError` if it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"configuration file {path} does not exist; give another with --config FILE") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"configuration file {path} cannot be read: {error}") from None
    tags = _parse(text, str(path))
    if not isinstance(tags, dict) or not tags:
        raise UserError(f"{path}: expected one mapping per tag (tag: {{key: value, ...}}), found {_kind(tags)}")
    # YAML takes a tag of digits for a number; on the command line it is text.
    return {str(tag): mapping for tag, mapping in tags.items()}


def _mapping_of_tag(path, tag: str) -> Mapping:
    tags = read_tags(path)
    if tag not in tags:
        raise UserError(f"{path}: no tag '{tag}'; {_nearest(tag, tags, 'tags there')}")
    if not isinstance(tags[tag], dict):
        raise UserError(f"{path}, tag '{tag}': expected a mapping of keys to values, found {_kind(tags[tag])}")
    return tags[tag]


def _kind(value) -> str:
    """A value's type in a user's words."""
    return {dict: "a mapping", list: "a list", str: "text", type(None): "nothing", bool: "true/false"}.get(
        type(value), f"the value {value!r}"
    )


def _nearest(name, names: Iterable[str], what: str) -> str:
    """The nearest known name, or all of them where none is near."""
    names = sorted(names)
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"{what}: {', '.join(names)}"


# ---------------------------------------------------------------------------------------------- types and rules


def _bad_value(tag: str, key: str, value, allowed: str) -> UserError:
    value = list(value) if isinstance(value, tuple) else value
    return UserError(f"tag '{tag}': {key} = {value!r} is not allowed; {allowed}")


def _typed(config: Config, field: dataclasses.Field):
    """The value of a field in the field's type; lists become tuples, integers floats where a float is meant."""
    value = getattr(config, field.name)
    wanted = field.type
    if typing.get_origin(wanted) is tuple:
        item, *rest = typing.get_args(wanted)
        length = None if rest == [Ellipsis] else 1 + len(rest)
        kind = f"expected a list of {length or 'one or more'} {item.__name__}s ({field.metadata['unit']})"
        if not isinstance(value, (list, tuple)) or len(value) != (length or max(1, len(value))):
            raise _bad_value(config.tag, field.name, value, kind)
        return tuple(_scalar(config.tag, field.name, entry, item, kind) for entry in value)
    kind = f"expected {'true or false' if wanted is bool else 'a value of type ' + wanted.__name__}"
    return _scalar(config.tag, field.name, value, wanted, f"{kind} ({field.metadata['unit']})")


def _scalar(tag: str, key: str, value, wanted: type, allowed: str):
    accepted = {float: (int, float), int: (int,), bool: (bool,), str: (str,)}[wanted]
    # bool is a subclass of int in Python, but True is no number in a configuration.
    if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
        raise _bad_value(tag, key, value, allowed)
    if wanted is float and not abs(value) <= sys.float_info.max:
        raise _bad_value(tag, key, value, "expected a finite number")
    return wanted(value)


def _rules(c: Config) -> Iterable[tuple[str, bool, str]]:
    """What has to hold beyond the types: (key, holds, what is allowed), checked in this order.

    A generator, so that later rules may rely on earlier ones.
    """
    allowed = "letters, digits and _ . + - only, not . or .. alone: it names a folder"
    yield "tag", re.fullmatch(r"[\w.+-]+", c.tag) is not None and c.tag.strip(".") != "", allowed
    yield "dataname", bool(c.dataname.strip()), "the base name of slice files, such as raw"
    for key in ("noise_vect_len", "nlayers", "convkern", "convstride", "batchsize", "print_batch", "checkpt_batch"):
        yield key, getattr(c, key) >= 1, "at least 1"
    yield "Nepochs", 1 <= c.Nepochs <= 10**7, "from 1 to 10000000"
    for key in ("r1_interval", "checkpt_samples", "save_steps", "save_keep"):
        yield key, getattr(c, key) >= 1, "at least 1"
    yield "img_dim", c.img_dim >= 8 and c.img_dim % 2 == 0, "an even number of pixels, at least 8"
    yield "convkern", c.convkern >= c.convstride, f"at least convstride ({c.convstride}), or pixels are left out"
    for key in ("nconvfilters", "ndeconvfilters"):
        filters = getattr(c, key)
        yield key, len(filters) == c.nlayers, f"one entry per layer: nlayers is {c.nlayers}, not {len(filters)}"
        yield key, min(filters) >= 1, "every entry at least 1"
    yield "ndeconvfilters", c.ndeconvfilters[-1] == 1, "the last entry is 1: the image itself"
    reach = c.convstride**c.nlayers
    yield (
        "img_dim",
        c.img_dim % reach == 0,
        f"{c.nlayers} layers of stride {c.convstride} reach multiples of {reach} only; change img_dim or nlayers",
    )
    yield "label_flip", 0 <= c.label_flip <= 1, "a probability between 0 and 1"
    yield "cscale", c.cscale in ("lin", "pwr"), "lin or pwr"
    yield "datafmt", c.datafmt in ("channels_first", "channels_last"), "channels_first or channels_last"
    yield "precision", c.precision in PRECISIONS, "one of " + ", ".join(PRECISIONS)
    yield "datascale", 1e-6 <= c.datascale <= 1e6, "a density from 1e-6 to 1e6"
    yield "learn_rate", min(c.learn_rate) > 0, "two positive numbers, [generator, discriminator]"
    yield (
        "DG_update_ratio",
        c.DG_update_ratio >= 2 and c.DG_update_ratio % 2 == 0,
        "an even number, at least 2: half of the updates are on real batches, half on fake ones",
    )
    yield "seed", 0 <= c.seed < 2**31, "a whole number from 0 to 2147483647"
    yield "count_noise", not (c.count_noise and c.dequantise), "false with dequantise: both answer the same question"
    yield "adam_betas", all(0 <= beta < 1 for beta in c.adam_betas), "two numbers, each at least 0 and below 1"
    yield "best_metric", c.best_metric in ("chisq", "figure_of_merit"), "chisq or figure_of_merit"
    yield "lr_schedule", c.lr_schedule in ("constant", "cosine"), "constant or cosine"
    yield "lr_floor", 0 <= c.lr_floor <= 1, "from 0 (the rates fall to zero) to 1 (they stay)"
    yield "generator_norm", c.generator_norm in ("batch", "layer"), "batch or layer"
    yield "full_size_filters", c.full_size_filters >= 0, "0 (no such layer) or more, such as 8"
    yield "discriminator_norm", c.discriminator_norm in ("batch", "none"), "batch or none"
    yield "r1_weight", c.r1_weight >= 0, "0 (off) or more"
    yield "r1_growth", c.r1_growth > 0, "a positive number (1: r1_weight stays as it is)"
    yield "r1_coordinate", c.r1_coordinate in ("images", "log_density"), "images or log_density"
    yield "spectral_weight", c.spectral_weight >= 0, "0 (off) or more"
    yield "critic_weight", c.critic_weight >= 0, "0 (no critic) or more"
    yield "ema_decay", 0 <= c.ema_decay < 1, "at least 0 (off) and below 1, such as 0.999"


# ------------------------------------------------------------------------------------------ YAML reading, writing


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the numbers of YAML 1.2, and with keys given twice refused."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag != "tag:yaml.org,2002:merge" and isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key '{key_node.value}' is given twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _construct_number(convert, loader, node):
    return convert(loader.construct_scalar(node))


_NUMBERS = {
    "tag:yaml.org,2002:int": (
        r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
        lambda text: int(text, 0) if text[:2] in ("0o", "0x") else int(text),
    ),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        lambda text: float(re.sub(r"\.(?=[inIN])", "", text)),
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, (_pattern, _convert) in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), list("-+.0123456789"))
    _Loader.add_constructor(_tag, functools.partial(_construct_number, _convert))


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would take for something else than text."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _parse(text: str, where: str):
    """Parse YAML; `where` names the text in error messages."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{where}{line}: not valid configuration YAML: {error.problem}") from None
    # The last four: what PyYAML lets through of deep nesting, and of tags that do not fit their value.
    except (yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"{where}: not valid configuration YAML: {error}") from None
