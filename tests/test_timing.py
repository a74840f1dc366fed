"""Where a run's time goes, by a clock that stands still."""

from utils.timing import Stopwatch, pace


def test_pace_leaves_compiling_out(monkeypatch):
    """Six images a step; four steps of a second each, two of them with ten seconds of compiling, and a checkpoint."""
    watch = Stopwatch()
    watch.seconds.update({"compiling": 22.0, "monitor": 2.0})
    watch.counts.update({"compiling": 2, "monitor": 1})
    monkeypatch.setattr(Stopwatch, "total", 26.0)
    found = pace(watch, 4, batchsize=6)
    assert found["seconds_per_step"] == 1.0
    assert found["images_per_second"] == 6.0
    assert found["all_seconds_per_step"] == 2.0
    assert found["monitor_share"] == 0.5
    assert found["seconds"] == 26.0
    assert "compiling_share" not in found
    # As long as all steps were compiled, they are all there is to go by.
    first = pace(watch, 2, batchsize=6)
    assert (first["seconds_per_step"], first["images_per_second"]) == (12.0, 0.5)
    assert "all_seconds_per_step" not in first
