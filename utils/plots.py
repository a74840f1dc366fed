"""Figures: grids of slices, pixel histograms, power spectra. Those of the scorecard are in `utils.plots_scorecard`.

Everything drawn here was computed elsewhere (`utils.summaries`, `utils.statistics`). The functions build plain
`matplotlib.figure.Figure` objects and leave pyplot's global state alone, so that a training process can draw at any
time and needs no display.
"""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from utils.cli import UserError
from utils.files import atomic_path
from utils.summaries import Curve, Summary
from utils.transforms import transform

# Two colours of Okabe & Ito (2008) that differ in hue for every kind of colour vision, and in lightness on paper.
REAL, GENERATED = "#0072B2", "#D55E00"
COLOUR_MAP = "inferno"
REAL_LINE = {"color": REAL, "lw": 2.6}  # the wider one below: it shows where the two coincide
GENERATED_LINE = {"color": GENERATED, "lw": 1.5}
BAND = {"color": REAL, "alpha": 0.2, "lw": 0}

POWER_SCALE_TOP = 1000.0  # particles per voxel; fixed, so that figures of different epochs can be compared
POWER_SCALE_GAMMA = 0.2
_RESIDUAL_LIMITS = (5.0, 10.0, 20.0, 50.0, 100.0)  # per cent
_GAP = 4  # pixels between the tiles of a mosaic


def sample_grid(images, cscale, datascale, pixel_size, title=None, real=None, real_label="validation") -> Figure:
    """Draw slices as a mosaic, real ones beside them under the same colour scale.

    Parameters
    ----------
    images : (n, N, N) array
        Generated densities; as many as make a full grid of at most four a side are shown.
    cscale : "lin" or "pwr"
        Colours linear in s from −1 to 1, or by a power law in density.
    datascale : float
        The density a at s = 0.
    pixel_size : float
        Side of a pixel [Mpc/h].
    title : str, optional
        Above the whole figure.
    real : (m, N, N) array, optional
        Real densities.
    real_label : str
        What the real slices are.

    Raises
    ------
    ValueError
        An unknown `cscale`, or images that are no stack.
    """
    stacks = {"generated": np.asarray(images)} | ({} if real is None else {real_label: np.asarray(real)})
    for label, stack in stacks.items():
        if stack.ndim != 3 or len(stack) == 0:
            raise ValueError(f"{label} images must be a stack (n, N, N), not of shape {stack.shape}")
    norm, colours = colour_scale(cscale, datascale)
    side = min(4, *(int(len(stack) ** 0.5) for stack in stacks.values()))

    figure = Figure(figsize=(4.9 * len(stacks) + 0.9, 5.3), layout="constrained")
    axes = figure.subplots(1, len(stacks), squeeze=False)[0]
    for ax, (label, stack) in zip(axes, stacks.items(), strict=True):
        drawn = ax.imshow(mosaic(colours(stack[: side * side]), side), norm=norm, cmap=colour_map())
        ax.set_title(label.capitalize(), fontsize=11)
        ax.set_axis_off()
    scale_bar(axes[0], stacks["generated"].shape[-1], pixel_size)
    colour_bar(figure, drawn, axes, cscale, datascale)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def pixel_histogram_figure(generated: Summary, real: Summary, title=None, real_label="validation") -> Figure:
    """Draw the pixel-intensity histogram: fraction of the pixels per unit of density, and the residual in per cent.

    The density axis is linear up to 1 and logarithmic beyond, so that the empty pixels, which are the majority, and
    the rare bright tail are both seen. There is one bin per density at first, then they are of even width in the
    logarithm, up to the brightest pixel of either set. The light band is the scatter between real universes; those in
    the lower panel hold 68 % of the means over resampled universes, real and generated.

    Parameters
    ----------
    generated, real : Summary
        Of the same settings.
    title : str, optional
    real_label : str
        What the real slices are.
    """
    figure, main, lower = two_panels(title)
    draw_histogram(main, lower, generated, real, real_label)
    return figure


def draw_histogram(main, lower, generated: Summary, real: Summary, real_label="validation") -> None:
    """Draw what `pixel_histogram_figure` shows into two axes that share x."""
    edges = histogram_edges(generated, real)
    curve, other = real.histogram_curve(edges), generated.histogram_curve(edges)
    main.stairs(curve.mean, edges, baseline=None, label=real_label.capitalize(), **REAL_LINE)
    main.stairs(other.mean, edges, baseline=None, label="Generated", **GENERATED_LINE)
    low = np.where(curve.mean > curve.scatter, curve.mean - curve.scatter, curve.mean / 1e3)
    stairs_band(main, edges, low, curve.mean + curve.scatter, label=f"Scatter between {curve.kind}", **BAND)
    draw_residual(lower, edges, other, curve)

    main.set_yscale("log")
    lowest = min(side.mean[side.mean > 0].min() for side in (curve, other))
    main.set_ylim(lowest / 5.0, curve.mean[curve.mean > 0].max() * 3.0)
    main.set_ylabel("Fraction of pixels per unit density")
    main.legend(frameon=False)
    lower.set_xscale("symlog", linthresh=1.0, linscale=0.6)
    lower.set_xlim(edges[0], edges[-1])
    # Ticks beyond the end would not be seen, but take as long to draw.
    tens = [10.0**power for power in range(6) if 10.0**power < edges[-1]]
    lower.xaxis.set_major_locator(FixedLocator([0.0, *tens]))
    lower.xaxis.set_minor_locator(FixedLocator([digit * ten for ten in tens for digit in range(2, 10)]))
    lower.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    lower.xaxis.set_minor_formatter(NullFormatter())
    lower.set_xlabel("Density $x$ [particles per voxel]")


def power_spectrum_figure(generated: Summary, real: Summary, title=None, real_label="validation") -> Figure:
    """Draw the mean power spectra, the scatter between slices, and the residual in per cent.

    The light band holds 68 % of the real slices, the dotted lines 68 % of the generated ones (closer together: a
    generator that lacks diversity). The bands in the lower panel hold 68 % of the means over resampled universes, real
    and generated.

    Parameters
    ----------
    generated, real : Summary
        Of the same settings.
    title : str, optional
    real_label : str
        What the real slices are.
    """
    figure, main, lower = two_panels(title)
    draw_power_spectrum(main, lower, generated, real, real_label)
    return figure


def draw_power_spectrum(main, lower, generated: Summary, real: Summary, real_label="validation") -> None:
    """Draw what `power_spectrum_figure` shows into two axes that share x."""
    k, nyquist = real.k, real.k[-1]
    curve, other = real.curve("power"), generated.curve("power")
    main.plot(k, curve.mean, label=real_label.capitalize(), **REAL_LINE)
    main.plot(k, other.mean, label="Generated", **GENERATED_LINE)
    main.fill_between(k, *real.power_scatter(), label=f"68 % of {real_label} slices", **BAND)
    for edge, label in zip(generated.power_scatter(), ("68 % of generated slices", None), strict=True):
        main.plot(k, edge, color=GENERATED, lw=1.0, ls=":", label=label)
    draw_residual(lower, k, other, curve)

    wave_number_axis(main, k)
    main.set_yscale("log")
    main.set_ylabel(r"Power spectrum $P(k)$ [(Mpc/$h$)$^2$]")
    for ax in (main, lower):
        ax.axvline(nyquist, color="0.4", lw=0.8, ls="--")
    main.annotate("Nyquist", (nyquist, 0.97), (-4, 0), rotation=90, ha="right", va="top", color="0.3", fontsize=9,
                  xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
    main.legend(frameon=False, loc="lower left")
    lower.set_xlim(k[0] * 0.9, nyquist * 1.1)
    lower.set_xlabel(r"Wave number $k$ [$h$/Mpc]")


def histogram_edges(*summaries: Summary) -> np.ndarray:
    """Bin edges around 0, 1, 2, ... times the resolution, then widening, up to the largest density of any summary."""
    top = max(summary.counts.shape[1] for summary in summaries)
    numbers = np.unique(np.rint(np.geomspace(1, top, 33)))
    return (np.concatenate([[0.0], numbers]) - 0.5) * summaries[0].settings.resolution


def to_rgb_array(figure: Figure) -> np.ndarray:
    """Render a figure as an (H, W, 3) uint8 array, for TensorBoard."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def save(figure: Figure, path: str | os.PathLike, dpi=200) -> None:
    """Write a figure atomically, in the format that the suffix of `path` names; its folder must exist."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def save_png_and_pdf(figure: Figure, stem: str | os.PathLike) -> None:
    """Write a figure as `stem`.png, for screens, and as `stem`.pdf, for papers."""
    save(figure, f"{stem}.png")
    figure.set_layout_engine("none")  # the layout stays as it is now: to find it takes most of the time
    save(figure, f"{stem}.pdf")


# The only places for pyplot, which alone picks a window system, and must not do so in a training process.


def check_display() -> None:
    """Refuse (`UserError`) to `show` figures where there is no display to open a window on."""
    import matplotlib.pyplot as plt

    if plt.get_backend().lower() == "agg":  # what pyplot falls back on
        raise UserError("there is no display for --show to open windows on; leave it out, the figures are files too")


def show(figures: Sequence[Figure]) -> None:
    """Open a window for each figure and wait until all are closed."""
    import matplotlib.pyplot as plt

    for figure in figures:
        plt.figure(figure)
    plt.show()


def colour_map():
    """Black at the bottom of the scale and white between the tiles of a mosaic."""
    return colormaps[COLOUR_MAP].with_extremes(bad="white")


def colour_scale(cscale, datascale):
    """The norm of the colours, and the function that gives what they stand for from densities."""
    if cscale == "lin":
        return Normalize(-1.0, 1.0), lambda density: transform(density, datascale)
    if cscale == "pwr":
        return PowerNorm(POWER_SCALE_GAMMA, 0.0, POWER_SCALE_TOP, clip=True), lambda density: density
    raise ValueError(f'cscale must be "lin" or "pwr", not "{cscale}"')


def mosaic(tiles: np.ndarray, side: int) -> np.ndarray:
    """Lay out side² tiles (side², N, N) as one image, NaN in the gaps: much quicker to draw than as many axes."""
    pixels = tiles.shape[-1]
    canvas = np.full((side, pixels + _GAP, side, pixels + _GAP), np.nan, dtype=np.float32)
    canvas[:, :pixels, :, :pixels] = tiles.reshape(side, side, pixels, pixels).transpose(0, 2, 1, 3)
    length = side * (pixels + _GAP)
    return canvas.reshape(length, length)[:-_GAP, :-_GAP]


def scale_bar(ax, pixels: int, pixel_size: float) -> None:
    """A bar as long as the first tile is wide, below the mosaic."""
    bar = {"xycoords": ax.get_xaxis_transform(), "annotation_clip": False}
    ax.annotate("", (0, -0.025), (pixels - 1, -0.025), arrowprops={"arrowstyle": "|-|,widthA=0.2,widthB=0.2"}, **bar)
    ax.annotate(f"{pixels * pixel_size:g} Mpc/$h$", (pixels / 2, -0.04), ha="center", va="top", fontsize=9, **bar)


def colour_bar(figure: Figure, drawn, axes, cscale, datascale) -> None:
    """A colour bar in density, with the scale of s on the other side where colours are linear in s."""
    bar = figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.02, extend="neither" if cscale == "lin" else "max")
    label = "Density $x$ [particles per voxel]"
    if cscale == "pwr":
        bar.set_ticks([0, 1, 10, 100, 1000])
        bar.set_label(label)
        return
    bar.set_label(f"$s = 2x/(x + a) - 1$,  $a$ = {datascale:g}")
    densities = np.array([0, 1, 3, 10, 30, 100])
    twin = bar.ax.secondary_yaxis("left")
    twin.set_yticks(transform(densities.astype(np.float64), datascale), [f"{density}" for density in densities])
    twin.set_ylabel(label)


def wave_number_axis(ax, k) -> None:
    """Make an x axis logarithmic, with a few numbers that stay apart: small slices span less than a decade."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if k[-1] > 8.0 * k[0] else (1.0, 1.5, 2.0, 3.0, 5.0)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(LogLocator(subs=range(2, 10)))
    ax.xaxis.set_minor_formatter(NullFormatter())


def two_panels(title):
    """A figure of a large panel above a residual panel with a common x axis.

    Its margins are fixed: to find out by drawing how much room the labels need takes longer than the picture, and a
    training process draws two of these at each checkpoint.
    """
    figure = Figure(figsize=(6.4, 6.0))
    main, lower = panel_pair(figure)
    figure.subplots_adjust(left=0.145, right=0.985, bottom=0.085, top=0.95 if title else 0.985, hspace=0.06)
    if title:
        main.set_title(title, fontsize=12)
    return figure, main, lower


def panel_pair(figure):
    """Two axes with a common x axis in a figure or a part of one, the lower one for residuals."""
    main, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for ax in (main, lower):
        ax.tick_params(which="both", direction="in", top=True, right=True)
    return main, lower


def draw_residual(ax, x, generated: Curve, real: Curve) -> None:
    """Generated/real − 1 in per cent over bins (`x` are edges) or at points, and bootstrap bands of both.

    The scale shows nine tenths of the residuals; a triangle at the frame stands for one beyond it, which something
    generated where nothing is real always is.
    """
    known = real.mean != 0

    def percent(part):
        return 100.0 * np.divide(part - real.mean, real.mean, out=np.full_like(real.mean, np.nan), where=known)

    residual = percent(generated.mean)
    bands = [
        (percent(real.low), percent(real.high), BAND | {"label": f"68 % of resampled {real.kind}"}),
        (percent(generated.low), percent(generated.high), BAND | {"color": GENERATED}),
    ]
    if len(x) > len(residual):
        for low, high, style in bands:
            stairs_band(ax, x, low, high, **style)
        ax.stairs(residual, x, baseline=None, **GENERATED_LINE)
        x = 0.5 * (x[1:] + x[:-1])
    else:
        for low, high, style in bands:
            ax.fill_between(x, low, high, **style)
        ax.plot(x, residual, **GENERATED_LINE)
    ax.axhline(0.0, color=REAL, lw=1.0)
    worst = np.nanpercentile(np.abs(residual), 90) if known.any() else 0.0
    limit = next((limit for limit in _RESIDUAL_LIMITS if limit >= worst), _RESIDUAL_LIMITS[-1])
    unheard_of = ~known & (generated.mean > 0)
    for beyond, edge, marker in (((residual > limit) | unheard_of, 0.93, "^"), (residual < -limit, 0.07, "v")):
        ax.scatter(
            x[beyond], np.full(beyond.sum(), edge), 14, GENERATED, marker=marker, transform=ax.get_xaxis_transform()
        )
    ax.set_ylim(-limit, limit)
    ax.set_ylabel("Residual [%]")
    ax.legend(fontsize=8, loc="best", edgecolor="none", borderaxespad=0.2)


def stairs_band(ax, edges, low, high, **style) -> None:
    """A band over bins."""
    ax.stairs(high, edges, baseline=low, fill=True, **style)
