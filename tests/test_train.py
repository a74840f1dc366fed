"""train.py as a user runs it: what it leaves behind, resuming, and what it refuses."""

import dataclasses
import os
import re
import shutil

import numpy as np
import pytest

from networks.dcgan import load_generator
from tests.conftest import OLD_KEYS, ROOT, assert_refused, run_script, write_config
from tests.run_files import events, metrics
from train import check_batch
from utils.checkpoints import saved_steps
from utils.cli import UserError
from utils.config import Config
from utils.runs import RunFolder, load_run_config

SCALARS = {"d_loss", "d_real_loss", "d_fake_loss", "g_loss", "chisq", "chisq_pspect"}
IMAGES = {"genimg", "pixhist", "pspect"}
# Training slices of the fixture: 2 universes of 4 planes and 2 x 2 corners; at 6 a batch, 5 steps an epoch.
EPOCH = 5


def train(folder, run, *arguments):
    return run_script("train.py", "tiny", run, *arguments, cwd=folder)


@pytest.fixture(scope="module")
def finished(sliced):
    """A run of the nineteen old keys and nothing else, over ten epochs, uninterrupted."""
    write_config(sliced, Nepochs=10, checkpt_batch=20)
    process = train(sliced, 0)
    assert process.returncode == 0, process.stderr
    return sliced / "expts" / "tiny" / "run0", process


def test_a_run_leaves_what_the_design_says(finished):
    run, process = finished
    steps = 10 * EPOCH
    assert [line["step"] for line in metrics(run)] == [1, *range(20, steps, 20), steps]
    assert metrics(run)[0].keys() >= SCALARS
    for name in ("best", "best_pspect", "last"):
        assert (run / "models" / f"g_cosmo_{name}.weights.h5").is_file()
        assert (run / "models" / f"d_cosmo_{name}.weights.h5").is_file()
    assert (run / "models" / "g_cosmo0009.weights.h5").is_file()
    assert not list(run.rglob("*.partial*"))
    log = (run / "train.log").read_text()
    assert "conv2d_transpose_same" in log  # the network summaries
    lines = re.findall(r"real pred \d\.\d+ fake pred \d\.\d+ \| [\d.]+ images/s(.*)", log)
    assert len(lines) > 1
    assert lines[0] == ""  # of a step that was compiled
    assert all(re.fullmatch(r", [\d:]+ left", line) for line in lines[1:])
    assert "waiting for data" in log
    assert process.stderr == ""


def test_tensorboard_reads_the_events(finished):
    run, _ = finished
    found = events(run)
    steps = [line["step"] for line in metrics(run)]
    for tag in SCALARS | IMAGES:
        assert [step for name, step, _ in found if name == tag] == steps, tag


def test_losses_are_averages_since_the_previous_checkpoint(finished):
    first = metrics(finished[0])[0]
    log = (finished[0] / "train.log").read_text()
    printed = re.search(r"step 1/50 .* d_loss ([\d.]+) g_loss ([\d.]+)", log)
    assert float(printed[1]) == pytest.approx(first["d_loss"], abs=1e-4)
    assert float(printed[2]) == pytest.approx(first["g_loss"], abs=1e-4)


def contents(run):
    """All files of a run that training makes and a later start does not add to."""
    kept = (path for path in run.rglob("*") if path.is_file() and path.name not in ("train.log", "run.json"))
    return {path.name: path.read_bytes() for path in kept if "tfevents" not in path.name}


def test_a_finished_run_is_left_alone(finished):
    run, _ = finished
    before, seen = contents(run), events(run)
    assert_refused(train(run.parents[2], 0), "run0 already exists", "--resume")
    process = train(run.parents[2], 0, "--resume")
    assert process.returncode == 0, process.stderr
    assert contents(run) == before
    assert events(run) == seen


def test_resume_starts_a_run_that_is_not_there(workplace):
    process = train(workplace, 3, "--resume", "--set", "checkpt_batch=100")
    assert process.returncode == 0, process.stderr
    assert [line["step"] for line in metrics(workplace / "expts" / "tiny" / "run3")] == [1, EPOCH]


def test_automatic_precision_is_told_and_kept(finished, workplace):
    process = train(workplace, 0, "--set", "precision=auto")
    assert process.returncode == 0, process.stderr
    chosen = re.search(r"precision: (\w+)", process.stdout)[1]
    assert chosen in ("float32", "mixed_bfloat16", "mixed_float16")
    assert load_run_config(workplace / "expts" / "tiny" / "run0").precision == chosen
    old_keys_alone, process = finished
    assert "precision: float32" in process.stdout
    assert load_run_config(old_keys_alone).precision == "float32"


def test_changed_keys(finished, workplace):
    """Another length takes effect, another batch size is refused; so is an end before the run's own, which would be
    without all that is done at an end."""
    run = workplace / "expts" / "tiny" / "run0"
    shutil.copytree(finished[0], run)
    write_config(workplace, Nepochs=10, checkpt_batch=20)
    assert_refused(
        train(workplace, 0, "--resume", "--set", "batchsize=5"), "batchsize was 6, is now 5", "may change", "learn_rate"
    )
    process = train(workplace, 0, "--resume", "--set", "Nepochs=11")
    assert process.returncode == 0, process.stderr
    assert "Nepochs was 10, is 11 from here on" in process.stdout
    assert metrics(run)[-1]["step"] == 11 * EPOCH
    (run / "checkpoints" / f"state_{11 * EPOCH:09d}.npz").unlink()
    refused = train(workplace, 0, "--resume", "--set", "Nepochs=10")
    assert_refused(refused, f"is at step {10 * EPOCH} already", "more Nepochs")


def test_last_weights_of_a_run_that_goes_on_are_those_of_their_epoch(finished, workplace):
    run = workplace / "expts" / "tiny" / "run0"
    shutil.copytree(finished[0], run)
    before = {name: (run / "models" / f"{name}_cosmo_last.weights.h5").read_bytes() for name in "gd"}
    for network in "gd":
        (run / "models" / f"{network}_cosmo0009.weights.h5").unlink()
    write_config(workplace, checkpt_batch=20)
    process = train(workplace, 0, "--resume", "--set", "Nepochs=11")
    assert process.returncode == 0, process.stderr
    for network, weights in before.items():
        assert (run / "models" / f"{network}_cosmo0009.weights.h5").read_bytes() == weights
        assert (run / "models" / f"{network}_cosmo_last.weights.h5").read_bytes() != weights


def test_a_training_set_that_has_grown(workplace):
    """It changes how long a run is: one that has ended stays ended, one that has not says so and goes on."""

    def write(number):
        images = np.random.default_rng(3).poisson(1.0, (number, 8, 8, 1)).astype(np.int16)
        for split in ("train", "val"):
            np.save(workplace / f"old_{split}.npy", images)

    write(13)
    write_config(workplace, dataname=str(workplace / "old"), lr_schedule="cosine")
    assert train(workplace, 0).returncode == 0
    write(25)
    assert_refused(train(workplace, 0, "--resume"), "has ended, on 13 training slices", "25", "--init-from")
    process = train(workplace, 0, "--resume", "--set", "Nepochs=2")
    assert process.returncode == 0, process.stderr
    assert "there were 13 training slices, now there are 25: an epoch had 2 steps, has 4 from here on" in process.stdout
    assert "go by the part of the run that is done" in process.stdout
    assert metrics(workplace / "expts" / "tiny" / "run0")[-1]["step"] == 8


def test_old_npy_files_are_trained_on_as_they_are(workplace):
    rng = np.random.default_rng(3)
    for split, number in (("train", 13), ("val", 7)):
        np.save(workplace / f"old_{split}.npy", rng.poisson(1.0, (number, 8, 8, 1)).astype(np.int16))
    write_config(workplace, dataname=str(workplace / "old"), datafmt="channels_last", multichannel=False)
    process = train(workplace, 0)
    assert process.returncode == 0, process.stderr
    assert metrics(workplace / "expts" / "tiny" / "run0")[-1]["step"] == 2
    generator = load_generator(workplace / "expts" / "tiny" / "run0", "last")
    assert generator.output_shape == (None, 8, 8, 1)
    assert generator.sample(5).shape == (5, 8, 8)


def test_a_refused_run_leaves_nothing_behind(workplace):
    for arguments, words in (
        (("--devices", 4), ("batchsize = 6", "4 replicas")),
        (("--devices", 2, "--xla"), ("XLA", "one device", "there are 2", "--no-xla")),
        (("--devices", 6), ("batchsize = 6", "one image", "sync_batchnorm")),
        (
            ("--set", "ndeconvfilters=[40000000, 1]", "--set", "noise_vect_len=1000000"),
            ("not enough memory", "batches of 6"),
        ),
    ):
        assert_refused(train(workplace, 0, *arguments), *words)
        left = [path.name for path in (workplace / "expts").rglob("*") if path.is_file()]
        assert set(left) <= {"lock"}
    process = train(workplace, 0)
    assert process.returncode == 0, process.stderr


def test_every_option_together(workplace):
    options = {
        "precision": "mixed_bfloat16",
        "random_crops": True,
        "augment": True,
        "dequantise": True,
        "discriminator_norm": "none",
        "lr_schedule": "cosine",
        "lr_floor": 0.1,
        "r1_weight": 1.0,
        "r1_growth": 3.0,
        "r1_coordinate": "log_density",
        "r1_interval": 2,
        "critic_weight": 0.2,
        "spectral_weight": 0.1,
        "match_histogram": True,
        "ema_decay": 0.9,
        "adam_betas": [0.0, 0.99],
        "DG_update_ratio": 4,
        "save_steps": 1,
        "save_keep": 3,
    }
    write_config(workplace, **options)
    process = train(workplace, 0)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    run = workplace / "expts" / "tiny" / "run0"
    assert {"r1_penalty", "spectral_loss"} <= metrics(run)[-1].keys()
    assert saved_steps(run / "checkpoints") == [EPOCH - 2, EPOCH - 1, EPOCH]
    counts = load_generator(run, "last").sample(4)
    np.testing.assert_array_equal(counts, np.floor(counts))


def test_a_run_stays_with_xla(workplace):
    """It draws other random numbers; resumed without being told, the run goes on with its own, but on several devices,
    where there is no XLA."""
    process = train(workplace, 0, "--xla", "--set", "augment=True")
    assert process.returncode == 0, process.stderr
    process = train(workplace, 0, "--resume", "--set", "augment=True", "--set", "Nepochs=2")
    assert process.returncode == 0, process.stderr
    log = (workplace / "expts" / "tiny" / "run0" / "train.log").read_text()
    assert len(re.findall(r"computing on .*, XLA", log)) == 2
    assert "bit for bit" not in log
    assert metrics(workplace / "expts" / "tiny" / "run0")[-1]["step"] == 2 * EPOCH
    process = train(workplace, 0, "--resume", "--set", "augment=True", "--set", "Nepochs=3", "--devices", 2)
    assert process.returncode == 0, process.stderr
    assert "XLA" not in re.search("computing on .*", process.stdout)[0]
    assert "numerics.device.xla was step, is off" in process.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tin", "0"], ["no tag 'tin'", "did you mean 'tiny'"]),
        (["tiny", "a/b"], ["RUN = 'a/b'"]),
        (["tiny"], ["RUN", "--help"]),
        (["tiny", "0", "--resum"], ["--resum"]),
        (["tiny", "0", "--config", "none.yaml"], ["none.yaml does not exist"]),
        (["tiny", "0", "--set", "batchsize=x"], ["batchsize = 'x'"]),
        (["tiny", "0", "--set", "dataname=nothing"], ["nothing_train.h5", "slice_universes.py"]),
        (["tiny", "0", "--set", "img_dim=16"], ["8 × 8", "img_dim"]),
        (["tiny", "0", "--set", "batchsize=1000"], ["fewer than one batch", "batchsize 1000"]),
        (["tiny", "0", "--set", "batchsize=1"], ["batchsize = 1", "batch norm needs two"]),
        (["tiny", "0", "--devices", "2", "--strategy", "single"], ["--devices 2", "single"]),
        (["tiny", "0", "--strategy", "multiworker"], ["TF_CONFIG"]),
    ],
)
def test_refused_before_anything_is_written(workplace, arguments, words):
    assert_refused(run_script("train.py", *arguments, cwd=workplace), *words)
    assert not (workplace / "expts").exists()


def test_damaged_slices_are_refused(workplace, sliced):
    damaged = workplace / "damaged"
    damaged.mkdir()
    for split in ("train", "val"):
        content = (sliced / "data" / f"raw_{split}.h5").read_bytes()
        (damaged / f"raw_{split}.h5").write_bytes(content if split == "val" else content[: len(content) // 2])
    write_config(workplace, dataname=str(damaged / "raw"))
    assert_refused(train(workplace, 0), "raw_train.h5")
    assert not (workplace / "expts").exists()


@pytest.mark.parametrize("key", ["dequantise", "count_noise"])
def test_float_slices_are_no_counts(workplace, key):
    for split in ("train", "val"):
        np.save(workplace / f"old_{split}.npy", np.ones((10, 8, 8, 1), np.float32))
    write_config(workplace, dataname=str(workplace / "old"), **{key: True})
    assert_refused(train(workplace, 0), key, "integer")


def test_expts_that_cannot_be_written(workplace):
    (workplace / "expts").write_text("in the way")
    assert_refused(train(workplace, 0), "expts is no folder")


def test_expts_without_permission(tmp_path, monkeypatch):
    """Tests may run as root, whom no permission stops: the system's answer is replaced, not asked for."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"cannot write into .*permissions"):
        RunFolder("tiny", "0", tmp_path).check(Config(tag="tiny", **OLD_KEYS), resume=False)


def test_help_explains():
    process = run_script("train.py", "--help", cwd=ROOT)
    assert process.returncode == 0
    assert "--resume" in process.stdout
    assert "expts/base/run0" in process.stdout


def test_profile_says_where_a_step_goes(workplace):
    write_config(workplace, Nepochs=7, checkpt_batch=20)
    process = run_script("train.py", "tiny", 0, "--profile", cwd=workplace)
    assert process.returncode == 0, process.stderr
    lines = (workplace / "expts" / "tiny" / "run0" / "train.log").read_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if "where a step goes" in line)
    rows = [line.split("INFO")[1].split() for line in lines[begin + 2 : begin + 15]]
    assert any("Conv2D" in row[0] for row in rows)
    assert not {"Run", "Process"} & {row[0] for row in rows}  # they contain operations
    assert not any(row[0].startswith("__inference") for row in rows)
    assert sum(float(row[-1].rstrip("%")) for row in rows) == pytest.approx(100.0, abs=1.0)
    assert list((workplace / "expts" / "tiny" / "run0" / "profile").rglob("*.xplane.pb"))


def test_profile_of_a_training_too_short_says_so(workplace):
    write_config(workplace, Nepochs=3, checkpt_batch=20)
    process = run_script("train.py", "tiny", 0, "--profile", cwd=workplace)
    assert process.returncode == 0, process.stderr
    assert "--profile needs 30 steps" in process.stderr + process.stdout


def test_a_runs_configuration_has_one_tag(tmp_path):
    write_config(tmp_path)
    with (tmp_path / "config.yaml").open("a") as file:
        file.write("another: {}\n")
    with pytest.raises(UserError, match=r"one tag.*tiny, another"):
        load_run_config(tmp_path)


def test_only_batch_norm_needs_two_images_a_replica(tiny_config):
    alone = dataclasses.replace(tiny_config, batchsize=2, discriminator_norm="none")
    check_batch(dataclasses.replace(alone, generator_norm="layer"), 2)
    with pytest.raises(UserError, match="one image"):
        check_batch(dataclasses.replace(alone, generator_norm="batch"), 2)
    with pytest.raises(UserError, match="one image"):
        check_batch(dataclasses.replace(alone, generator_norm="layer", discriminator_norm="batch"), 2)
