"""The scorecard: every score beside its noise floor, for JSON, for the terminal, for a page, and several ranked."""

import numpy as np

from utils.likeness import Likeness, alarms
from utils.noise import HIGH, LOW, NoiseFloor
from utils.scores import DEFINITIONS, FAMILIES, UNITS, figure_of_merit, means, ratio_to_floor, scores
from utils.summaries import BRIGHT, MINKOWSKI_THRESHOLDS, PEAK_EDGES, Summary

RATIO_MEANING = (
    "Ratio 1: as far from the real slices as other real universes are on average. Score over noise floor, for the two"
    " chi-squares the root of that; other real universes are seldom beyond 3"
)
COLLAPSED = 6.0  # a diversity ratio above this, on the side of too much likeness, is called a mode collapse


def scorecard(
    generated: Summary,
    real: Summary,
    floor: NoiseFloor,
    likeness: Likeness | None = None,
    p: dict[str, float] | None = None,
) -> dict:
    """Everything a reader needs to judge a generator, ready for JSON (None where a number is unknown).

    Parameters
    ----------
    generated, real : Summary
        Of the same settings.
    floor : NoiseFloor
        Of the real set; made with `likeness` where there is one.
    likeness : Likeness, optional
        Of both sets.
    p : dict of str to float, optional
        From `utils.noise.p_values`.

    Returns
    -------
    dict
        `figure_of_merit`: its value, the worst score, and what it means. `scores`: for each score its value, noise
        floor, interval of the floor, ratio, p-value, unit and definition. `alarms`: likeness beyond what real slices
        show. `sets`: what was compared. `noise_floor`: how it was found. `pixels` and `minkowski`: the quantities
        behind scores.

    Raises
    ------
    ValueError
        Summaries of different settings.
    """
    table = {
        name: _entry(name, value, floor, min(generated.slices.sum(), real.slices.sum()), (p or {}).get(name, np.nan))
        for name, value in scores(generated, real, likeness).items()
    }
    settings = real.settings
    return {
        "figure_of_merit": _merit({name: entry["ratio"] for name, entry in table.items()}),
        "scores": table,
        "alarms": None if likeness is None else _alarms(likeness, table["diversity"]["ratio"]),
        "sets": {
            "generated": {"slices": int(generated.slices.sum())},
            "real": {"slices": int(real.slices.sum()), "universes": len(np.unique(real.universe))},
            "pixels_per_side": settings.pixels,
            "pixel_size": {"value": settings.pixel_size, "unit": "Mpc/h"},
            "mean_density": {"value": settings.mean, "unit": "particles per voxel"},
            "a": {"value": settings.a, "unit": "particles per voxel"},
        },
        "noise_floor": {
            "meaning": (
                "the mean score of as many other real universes; ratio 1: as far from the real set as they are."
                " Fewer generated than real slices add noise of their own to the value, not to the floor"
            ),
            "basis": floor.basis,
            "reliable": floor.reliable,
            "universes": floor.universes,
            "repeats": floor.repeats,
            "seed": floor.seed,
        },
        "pixels": {"generated": _pixels(generated), "real": _pixels(real)},
        "minkowski": {"generated": _morphology(generated), "real": _morphology(real)},
    }


def table(card: dict) -> str:
    """The scores for reading on a terminal: value, noise floor, ratio, p-value; then merit and alarms."""
    lines = [f"{'score':20}{'value':>14}{'noise floor':>14}{'ratio':>10}{'p':>9}"]
    for name, score in card["scores"].items():
        cells = [_cell(score[key]) for key in ("value", "noise_floor", "ratio", "p")]
        lines.append(f"{name:20}{cells[0]:>14}{cells[1]:>14}{cells[2]:>10}{cells[3] if score['p'] else '-':>9}")
    lines.append(f"ratio 1: as far from the real slices as other real universes are; {card['noise_floor']['basis']}")
    lines.append(merit_line(card))
    lines.extend([*alarm_lines(card), *filament_lines(card), *caveat_lines(card)])
    return "\n".join(lines)


def markdown(card: dict, title: str) -> str:
    """The scorecard as a page of Markdown."""
    lines = [f"# {title}", "", merit_line(card), ""]
    lines += [f"- {line}" for line in (*alarm_lines(card), *filament_lines(card), *caveat_lines(card))] + [""]
    lines += ["| score | value | unit | noise floor (68 %) | ratio | p |", "| --- | --- | --- | --- | --- | --- |"]
    for name, score in card["scores"].items():
        low, high = score[f"noise_floor_{LOW}_{HIGH}"]
        floor = f"{_cell(score['noise_floor'])} ({_cell(low)} to {_cell(high)})"
        numbers = f"{_cell(score['value'])} | {score['unit']} | {floor} | {_cell(score['ratio'])}"
        lines.append(f"| {name} | {numbers} | {_cell(score['p']) if score['p'] else '-'} |")
    lines += ["", f"{RATIO_MEANING}.", ""]
    sets = card["sets"]
    lines.append(
        f"{sets['generated']['slices']} generated slices against {sets['real']['slices']} real ones of"
        f" {sets['real']['universes']} universe(s), {sets['pixels_per_side']}² pixels of"
        f" {sets['pixel_size']['value']:g} Mpc/h. Noise floor: {card['noise_floor']['basis']}."
    )
    lines += ["", "## What the scores are", ""]
    lines += [f"- **{name}**: {score['definition']}" for name, score in card["scores"].items()]
    return "\n".join(lines) + "\n"


def ranking(cards: dict[str, dict]) -> str:
    """Scorecards by name, best figure of merit first, in one table of ratios (Markdown, readable as it is)."""
    order = sorted(cards, key=lambda name: _or_infinite(cards[name]["figure_of_merit"]["value"]))
    names = ["", "figure of merit", *next(iter(cards.values()))["scores"]]
    columns = [names]
    for run in order:
        card = cards[run]
        columns.append([run, _cell(card["figure_of_merit"]["value"])])
        columns[-1] += [_cell(card["scores"].get(name, {"ratio": None})["ratio"]) for name in names[2:]]
    widths = [max(len(cell) for cell in column) for column in columns]
    rows = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in zip(*columns, strict=True)
    ]
    rule = " | ".join("-" * width for width in widths)
    return "\n".join(f"| {row} |" for row in [rows[0], rule, *rows[1:]])


def merit_line(card: dict) -> str:
    """The figure of merit in a sentence."""
    merit = card["figure_of_merit"]
    if merit["value"] is None:
        return "figure of merit: unknown, for no noise floor is"
    others = "universes" if card["noise_floor"]["reliable"] else "blocks of slices, an indication only"
    return (
        f"figure of merit: {_cell(merit['value'])} (1: as good as other real {others});"
        f" worst: {merit['worst']}, ratio {_cell(merit['worst_ratio'])}"
    )


def alarm_lines(card: dict) -> list[str]:
    """Diversity, repetition and memorisation in a sentence each; none without these scores."""
    alarms = card["alarms"]
    if alarms is None:
        return []
    lines = []
    if alarms["ms_ssim_real"] is not None:
        pair = f"MS-SSIM of pairs {_cell(alarms['ms_ssim_generated'])}, real ones {_cell(alarms['ms_ssim_real'])}"
        lines.append(f"diversity: {pair}{' - ALARM: mode collapse' if alarms['mode_collapse'] else ''}")
    for what, key in (("repetition", "repeated_fraction"), ("memorisation", "copied_fraction")):
        if alarms[key] is not None:
            than = "one another" if what == "repetition" else "training slices"
            warning = f" - ALARM: {what}" if alarms[key] > 0 else ""
            lines.append(f"{what}: {alarms[key]:.2%} of the slices suspiciously near to {than}{warning}")
    return lines


def filament_lines(card: dict) -> list[str]:
    """Which way the filaments differ, which their score does not say, in a sentence; none without structure."""
    ours, theirs = (card["minkowski"][side]["coherence"] for side in ("generated", "real"))
    if ours is None or theirs is None:
        return []
    ratio = card["scores"]["filaments"]["ratio"]
    if ratio is not None and ratio < 1:
        way = "as drawn out, within the noise floor"
    else:
        way = "more like clumps" if ours < theirs else "more drawn out"
    return [
        f"filaments: coherence of orientation {_cell(ours)}, real ones {_cell(theirs)}: generated structures are {way}"
    ]


def caveat_lines(card: dict) -> list[str]:
    """What the scores cannot be taken for, by what the generator was made with, in a sentence each."""
    provenance, lines = card.get("provenance", {}), []
    if provenance.get("match_histogram"):
        names = ", ".join((*FAMILIES["pixels"], "minkowski_area"))
        lines.append(f"fitted to the training set by match_histogram, no test of the networks: {names}")
    if provenance.get("same_training_set") is False:
        lines.append(
            "CAUTION: the run has been trained on other slices than the training set has now, perhaps on universes that"
            " it is compared with here"
        )
    return lines


def _entry(name: str, value: float, floor: NoiseFloor, slices, p: float) -> dict:
    """All that is known of one score."""
    # Of as many slices as the comparison itself: chisq is of counts and grows in proportion to them.
    scale = slices / floor.slices if name == "chisq" else 1.0
    mean, low, high = (side.get(name, np.nan) * scale for side in (floor.mean, floor.low, floor.high))
    return {
        "value": _json(value),
        "noise_floor": _json(mean),
        f"noise_floor_{LOW}_{HIGH}": [_json(low), _json(high)],
        "ratio": _json(ratio_to_floor(name, value, mean)),
        "p": _json(p),
        "unit": UNITS[name],
        "definition": DEFINITIONS[name],
    }


def _merit(ratios: dict[str, float | None]) -> dict:
    """The figure of merit and the score that is worst among those it is made of."""
    known = {name: ratios[name] for names in FAMILIES.values() for name in names if ratios.get(name) is not None}
    worst = max(known, key=known.get) if known else None
    return {
        "value": _json(figure_of_merit(ratios)),
        "worst": worst,
        "worst_ratio": known.get(worst),
        "families": {
            family: _json(figure_of_merit({name: known.get(name) for name in names}))
            for family, names in FAMILIES.items()
        },
        "meaning": (
            "geometric mean over families of the geometric mean of max(ratio, 1) of their scores;"
            " 1: as good as other real universes"
        ),
    }


def _alarms(likeness: Likeness, diversity_ratio: float | None) -> dict:
    """Numbers that should give alarm, and whether the first does: None where its ratio is unknown."""
    found = alarms(likeness)
    collapsed = None
    if diversity_ratio is not None:
        collapsed = bool(diversity_ratio > COLLAPSED and found["ms_ssim_generated"] > found["ms_ssim_real"])
    return {name: _json(value) for name, value in found.items()} | {"mode_collapse": collapsed}


def _pixels(summary: Summary) -> dict:
    """Mean, bright fraction and brightest pixel of a set."""
    counts, values = summary.counts.sum(axis=0), summary.values
    return {
        "mean": _json(summary.mass.sum() / summary.slices.sum()),
        "bright_fraction": _json(counts[values > BRIGHT].sum() / counts.sum()),
        "brightest": _json(values[counts > 0][-1]),
    }


def _morphology(summary: Summary) -> dict:
    """Minkowski functionals and peaks per slice of a set, and the coherence of orientation of s."""
    mean = means(summary, summary.counts.shape[1])
    curves = {
        name: [_json(value) for value in row]
        for name, row in zip(("area", "boundary", "euler"), mean.minkowski, strict=True)
    }
    peaks = {"heights_from": PEAK_EDGES[:-1].tolist(), "per_slice": [_json(value) for value in mean.peaks]}
    difference, total = mean.orientation
    coherence = _json(difference / total) if total else None
    return {"thresholds": MINKOWSKI_THRESHOLDS.tolist(), **curves, "peaks": peaks, "coherence": coherence}


def _cell(number: float | None) -> str:
    return "unknown" if number is None else f"{number:.4g}"


def _or_infinite(number: float | None) -> float:
    return float("inf") if number is None else number


def _json(value) -> float | None:
    """A number, or None for what JSON has no word for."""
    return float(value) if np.isfinite(value) else None
