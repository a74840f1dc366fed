"""What training says on the terminal and in its log."""

from datetime import timedelta

from utils.plan import RunPlan
from utils.slices import SliceSet

# Losses that every run has; what else a step computes is listed by its own name.
_ALWAYS = ("d_loss", "d_real_loss", "d_fake_loss", "g_loss", "d_real_prob", "d_fake_prob")


def describe_slices(slices: SliceSet) -> str:
    """One line on a slice file."""
    return (
        f"{slices.path}, {len(slices):,} of {slices.dim} x {slices.dim} pixels of {slices.pixel_size:g} Mpc/h, "
        f"{slices.dtype}, density {slices.minimum:g} to {slices.maximum:g}, mean {slices.mean:.4f}"
    )


def describe_machine(machine: dict) -> str:
    """Devices, threads, XLA, and how the step is spread, in a few words."""
    threads = machine["threads"]
    text = f"{machine['devices'][0]} ({threads} thread{'' if threads == 1 else 's'} an operation)"
    if machine["xla"] != "off":
        text += ", XLA"
    if machine["replicas"] > 1:
        text += f", {machine['strategy']}: {machine['replicas']} replicas in {machine['workers']} process(es)"
    return text


def progress_line(step: int, plan: RunPlan, losses: dict, timing: dict) -> str:
    """The log line of a step: losses of this step, mean predicted probabilities, speed, time left where it is known."""
    each = timing.get("all_seconds_per_step")
    left = "" if each is None else f", {duration((plan.total_steps - step) * each)} left"
    values = {name: float(loss) for name, loss in losses.items()}
    extra = "".join(f" {name} {value:.4f}" for name, value in values.items() if name not in _ALWAYS)
    return (
        f"step {step}/{plan.total_steps} epoch {(step - 1) // plan.epoch_steps + 1} | d_loss {values['d_loss']:.4f} "
        f"g_loss {values['g_loss']:.4f}{extra} | real pred {values['d_real_prob']:.3f} "
        f"fake pred {values['d_fake_prob']:.3f} | {timing['images_per_second']:.1f} images/s{left}"
    )


def score_line(step: int, evaluation, best_metric: str) -> str:
    """The log line of a TensorBoard checkpoint: first the score by which weights are best."""
    shown = dict.fromkeys((best_metric, "chisq", "chisq_pspect", "pspect_rms", "pspect_rms_s"))
    numbers = ", ".join(f"{name} {evaluation.scores[name]:.4g}" for name in shown)
    best = f"; best so far by {' and '.join(evaluation.improved)}, saved" if evaluation.improved else ""
    return f"checkpoint at step {step}: {numbers}{best}"


def duration(seconds: float) -> str:
    """A time span for people, such as 1:02:03."""
    return str(timedelta(seconds=round(seconds)))
