"""Are copies of training images seen, wherever they begin? And how long does the search take?

python -m benchmarks.bench_memorisation demo [--img-dim 64] [--num-samples 2048]

Four sets stand for generated ones: real slices that training does not see, and training images that begin anywhere and
are turned; as they are, with the noise of as many particles, and in one slice of eight only. Each is scored against the
test set as `analyze_output.py` does it, with the search at all shifts, and with one of the slices as they are.
"""

import time

import numpy as np

from utils.cli import ArgumentParser, run
from utils.comparison import Generated, Real, compare, read_real, take_generated
from utils.crops import PeriodicCrops
from utils.likeness import alarms, likeness_scores
from utils.noise import noise_floor
from utils.similarity import ORIENTATIONS, oriented
from utils.slices import SliceSet, open_slices
from utils.training_search import MOST, PlaneSearch, SliceSearch

A = 4.0


def training_images(training: SliceSet, number: int, rng) -> np.ndarray:
    """Images at random places of the planes, in random orientations."""
    rows, shifts = rng.integers(len(training), size=number), rng.integers(0, training.dim, (number, 2))
    images = PeriodicCrops(training).read(rows, shifts)
    turns = rng.integers(ORIENTATIONS, size=number)
    return np.concatenate([oriented(images[[row]], turn) for row, turn in enumerate(turns)])


def report(name: str, generated: Generated, real: Real) -> None:
    likeness = compare(generated, real)
    value = likeness_scores(likeness, likeness.generated, ~likeness.generated)["memorisation"]
    floor, copied = noise_floor(real.summary, likeness).mean["memorisation"], alarms(likeness)["copied_fraction"]
    print(f"  {name:36}{value:8.3f}{floor:8.3f}{value / floor:8.1f}{copied:9.1%}", flush=True)


def main():
    """Score the four sets with both searches."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataname", help="slice files data/<dataname>_train.h5, _val.h5 and _test.h5")
    parser.add_argument("--img-dim", type=int, default=64, help="their pixels per side")
    parser.add_argument("--num-samples", type=int, default=2048, help="slices in each set")
    arguments = parser.parse_args()
    number, rng = arguments.num_samples, np.random.default_rng(0)
    files = [open_slices(arguments.dataname, split, arguments.img_dim) for split in ("train", "val", "test")]
    training, validation, test = files
    copies, unseen = training_images(training, number, rng), validation.read(validation.rows_spread(number))
    mixed = np.concatenate([unseen[: len(unseen) - len(unseen) // 8], copies[: len(unseen) // 8]])
    sets = {
        "real slices, not seen": unseen,
        "training images, anywhere": copies,
        "the same with particle noise": rng.poisson(copies),
        "an eighth of the slices, anywhere": mixed[rng.permutation(len(mixed))],
    }
    for name, kind in (("slices as they are", SliceSearch), ("at all shifts", PlaneSearch)):
        start = time.perf_counter()
        search = kind(training, A)
        print(f"{name}: prepared in {time.perf_counter() - start:.1f} s, {min(MOST, len(training))} training slices")
        real = read_real(test, training.mean, A, number, search)
        start, looked_for = time.perf_counter(), search.number(number)
        search.nearest(unseen[:looked_for])
        print(f"  {min(looked_for, len(unseen))} slices looked for in {time.perf_counter() - start:.1f} s")
        print(f"  {'':36}{'score':>8}{'floor':>8}{'ratio':>8}{'copied':>9}")
        for title, images in sets.items():
            images = images.astype(np.float32)
            report(title, take_generated(iter([images]), len(images), real), real)


if __name__ == "__main__":
    run(main)
