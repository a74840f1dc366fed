"""Draw how fast two recipes learn: scores at their TensorBoard checkpoints against the time that training took.

python -m benchmarks.plot_recipes --old expts/demo/run20 --new expts/demo/run21 expts/demo/run22 --out recipes.png

Runs of one recipe are drawn alike. For every score, each old run's best and the time that it took stand beside the time
after which the new recipe was as good for the first time (median of its runs), and how many times sooner that is: the
medians over the old runs are printed, and the least and the most. Beside them, the median score of the new runs at
their end.
"""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from utils.cli import ArgumentParser, UserError, run
from utils.plots import GENERATED, REAL, save

SCORES = {
    "figure_of_merit": "figure of merit",
    "pspect_rms_s": "power spectrum of s",
    "pspect_rms": "power spectrum of the density",
    "peaks": "peaks",
    "filaments": "filaments",
    "minkowski_boundary": "Minkowski: boundary",
    "minkowski_euler": "Minkowski: Euler characteristic",
    "minkowski_area": "Minkowski: area",
    "bright_fraction": "fraction of pixels above 100",
    "mean_density": "mean density",
    "ks": "histogram: Kolmogorov-Smirnov",
    "wasserstein": "histogram: Wasserstein",
}
# What is on the vertical axis, where it is not the relative deviation from validation universes.
UNITS = {
    "figure_of_merit": "1: as good as other real universes",
    "ks": "largest difference of the fractions",
    "wasserstein": "particles per voxel",
}


def read_curve(folder: Path) -> dict[str, np.ndarray]:
    """Minutes and scores of one run, checkpoint by checkpoint, the first (an untrained generator) left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the folders of runs, such as expts/demo/run0")
    if len(list((folder / "logs").glob("*"))) > 1:
        raise UserError(f"{folder}: the run was interrupted, and its time is not known; give one that was not")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][1:]
    seconds = np.array([line["timing"]["seconds"] for line in lines])
    if not lines:
        raise UserError(f"{path}: no TensorBoard checkpoint but the first; train for longer")
    missing = sorted({name for name in SCORES for line in lines if name not in line})
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}: it is of another version of this program")
    curve = {name: np.array([line[name] for line in lines], float) for name in SCORES}
    return curve | {"minutes": seconds / 60.0}


def minutes_to(score: float, name: str, curve: dict[str, np.ndarray]) -> float:
    """Minutes until a run was as good as that for the first time; infinite if it never was."""
    good = curve[name] <= score
    return float(curve["minutes"][np.argmax(good)]) if good.any() else np.inf


def best_of(name: str, old: dict[str, np.ndarray], new: list[dict[str, np.ndarray]]) -> tuple[float, float, float]:
    """Best score of an old run, minutes till then, and minutes until the new runs were as good (median)."""
    best = np.nanargmin(old[name])
    reached = [minutes_to(old[name][best], name, curve) for curve in new]
    return float(old[name][best]), float(old["minutes"][best]), float(np.median(reached))


def draw(old: list[dict], new: list[dict], labels: list[str]) -> Figure:
    """One panel per score, both axes logarithmic."""
    figure = Figure(figsize=(14, 9), layout="constrained")
    panels = figure.subplots(3, 4, sharex=True)
    for axes, (name, title) in zip(panels.flat, SCORES.items(), strict=True):
        for curves, colour, label in zip((old, new), (REAL, GENERATED), labels, strict=True):
            for number, curve in enumerate(curves):
                label_once = label if number == 0 else None
                axes.plot(curve["minutes"], curve[name], color=colour, lw=1.5, marker=".", ms=4, label=label_once)
        axes.set(xscale="log", yscale="log", title=title, ylabel=UNITS.get(name, "relative deviation"))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter=NullFormatter())
        axes.grid(alpha=0.3, which="both")
    for axes in panels[-1]:
        axes.set_xlabel("minutes of training")
    panels[0, 0].legend()
    return figure


def main():
    """Print the table and draw."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", nargs="+", type=Path, required=True, metavar="FOLDER", help="runs of the old recipe")
    parser.add_argument("--new", nargs="+", type=Path, required=True, metavar="FOLDER", help="runs of the new one")
    names = {"nargs": 2, "default": ["2019", "now"], "metavar": ("OLD", "NEW")}
    parser.add_argument("--labels", help="what to call them in the figure", **names)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    arguments = parser.parse_args()
    old, new = ([read_curve(folder) for folder in folders] for folders in (arguments.old, arguments.new))
    print(f"{'':20}{'old: best':>11}{'after':>10}{'new: end':>10}{'as good after':>15}{'times sooner':>14}")
    for name in SCORES:
        best, after, reached = np.transpose([best_of(name, curve, new) for curve in old])
        sooner = after / reached
        end = np.median([curve[name][-1] for curve in new])
        print(
            f"{name:20}{np.median(best):11.3f}{np.median(after):6.1f} min{end:10.3f}{np.median(reached):11.1f} min"
            f"{np.median(sooner):14.1f} ({sooner.min():.1f} to {sooner.max():.1f})"
        )
    save(draw(old, new, arguments.labels), arguments.out)


if __name__ == "__main__":
    run(main)
