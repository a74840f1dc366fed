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
    assert pace(watch, 2, batchsize=6)["all_seconds_per_step"] == 13.0
