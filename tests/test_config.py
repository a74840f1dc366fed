"""The configuration: what is read, what is refused, and in which words."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import OLD_KEYS
from utils.cli import UserError
from utils.config import DEFAULTS, KEYS, REQUIRED_KEYS, Config, load_config, read_tags


def write(path, tags):
    file = path / "config.yaml"
    file.write_text(tags if isinstance(tags, str) else yaml.safe_dump(tags))
    return file


def test_the_nineteen_old_keys_are_enough_and_mean_the_old_recipe(tmp_path):
    config = load_config(write(tmp_path, {"base": OLD_KEYS}), "base")
    assert set(REQUIRED_KEYS) == set(OLD_KEYS)
    assert len(REQUIRED_KEYS) == 19
    assert (config.r1_weight, config.spectral_weight, config.ema_decay) == (0, 0, 0)
    assert (config.adam_betas[0], config.discriminator_norm, config.lr_schedule) == (0.5, "batch", "constant")
    assert config.precision == "float32"
    assert (config.r1_growth, config.lr_floor, config.critic_weight, config.best_metric) == (1, 0, 0, "chisq")
    assert not any((config.augment, config.dequantise, config.random_crops, config.count_noise))
    assert not any((config.match_histogram, config.sync_batchnorm))


def test_the_shipped_file_has_the_base_of_the_old_suite():
    config = load_config("config.yaml", "base")
    assert config.as_dict() | {"img_dim": 128, "batchsize": 64} == config.as_dict()
    assert config.nconvfilters == (64, 128, 256, 512)
    assert config.ndeconvfilters == (256, 128, 64, 1)
    assert (config.nlayers, config.convkern, config.convstride, config.noise_vect_len) == (4, 5, 2, 64)
    assert (config.label_flip, config.datascale, config.learn_rate) == (0.01, 4.0, (0.0002, 0.0002))
    assert (config.print_batch, config.checkpt_batch, config.Nepochs) == (20, 150, 200)
    assert (config.dataname, config.cscale, config.datafmt, config.multichannel) == (
        "raw",
        "lin",
        "channels_first",
        True,
    )


def test_the_shipped_recipes_are_two_in_two_sizes_each():
    """The recipe of 2019 with nothing but a precision, and the recommended one; what a size changes is no option."""
    base, base256, modern, demo = (load_config("config.yaml", tag) for tag in ("base", "base256", "modern", "demo"))
    assert {key for key, value in DEFAULTS.items() if getattr(base, key) != value} == {"precision"}
    assert differing_keys(base, base256) == {"img_dim", "nlayers", "nconvfilters", "ndeconvfilters"}
    assert (base256.img_dim, base256.nlayers) == (256, 5)
    size = {"dataname", "img_dim", "noise_vect_len", "nconvfilters", "ndeconvfilters", "batchsize", "learn_rate"}
    course = {"lr_floor", "Nepochs", "checkpt_batch"}
    not_yet_tried_at_128 = {"generator_norm", "full_size_filters"}
    assert differing_keys(modern, demo) == size | course | not_yet_tried_at_128
    assert (modern.img_dim, demo.img_dim) == (128, 64)


def differing_keys(one, other):
    return {key for key in KEYS if getattr(one, key) != getattr(other, key)}


def test_every_shipped_tag_is_valid_and_every_key_documented():
    for tag in read_tags("config.yaml"):
        assert load_config("config.yaml", tag).precision == "auto"
    readme = Path("README.md").read_text()
    assert [key for key in KEYS if f"`{key}`" not in readme] == []
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", readme, re.MULTILINE))
    written = {key: yaml.safe_load(rows[key]) for key in DEFAULTS}
    assert written == {key: list(value) if isinstance(value, tuple) else value for key, value in DEFAULTS.items()}


def test_numbers_are_those_of_yaml_1_2(tmp_path):
    text = yaml.safe_dump({"base": OLD_KEYS}).replace("label_flip: 0.01", "label_flip: 1e-2")
    config = load_config(write(tmp_path, text), "base", ["learn_rate=[2e-4, 1E-3]", "seed=010", "print_batch=0x10"])
    assert (config.label_flip, config.learn_rate, config.seed, config.print_batch) == (0.01, (2e-4, 1e-3), 10, 16)


def test_anchors_and_merge_keys(tmp_path):
    base = "\n".join(f"  {key}: {value}" for key, value in OLD_KEYS.items())
    file = write(tmp_path, f"base: &BASE\n{base}\nchild:\n  <<: *BASE\n  batchsize: 9\n")
    assert load_config(file, "child").batchsize == 9
    assert load_config(file, "child").img_dim == 8


@pytest.mark.parametrize("name", ["raw", "2e5", "1e3", "0o17", "0x1f", "12", "1_000", "yes", "null", "1:30", "a: b"])
def test_resolved_configuration_reads_back_equal(tmp_path, tiny_config, name):
    config = dataclasses.replace(tiny_config, dataname=name)
    file = tmp_path / "resolved.yaml"
    file.write_text(config.to_yaml())
    assert load_config(file, "tiny") == config


def test_a_key_of_before_is_left_out_where_it_was_off(tmp_path, tiny_config):
    """So that runs from before it was removed can be loaded."""
    file = tmp_path / "resolved.yaml"
    off = {"ceiling_weight": "0.0", "joint_updates": "false", "spectral_units": "0", "texture_weight": "0.0"}
    off |= {"channel_weights": "[1.0, 1.0, 0.0]", "density_cap": "0.0"}
    file.write_text(tiny_config.to_yaml() + "".join(f"  {key}: {value}\n" for key, value in off.items()))
    assert load_config(file, "tiny") == tiny_config
    on = {"ceiling_weight": "10.0", "channel_weights": "[1.0, 10.0, 2.0]", "density_cap": "2.0"}
    for key, value in on.items():
        file.write_text(tiny_config.to_yaml() + f"  {key}: {value}\n")
        with pytest.raises(UserError, match=f"'{key}' is no longer there.*commit that its run.json names"):
            load_config(file, "tiny")


def test_a_configuration_is_frozen(tiny_config):
    with pytest.raises(AttributeError):
        tiny_config.batchsize = 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("batchsze=64", "unknown key 'batchsze'.*did you mean 'batchsize'"),
        ("batchsize=64.5", "batchsize = 64.5 .*int"),
        ("batchsize=true", "batchsize = True .*int"),
        ("batchsize=0", "batchsize = 0 .*at least 1"),
        ("batchsize=many", "batchsize = 'many'"),
        ("batchsize=", "batchsize = None"),
        ("multichannel=1", "multichannel = 1 .*true or false"),
        ("nconvfilters=[1, 2, 3]", "nconvfilters = .*one entry per layer: nlayers is 2"),
        ("nconvfilters=[1, 2.5]", "nconvfilters = "),
        ("ndeconvfilters=[3, 2]", "ndeconvfilters = .*the last entry is 1"),
        ("learn_rate=0.1", "learn_rate = 0.1 .*list of 2"),
        ("learn_rate=[0.1, -1]", "learn_rate = .*positive"),
        ("learn_rate=[0.1, .inf]", "learn_rate = inf.*finite"),
        ("img_dim=10", "img_dim = 10 .*multiples of 4"),
        ("img_dim=9", "img_dim = 9 .*even"),
        ("convstride=6", "convkern = 5 .*at least convstride"),
        ("DG_update_ratio=3", "DG_update_ratio = 3 .*even number"),
        ("DG_update_ratio=0", "DG_update_ratio = 0 .*even number"),
        ("label_flip=1.5", "label_flip = 1.5 .*between 0 and 1"),
        ("datascale=0", "datascale = 0.0 .*from 1e-6 to 1e6"),
        ("datascale=1e300", "datascale = 1e.300 .*from 1e-6 to 1e6"),
        ("Nepochs=0", "Nepochs = 0 .*from 1"),
        ("Nepochs=10000000000000", "Nepochs = 10000000000000 .*to 10000000"),
        ("datafmt=NCHW", "datafmt = 'NCHW' .*channels_first or channels_last"),
        ("cscale=log", "cscale = 'log' .*lin or pwr"),
        ("ema_decay=1", "ema_decay = 1.0 .*below 1"),
        ("dataname=' '", "dataname = ' ' .*base name"),
        ("precision=float64", "precision = 'float64' .*mixed_bfloat16"),
        ("seed=-1", "seed = -1 .*from 0"),
        ("adam_betas=[0.5, 1]", "adam_betas = .*below 1"),
        ("best_metric=fid", "best_metric = 'fid' .*figure_of_merit"),
        ("lr_floor=1.5", "lr_floor = 1.5 .*from 0 .*to 1"),
        ("lr_schedule=linear", "lr_schedule = 'linear' .*cosine"),
        ("full_size_filters=-1", "full_size_filters = -1 .*0 .no such layer. or more"),
        ("generator_norm=renorm", "generator_norm = 'renorm' .*batch or layer"),
        ("discriminator_norm=layer", "discriminator_norm = 'layer' .*batch or none"),
        ("r1_weight=-1", "r1_weight = -1.0 .*0 .off. or more"),
        ("r1_growth=0", "r1_growth = 0.0 .*positive"),
        ("r1_coordinate=s", "r1_coordinate = 's' .*log_density"),
        ("spectral_weight=-1", "spectral_weight = -1.0 .*or more"),
        ("critic_weight=-1", "critic_weight = -1.0 .*or more"),
        ("batchsize", "expected KEY=VALUE"),
        ("batchsize=[1", "not valid configuration YAML"),
        ("batchsize=!!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_a_bad_value_names_tag_key_value_and_what_is_allowed(tmp_path, override, words):
    file = write(tmp_path, {"base": OLD_KEYS})
    with pytest.raises(UserError, match=words) as caught:
        load_config(file, "base", [override])
    assert "base" in str(caught.value) or "--set" in str(caught.value)


def test_one_way_to_tell_particles_from_densities(tmp_path):
    file = write(tmp_path, {"base": OLD_KEYS})
    with pytest.raises(UserError, match=r"count_noise = True .*dequantise"):
        load_config(file, "base", ["count_noise=true", "dequantise=true"])


def test_a_tag_is_the_name_of_a_folder(tmp_path):
    file = write(tmp_path, {2019: OLD_KEYS, "..": OLD_KEYS})
    assert load_config(file, "2019").tag == "2019"
    with pytest.raises(UserError, match=r"tag = .* is not allowed.*names a folder"):
        load_config(file, "..")


def test_missing_keys_are_all_named(tmp_path):
    kept = {key: value for key, value in OLD_KEYS.items() if key not in ("seed", "batchsize", "Nepochs")}
    with pytest.raises(UserError, match="missing keys batchsize, Nepochs"):
        load_config(write(tmp_path, {"base": kept}), "base")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: [1, 2", "line 1.*not valid configuration YAML"),
        ("base:\n  a: 1\n a: 2", "line 3"),
        ("base: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("base: {batchsize: 1, batchsize: 2}", "'batchsize' is given twice"),
        ("", "expected one mapping per tag.*nothing"),
        ("- base", "expected one mapping per tag.*a list"),
        ("base: 3", "tag 'base': expected a mapping"),
        ("bas: {}", "no tag 'base'; did you mean 'bas'"),
        ("other: {}", "no tag 'base'; tags there: other"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path, text, words):
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, text), "base")
    assert re.search(words, " ".join(str(caught.value).split()))


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        load_config(tmp_path / "nowhere.yaml", "base")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.yaml cannot be read"):
        load_config(tmp_path / "binary.yaml", "base")


def test_reading_a_configuration_does_not_import_tensorflow():
    code = "import utils.config, sys; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_derived_values(tiny_config):
    assert (tiny_config.base_dim, tiny_config.channels) == (2, 2)
    with pytest.raises(UserError, match="letters, digits"):
        Config(tag="a/b", **OLD_KEYS)
