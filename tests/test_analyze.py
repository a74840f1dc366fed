"""analyze_output.py as a user runs it."""

import argparse
import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

import analyze_output
from networks.dcgan import load_generator
from tests.conftest import OLD_KEYS, ROOT, assert_refused, run_script, write_config

FIGURES = (
    "summary.png",
    "scores.png",
    "generated_images.png",
    "pixel_intensity.png",
    "power_spectrum.png",
    "bispectrum.png",
    "peaks.png",
    "minkowski.png",
    "likeness.png",
    "pairs.png",
    "interpolation.png",
)


@pytest.fixture(scope="module")
def trained(sliced):
    """A folder with a run of the tag `tiny`, number 7."""
    write_config(sliced)
    process = run_script("train.py", "tiny", 7, cwd=sliced)
    assert process.returncode == 0, process.stderr
    return sliced


@pytest.fixture(scope="module")
def analysed(trained):
    arguments = ("--num-samples", 40, "--save-samples", "samples.h5")
    process = run_script("analyze_output.py", "tiny", 7, *arguments, cwd=trained)
    assert process.returncode == 0, process.stderr
    return trained, process


def test_it_writes_figures_scores_and_samples(analysed):
    folder, process = analysed
    analysis = folder / "expts" / "tiny" / "run7" / "analysis"
    for name in FIGURES:
        assert (analysis / name).read_bytes().startswith(b"\x89PNG")
        assert (analysis / name).with_suffix(".pdf").read_bytes().startswith(b"%PDF")
        assert name in process.stdout
    card = json.loads((analysis / "scorecard.json").read_text())
    assert {"chisq", "chisq_pspect", "pspect_rms", "pspect_rms_s", "ks", "wasserstein"} <= card["scores"].keys()
    for score in card["scores"].values():
        assert {"value", "noise_floor", "ratio", "definition"} <= score.keys()
    assert card["provenance"]["split"] == "test"
    assert card["provenance"]["weights"].endswith("g_cosmo_best.weights.h5")
    assert re.search(r"score +value +noise floor +ratio", process.stdout)
    assert "figure of merit" in process.stdout
    assert (
        (analysis / "scorecard.md")
        .read_text()
        .startswith(f"# tiny run 7, g_cosmo_best of step {card['provenance']['step']}\n")
    )
    assert {"bispectrum", "repetition", "memorisation"} <= card["scores"].keys()
    assert set(card["alarms"]) >= {"copied_fraction", "repeated_fraction", "mode_collapse"}
    assert process.stderr == ""
    assert card["provenance"]["same_training_set"] is True


def test_another_training_set_is_noticed(trained, tmp_path, monkeypatch):
    """Sliced again with another seed, say, so that the run was trained on what now is the test set."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "data", "data")
    shutil.copytree(trained / "expts", "expts")
    arguments = argparse.Namespace(tag="tiny", weights="last", split=None)
    assert analyze_output.Job(arguments, "7").same_training_set is True
    with h5py.File("data/raw_train.h5", "r+") as file:
        file.attrs["seed"] += 1
    assert analyze_output.Job(arguments, "7").same_training_set is False
    Path("expts/tiny/run7/run.json").unlink()
    assert analyze_output.Job(arguments, "7").same_training_set is None


def test_saved_samples_are_the_generators_with_provenance(analysed):
    folder, _ = analysed
    with h5py.File(folder / "samples.h5") as file:
        slices = file["slices"][...]
        attributes = dict(file.attrs)
    assert slices.shape == (40, 8, 8)
    assert slices.dtype == np.float32
    assert (attributes["tag"], attributes["run"], attributes["seed"]) == ("tiny", "7", 0)
    assert attributes["pixel_size"] == 2.0
    assert yaml.safe_load(attributes["config"])["tiny"]["img_dim"] == 8
    expected = load_generator(folder / "expts" / "tiny" / "run7").sample(40)
    np.testing.assert_allclose(slices, expected, rtol=1e-5)


def test_the_same_seed_gives_the_same_slices_whatever_their_number(trained):
    generator = load_generator(trained / "expts" / "tiny" / "run7", "last")
    many = generator.sample(300, seed=4)
    np.testing.assert_array_equal(generator.sample(5, seed=4), many[:5])
    assert not np.array_equal(generator.sample(5, seed=5), many[:5])
    assert len(np.unique(many.reshape(300, -1), axis=0)) == 300


def test_several_runs_with_other_weights_and_split_are_ranked(trained):
    expts = trained / "expts" / "tiny"
    for number in (8, 9):
        models = expts / f"run{number}" / "models"
        models.mkdir(parents=True)
        (models.parent / "config.yaml").write_bytes((expts / "run7" / "config.yaml").read_bytes())
        (models / "g_cosmo_last.weights.h5").write_bytes((expts / "run7/models/g_cosmo_last.weights.h5").read_bytes())
    arguments = ("tiny", 8, 9, "--weights", "last", "--split", "val", "--num-samples", 8)
    process = run_script("analyze_output.py", *arguments, cwd=trained)
    for number in (8, 9):
        card = json.loads((expts / f"run{number}" / "analysis" / "scorecard.json").read_text())
        assert card["provenance"]["split"] == "val"
        assert card["sets"]["generated"]["slices"] == 8
        shutil.rmtree(expts / f"run{number}")
    assert process.returncode == 0, process.stderr
    page = (expts / "ranking.md").read_text()
    assert re.search(r"\| +\| tiny run8 +\| tiny run9 +\|", page)
    assert "figure of merit" in page
    assert page.splitlines()[3] in process.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny", "7", "7"], ["RUN 7", "twice"]),
        (["tiny", "7", "8"], ["run8", "run7"]),
        ([], ["base", "config.yaml is missing", "run7"]),
        (["tiny", "8"], ["run8", "run7"]),
        (["tiny", "7", "--weights", "bset"], ["g_cosmo_bset.weights.h5", "g_cosmo_best.weights.h5"]),
        (["tiny", "7", "--weights", "9"], ["g_cosmo0009.weights.h5", "g_cosmo_last.weights.h5"]),
        (["tiny", "7", "--split", "train"], ["--split"]),
        (["tiny", "7", "--num-samples", "0"], ["--num-samples 0"]),
        (["tiny", "7", "--show"], ["no display"]),
        (["tiny", "7", "--num-samples", "2000000000000", "--save-samples", "x.h5"], ["GB free", "--num-samples"]),
        (["tiny", "7", "--save-samples", "nowhere/x.h5"], ["nowhere", "does not exist"]),
        (["tiny", "7", "--save-samples", "x.txt"], ["x.txt", ".h5"]),
        (["tiny", "7", "--save-samples", "folder.h5"], ["folder.h5", "is a folder"]),
    ],
)
def test_refused(trained, arguments, words):
    (trained / "folder.h5").mkdir(exist_ok=True)
    assert_refused(run_script("analyze_output.py", *arguments, cwd=trained), *words)


@pytest.mark.parametrize("damage", ["truncated", "other architecture"])
def test_weights_that_do_not_fit(trained, tmp_path, damage):
    run = trained / "expts" / "tiny" / "run7"
    copy = tmp_path / "expts" / "tiny" / "run0"
    (copy / "models").mkdir(parents=True)
    (tmp_path / "data").symlink_to(trained / "data")
    weights = (run / "models" / "g_cosmo_last.weights.h5").read_bytes()
    changes = {"ndeconvfilters": [5, 1]} if damage == "other architecture" else {}
    (copy / "config.yaml").write_text(yaml.safe_dump({"tiny": OLD_KEYS | changes}))
    (copy / "models" / "g_cosmo_last.weights.h5").write_bytes(weights if changes else weights[: len(weights) // 2])
    process = run_script("analyze_output.py", "tiny", 0, "--weights", "last", cwd=tmp_path)
    words = ["do not fit", "ndeconvfilters is [5, 1], was [3, 1]"] if changes else ["damaged"]
    assert_refused(process, "g_cosmo_last.weights.h5", *words)
    assert not (copy / "analysis").exists()


def test_samples_that_do_not_fit_on_the_disk(trained):
    """No file may grow beyond a limit: one line, and no half-written file."""
    command = [sys.executable, ROOT / "analyze_output.py", "tiny", "7", "--num-samples", "3000"]
    process = subprocess.run(
        [*command, "--save-samples", "many.h5"],
        cwd=trained,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)),
    )
    assert_refused(process, "many.h5", "File too large")
    assert not list(trained.glob("*many.h5"))


@pytest.mark.parametrize("length", [1, 2, 64])
def test_latent_paths_keep_to_their_ends_and_to_the_sphere(length):
    paths = analyze_output.latent_paths(length, 3)
    ends = np.random.default_rng(3).normal(size=(2, len(paths), length))
    np.testing.assert_allclose(paths[:, 0], ends[0], atol=1e-12)
    np.testing.assert_allclose(paths[:, -1], ends[1], atol=1e-12)
    assert np.isfinite(paths).all()
    if length == 64:
        norms = np.linalg.norm(paths, axis=-1)
        assert norms.min() > 0.9 * norms[:, [0, -1]].min()  # a straight way would lose three tenths


def test_help_explains():
    process = run_script("analyze_output.py", "--help", cwd=ROOT)
    assert process.returncode == 0
    assert "--save-samples" in process.stdout
