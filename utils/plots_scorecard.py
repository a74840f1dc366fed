"""Figures of the scorecard: one per statistic beyond `utils.plots`, pairs, interpolations, and a one-page summary."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from utils.likeness import Likeness, likeness_curve, likeness_range
from utils.noise import HIGH, LOW
from utils.plots import (
    BAND,
    GENERATED,
    GENERATED_LINE,
    REAL,
    REAL_LINE,
    colour_bar,
    colour_map,
    colour_scale,
    draw_histogram,
    draw_power_spectrum,
    draw_residual,
    mosaic,
    panel_pair,
    stairs_band,
    two_panels,
    wave_number_axis,
)
from utils.scorecard import merit_line
from utils.scores import FAMILIES
from utils.summaries import MINKOWSKI_THRESHOLDS, PEAK_EDGES, Curve, Summary

_FUNCTIONALS = (
    "Area fraction",
    "Boundary length [1/pixel]",
    "Euler characteristic [1/pixel$^2$]",
)
_LIKENESS_LABELS = {
    "diversity": "MS-SSIM of random pairs",
    "repetition": "Nearest slice of the same set: rms difference of $s$",
    "memorisation": "Nearest image of the training set: rms difference of $s$",
}


def bispectrum_figure(generated: Summary, real: Summary, title=None, real_label="validation") -> Figure:
    """Draw the mean equilateral bispectra with bootstrap bands, and the residual in per cent."""
    figure, main, lower = two_panels(title)
    draw_bispectrum(main, lower, generated, real, real_label)
    return figure


def draw_bispectrum(main, lower, generated: Summary, real: Summary, real_label="validation") -> None:
    """Draw what `bispectrum_figure` shows into two axes that share x."""
    curve, other = real.curve("bispectrum"), generated.curve("bispectrum")
    k = real.k[: len(curve.mean)]
    _curve_pair(main, k, other, curve, real_label)
    draw_residual(lower, k, other, curve)
    wave_number_axis(main, k)
    if (curve.mean > 0).all():
        main.set_yscale("log", nonpositive="mask")
        top = max(
            curve.mean.max(), min(other.high.max(initial=0.0, where=np.isfinite(other.high)), 1e3 * curve.mean.max())
        )
        main.set_ylim(curve.mean.min() / 5.0, top * 3.0)
    main.set_ylabel(r"Equilateral bispectrum $B(k)$ [(Mpc/$h$)$^4$]")
    main.legend(frameon=False, loc="lower left")
    lower.set_xlabel(r"Wave number $k$ [$h$/Mpc]")


def peaks_figure(generated: Summary, real: Summary, title=None, real_label="validation") -> Figure:
    """Draw the mean number of peaks per slice in bins of height, and the residual in per cent."""
    figure, main, lower = two_panels(title)
    curve, other = real.curve("peaks"), generated.curve("peaks")
    edges = np.append(PEAK_EDGES[:-1], 2.0 * PEAK_EDGES[-2])  # the last bin is open: drawn as wide as the one before
    edges[0] = 1.0  # and the first begins at zero, which a logarithm cannot show
    for side, label, style in ((curve, real_label.capitalize(), REAL_LINE), (other, "Generated", GENERATED_LINE)):
        stairs_band(main, edges, side.low, side.high, **BAND | {"color": style["color"]})
        main.stairs(side.mean, edges, baseline=None, label=label, **style)
    draw_residual(lower, edges, other, curve)
    main.set_xscale("log", base=2)
    main.xaxis.set_major_formatter("{x:g}")
    if (curve.mean > 0).any():
        main.set_yscale("log")
        lowest = curve.mean[curve.mean > 0].min()
        main.set_ylim(lowest / 3.0, 3.0 * curve.mean.max())
    main.set_ylabel("Peaks per slice")
    main.legend(frameon=False)
    lower.set_xlabel("Height [particles per voxel], the last bin without end")
    return figure


def minkowski_figure(generated: Summary, real: Summary, title=None, real_label="validation") -> Figure:
    """Draw the three Minkowski functionals against threshold with bootstrap bands, and the residuals in per cent."""
    figure = Figure(figsize=(12.0, 5.2), layout="constrained")
    for row, part in enumerate(figure.subfigures(1, 3)):
        main, lower = panel_pair(part)
        draw_minkowski(main, lower, generated, real, row, real_label)
        if row:
            main.get_legend().remove()
            lower.set_ylabel("")
            lower.get_legend().remove()
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def draw_minkowski(main, lower, generated: Summary, real: Summary, row: int, real_label="validation") -> None:
    """Draw one functional (0 area, 1 boundary, 2 Euler characteristic) into two axes that share x."""
    curve, other = (
        Curve(*(part[row] for part in side[:-1]), side.kind)
        for side in (real.curve("minkowski"), generated.curve("minkowski"))
    )
    _curve_pair(main, MINKOWSKI_THRESHOLDS, other, curve, real_label, marker="o", ms=3.5)
    draw_residual(lower, MINKOWSKI_THRESHOLDS, other, curve)
    main.set_xscale("log")
    if (curve.mean > 0).all():
        main.set_yscale("log", nonpositive="mask")
    else:
        main.axhline(0.0, color="0.6", lw=0.8)
    main.set_ylabel(_FUNCTIONALS[row])
    main.legend(frameon=False, loc="best")
    lower.set_xlabel("Threshold [particles per voxel]")
    lower.xaxis.set_minor_formatter(NullFormatter())


def likeness_figure(likeness: Likeness, title=None, real_label="validation", groups="universes") -> Figure:
    """Draw the cumulative distributions behind diversity, repetition and memorisation, with bootstrap bands.

    Generated slices to the right of real ones in the first panel: less diverse. To the left in the others: nearer
    to one another, or to the training set, than real slices are. Neighbouring real slices of one universe resemble
    each other; the dashed curve, of neighbours in other universes only, shows how much that is. `groups` is what the
    real slices were told apart by, "universes" or "blocks".
    """
    figure = Figure(figsize=(12.0, 4.0), layout="constrained")
    for ax, name in zip(figure.subplots(1, 3, sharey=True), _LIKENESS_LABELS, strict=True):
        draw_likeness(ax, likeness, name, real_label, groups)
    figure.axes[0].set_ylabel("Fraction at or below")
    if drawn := [ax for ax in figure.axes if ax.lines]:
        drawn[0].legend(frameon=False, loc="lower right")
    if apart := [line for ax in figure.axes for line in ax.lines if line.get_linestyle() == "--"]:
        apart[0].axes.legend(handles=apart, frameon=False, loc="lower right")
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def draw_likeness(ax, likeness: Likeness, name: str, real_label="validation", groups="universes") -> None:
    """Draw one cumulative distribution; says so where it is unknown."""
    points = likeness_range(likeness, name)
    ax.set_xlabel(_LIKENESS_LABELS[name])
    ax.tick_params(which="both", direction="in", top=True, right=True)
    if len(points) == 0:
        ax.text(0.5, 0.5, "unknown", ha="center", transform=ax.transAxes)
        return
    curve, other = (likeness_curve(likeness, name, side, points) for side in (False, True))
    _curve_pair(ax, points, other, curve, real_label)
    if name == "repetition":
        apart = likeness_curve(likeness, name, False, points, apart=True)
        ax.plot(points, apart.mean, color=REAL, lw=1.2, ls="--", label=f"{real_label.capitalize()}, other {groups}")
    ax.set_ylim(0.0, 1.0)


def scores_figure(card: dict, title=None) -> Figure:
    """Draw the ratio of every score to its noise floor, and the interval that other real universes (or blocks) fill."""
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    ax = figure.subplots()
    draw_scores(ax, card)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def draw_scores(ax, card: dict) -> None:
    """Draw what `scores_figure` shows into one axis, by families of scores."""
    names = [name for members in FAMILIES.values() for name in members if name in card["scores"]]
    shown = [name for name in names if card["scores"][name]["ratio"] is not None]
    others = "universes" if card["noise_floor"]["reliable"] else "blocks of slices"
    for place, name in enumerate(names):
        score = card["scores"][name]
        if name not in shown:
            ax.annotate(
                "unknown", (0.02, place), xycoords=ax.get_yaxis_transform(), va="center", color="0.4", fontsize=8
            )
            continue
        low, high = (bound / score["noise_floor"] for bound in score[f"noise_floor_{LOW}_{HIGH}"])
        label = (f"68 % of other real {others}", "Generated") if name == shown[0] else (None, None)
        ax.plot([low, high], [place, place], color=REAL, alpha=0.35, lw=7, solid_capstyle="butt", label=label[0])
        # Zero, a perfect score, has no place on a logarithmic axis: it is drawn at the lower end.
        ax.plot(max(score["ratio"], 0.1), place, "o", color=GENERATED, ms=6, label=label[1])
    ax.axvline(1.0, color=REAL, lw=1.2)
    ax.set_xscale("log")
    top = max([card["scores"][name]["ratio"] for name in shown], default=1.0)
    ax.set_xlim(0.09, max(10.0, 1.5 * top))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    edge = -0.5
    for members in list(FAMILIES.values())[:-1]:
        edge += sum(name in names for name in members)
        ax.axhline(edge, color="0.8", lw=0.8)
    ax.tick_params(which="both", direction="in", top=True)
    ax.set_xlabel("Score / noise floor")
    if shown:
        ax.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2)


def pairs_figure(pairs: list[tuple], cscale, datascale, title=None) -> Figure:
    """Draw pairs of slices side by side under one colour scale, and their difference in s.

    Parameters
    ----------
    pairs : list of (image, image, label, label, label)
        Two densities (N, N), what each is, and what stands above their difference.
    cscale, datascale, title
        As for `utils.plots.sample_grid`.
    """
    norm, colours = colour_scale(cscale, datascale)
    figure = Figure(figsize=(10.4, 0.5 + 2.7 * len(pairs)), layout="constrained")
    axes = figure.subplots(len(pairs), 3, squeeze=False)
    for row, (one, other, *labels) in zip(axes, pairs, strict=True):
        for ax, image, label in zip(row, (one, other), labels, strict=False):
            drawn = ax.imshow(colours(image), norm=norm, cmap=colour_map())
            ax.set_title(label, fontsize=10)
        s = colour_scale("lin", datascale)[1]
        difference = row[2].imshow(s(one) - s(other), cmap="RdBu_r", vmin=-2.0, vmax=2.0)
        row[2].set_title(labels[2], fontsize=10)
        for ax in row:
            ax.set_xticks([])
            ax.set_yticks([])
    figure.colorbar(difference, ax=axes[:, 2], fraction=0.046, pad=0.02).set_label("Difference in $s$")
    colour_bar(figure, drawn, axes[:, :2], cscale, datascale)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def interpolation_figure(images, cscale, datascale, title=None) -> Figure:
    """Draw paths between latent vectors (rows, steps, N, N), densities, one path per row."""
    images = np.asarray(images)
    rows, steps = images.shape[:2]
    norm, colours = colour_scale(cscale, datascale)
    figure = Figure(figsize=(1.6 * steps + 1.4, 1.62 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, steps, squeeze=False)
    for index in np.ndindex(rows, steps):
        drawn = axes[index].imshow(colours(images[index]), norm=norm, cmap=colour_map())
        axes[index].set_axis_off()
    for place, label in ((0, "$z_1$"), (steps - 1, "$z_2$")):
        axes[0, place].set_title(label, fontsize=11)
    figure.colorbar(drawn, ax=axes, fraction=0.03, pad=0.01).set_label(
        "$s$" if cscale == "lin" else "Density $x$ [particles per voxel]"
    )
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def summary_figure(
    card: dict, generated: Summary, real: Summary, examples, real_examples, cscale, title=None, real_label="validation"
) -> Figure:
    """Draw one page: samples, histogram, power spectrum, bispectrum, Euler characteristic, and all ratios.

    Parameters
    ----------
    card : dict
        The scorecard.
    generated, real : Summary
    examples, real_examples : (n, N, N) arrays
        Densities, at least one each; as many as fill a grid of at most three a side are shown.
    cscale, title, real_label
        As for `utils.plots.sample_grid`.
    """
    figure = Figure(figsize=(11.7, 14.0), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(1.05, 1.0, 1.0))
    _draw_samples(top, examples, real_examples, cscale, real.settings.a, real_label)
    left, right = middle.subfigures(1, 2)
    draw_histogram(*panel_pair(left), generated, real, real_label=real_label)
    draw_power_spectrum(*panel_pair(right), generated, real, real_label)
    left, centre, right = bottom.subfigures(1, 3, width_ratios=(1.0, 1.0, 1.25))
    draw_bispectrum(*panel_pair(left), generated, real, real_label)
    draw_minkowski(*panel_pair(centre), generated, real, 2, real_label)
    draw_scores(right.subplots(), card)
    figure.suptitle("\n".join([*([title] if title else []), merit_line(card)]), fontsize=12)
    return figure


def _draw_samples(figure, examples, real_examples, cscale, datascale, real_label) -> None:
    """Real and generated slices side by side with one colour bar."""
    norm, colours = colour_scale(cscale, datascale)
    side = min(3, int(len(examples) ** 0.5), int(len(real_examples) ** 0.5))
    axes = figure.subplots(1, 2)
    for ax, stack, label in zip(axes, (examples, real_examples), ("Generated", real_label.capitalize()), strict=True):
        drawn = ax.imshow(mosaic(colours(np.asarray(stack[: side * side])), side), norm=norm, cmap=colour_map())
        ax.set_title(label, fontsize=11)
        ax.set_axis_off()
    colour_bar(figure, drawn, axes, cscale, datascale)


def _curve_pair(ax, x, generated: Curve, real: Curve, real_label: str, **style) -> None:
    """Two mean curves with their bootstrap bands."""
    # The axis is logarithmic where the real curve is positive, and leaves out the corners of a band that are not.
    least = real.mean.min() / 1e3 if (real.mean > 0).all() else -np.inf
    for side, band in ((real, BAND | {"label": "68 % bootstrap bands"}), (generated, BAND | {"color": GENERATED})):
        ax.fill_between(x, np.maximum(side.low, least), np.maximum(side.high, least), **band)
    ax.plot(x, real.mean, label=real_label.capitalize(), **REAL_LINE, **style)
    ax.plot(x, generated.mean, label="Generated", **GENERATED_LINE, **style)
