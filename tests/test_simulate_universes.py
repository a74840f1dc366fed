"""The simulator against known physics, slow twins and its own promises. Seeded; grids are small, boxes large."""

import errno
import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import powerbox
import pytest
import scipy.fft
import scipy.integrate

from data import simulate_universes as su
from utils.cli import UserError

SCRIPT = Path(su.__file__).resolve()
UNIVERSE = su.Universe(seed=0, grid=64, box=256.0, steps=10, omega_m=0.3, sigma_8=0.8, n_s=0.96, h=0.7)


def command(*arguments, cwd=None, **kwargs):
    """Run the script; its output folder is `out` below `cwd` unless told otherwise."""
    line = [sys.executable, SCRIPT, "--grid", "16", "--num", "1", *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False, **kwargs)


@pytest.fixture(scope="module")
def evolved():
    """Linear overdensity (transform) of `UNIVERSE` and its four densities, in the order of REDSHIFTS."""
    overdensity = su.initial_overdensity(UNIVERSE, su.random_streams(0)[1], threads=2)
    reached = su.step_schedule(UNIVERSE.steps)[1]
    steps = enumerate(su.evolve(overdensity.copy(), UNIVERSE.omega_m, UNIVERSE.steps, threads=2), start=1)
    densities = {reached[number]: density for number, density in steps if number in reached}
    return overdensity, [densities[i] for i in range(4)]


def large_scale_power(one, other, grid, box, k_max):
    """Cross power of two transforms over the modes with 0 < k <= k_max [h/Mpc]."""
    frequency = 2 * np.pi * np.fft.fftfreq(grid, box / grid)
    k = np.sqrt(sum(axis**2 for axis in np.ix_(frequency, frequency, np.abs(frequency[: grid // 2 + 1]))))
    twice = np.full(k.shape, 2.0)  # an rfftn holds half of the modes
    twice[..., [0, -1]] = 1
    return (twice * (one * other.conj()).real)[(k > 0) & (k <= k_max)].sum()


# Linear theory


@pytest.mark.parametrize(("sigma_8", "omega_m", "n_s"), [(0.8, 0.3, 0.96), (1.1, 0.25, 1.0)])
def test_linear_power_is_normalised_to_sigma_8(sigma_8, omega_m, n_s):
    universe = su.Universe(0, 64, 256.0, 10, omega_m, sigma_8, n_s, 0.7)

    def variance_per_log_k(log_k):
        x = 8 * np.exp(log_k)
        window = 3 * (np.sin(x) - x * np.cos(x)) / x**3
        return np.exp(3 * log_k) * su.linear_power(np.exp(log_k), universe) * window**2 / (2 * np.pi**2)

    pieces = [scipy.integrate.quad(variance_per_log_k, low, low + 1, limit=400)[0] for low in range(-9, 3)]
    assert sum(pieces) == pytest.approx(sigma_8**2, rel=1e-4)


def test_transfer_function_has_the_known_limits():
    # On large scales nothing is suppressed; on small ones T falls like ln(k)/k^2 (Eisenstein & Hu 1998).
    assert su.transfer_function(np.array(1e-5), 0.3, 0.7) == pytest.approx(1, abs=1e-3)
    k = np.array([50.0, 100.0])
    low, high = su.transfer_function(k, 0.3, 0.7)
    assert np.log(low / high) / np.log(2) == pytest.approx(2 - 1 / np.log(1.8 * 100 / 0.19), abs=0.05)
    # The spectrum of this cosmology peaks at the horizon of matter-radiation equality, near 0.016 h/Mpc.
    k = np.geomspace(1e-3, 1, 2000)
    assert 0.012 < k[np.argmax(su.linear_power(k, UNIVERSE))] < 0.022


@pytest.mark.parametrize("omega_m", [0.1, 0.3, 0.999])
def test_growth_factors_solve_their_equations(omega_m):
    # Heath 1977: D1 is proportional to H(a) times the integral of da/(a H)^3.
    def heath(a):
        hubble = lambda t: su.expansion(t, omega_m) / t**3  # noqa: E731
        return hubble(a) * scipy.integrate.quad(lambda t: (t * hubble(t)) ** -3, 0, a)[0]

    a = np.array([0.1, 0.25, 0.5, 1.0])
    d1, d2 = su.growth_factors(a, omega_m)
    np.testing.assert_allclose(d1, [heath(t) / heath(1.0) for t in a], rtol=1e-6)

    # (Q d/da)^2 D2 = 3/2 Omega_m a (D2 + D1^2), from D2 = 3/7 D1^2 in the matter era.
    def derivatives(t, state):
        q = su.expansion(t, omega_m)
        return state[1] / q, 1.5 * omega_m * t / q * (state[0] + su.growth_factors(np.array([t]), omega_m)[0, 0] ** 2)

    start = 1e-2
    early = 3 / 7 * su.growth_factors(np.array([start]), omega_m)[0, 0] ** 2
    state = (early, 2 * early / start * su.expansion(start, omega_m))
    solution = scipy.integrate.solve_ivp(derivatives, (start, 1), state, t_eval=a, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(d2, solution.y[0], rtol=5e-3)


def test_initial_overdensity_has_the_linear_spectrum():
    overdensity = su.initial_overdensity(UNIVERSE, np.random.default_rng(3), threads=1)
    np.testing.assert_array_equal(overdensity[0, 0, 0], 0)
    grid, box = UNIVERSE.grid, UNIVERSE.box
    power = np.abs(overdensity) ** 2 * box**3 / grid**6  # (Mpc/h)^3
    kx, ky, kz = np.ix_(*(2 * np.pi * np.fft.fftfreq(grid, box / grid) for _ in range(3)))
    k = np.sqrt(kx**2 + ky**2 + kz**2)[..., : grid // 2 + 1]
    for low, high in itertools.pairwise((0.05, 0.1, 0.2, 0.4, 0.7)):
        shell = (k >= low) & (k < high)
        ratio = np.mean(power[shell] / su.linear_power(k[shell], UNIVERSE))
        assert ratio == pytest.approx(1, abs=4 / np.sqrt(shell.sum() / 2))


def test_initial_overdensity_agrees_with_powerbox():
    overdensity = su.initial_overdensity(UNIVERSE, np.random.default_rng(4), threads=1)
    field = scipy.fft.irfftn(overdensity, (64,) * 3)
    edges = np.geomspace(0.15, 0.75, 7)  # [h/Mpc], below the Nyquist frequency
    measured = powerbox.get_power(field, UNIVERSE.box, bins=edges)
    np.testing.assert_allclose(measured.power, su.linear_power(measured.bin_avg, UNIVERSE), rtol=0.1)


# Particles and mesh


def test_force_of_a_plane_wave_is_analytic():
    grid, waves = 32, 3
    x = np.arange(grid)
    k = 2 * np.pi * waves / grid
    overdensity = np.broadcast_to((0.1 * np.cos(k * x))[None, :, None], (grid,) * 3).astype(np.float32)
    force = su.displacement_field(scipy.fft.rfftn(overdensity), threads=1)
    # -grad of the potential whose Laplacian is 0.1 cos(k x).
    expected = np.broadcast_to((-0.1 / k * np.sin(k * x))[None, :, None], (grid,) * 3)
    np.testing.assert_allclose(force[1], expected, atol=1e-6)
    assert np.abs(force[[0, 2]]).max() < 1e-6


def test_second_order_source_of_two_crossed_waves():
    # phi = A cos(kx) + B cos(ky): the source is phi_xx phi_yy, all mixed derivatives vanish.
    grid, k = 32, 2 * np.pi * 2 / 32
    x = k * np.arange(grid)
    laplacian = 0.2 * np.cos(x)[:, None, None] + 0.3 * np.cos(x)[None, :, None] + np.zeros((1, 1, grid))
    source = scipy.fft.irfftn(su.second_order_source(scipy.fft.rfftn(laplacian.astype(np.float32)), 1), (grid,) * 3)
    expected = 0.06 * np.cos(x)[:, None, None] * np.cos(x)[None, :, None]
    np.testing.assert_allclose(source, np.broadcast_to(expected, source.shape), atol=1e-6)


def test_density_equals_a_slow_cloud_in_cell_deposit():
    grid = 16
    displacement = np.random.default_rng(5).normal(0, 9, (3, grid, grid, grid)).astype(np.float32)
    slow = np.zeros((grid,) * 3)
    for point in np.ndindex(grid, grid, grid):
        place = np.array(point) + displacement[(slice(None), *point)].astype(float)
        for cell in itertools.product(*((int(p), int(p) + 1) for p in np.floor(place))):
            slow[tuple(c % grid for c in cell)] += np.prod(1 - np.abs(place - cell))
    results = []
    for threads in (1, 3):
        with ThreadPoolExecutor(threads) as pool:
            results.append(su.density_field(lambda planes: displacement[:, planes], grid, pool))
    np.testing.assert_allclose(results[0], slow, atol=2e-5)
    np.testing.assert_array_equal(results[0], results[1])


def test_particles_on_cell_borders_stay_in_the_mesh():
    displacement = np.full((3, 16, 16, 16), -1e-9, np.float32)  # the offset from the cell below rounds to 1
    index, weight = su.cloud_in_cell(displacement, 0, 16)
    assert index.min() >= 0
    assert index.max() < 16**3
    np.testing.assert_allclose(np.bincount(index.ravel(), weight.ravel()), 1)


def test_collapse_of_a_plane_wave_follows_zeldovich():
    # In one dimension Zel'dovich's solution is exact until shells cross; COLA must add nothing to it.
    grid, waves, amplitude = 64, 1, 0.6  # the linear overdensity today: no crossing before 1
    wave = amplitude * np.cos(2 * np.pi * waves * np.arange(grid) / grid)
    overdensity = np.broadcast_to(wave[:, None, None], (grid,) * 3).astype(np.float32)
    *_, density = su.evolve(scipy.fft.rfftn(overdensity), 0.3, 10, threads=2)
    shift = np.zeros((3, grid, grid, grid), np.float32)
    k = 2 * np.pi * waves / grid
    shift[0] = (-amplitude / k * np.sin(k * np.arange(grid)))[:, None, None]
    with ThreadPoolExecutor(2) as pool:
        exact = su.density_field(lambda planes: shift[:, planes], grid, pool)
    assert exact.max() > 2
    # Compared at the wave's own scale and its first harmonics: the mesh does not resolve the last cells of the pancake.
    found, wanted = (np.abs(np.fft.rfft(field[:, 0, 0])[1:4]) for field in (density, exact))
    np.testing.assert_allclose(found, wanted, rtol=0.02)


# The evolved universe


def test_large_scales_grow_linearly(evolved):
    transforms = [np.fft.rfftn(density) for density in evolved[1]]
    grid, box = UNIVERSE.grid, UNIVERSE.box
    start = large_scale_power(transforms[3], transforms[3], grid, box, 0.1)
    growth = su.growth_factors(1 / (1 + np.array(su.REDSHIFTS)), UNIVERSE.omega_m)[0]
    for transform, d1 in zip(transforms, growth, strict=True):
        ratio = large_scale_power(transform, transforms[3], grid, box, 0.1) / start
        assert ratio == pytest.approx(d1 / growth[3], rel=0.05)


def test_the_first_snapshot_is_linear_on_large_scales(evolved):
    overdensity, densities = evolved
    start = np.fft.rfftn(densities[3])
    grid, box = UNIVERSE.grid, UNIVERSE.box
    ratio = large_scale_power(start, overdensity, grid, box, 0.05)
    ratio /= large_scale_power(overdensity, overdensity, grid, box, 0.05)
    assert ratio == pytest.approx(su.growth_factors(np.array([0.25]), UNIVERSE.omega_m)[0, 0], rel=0.03)


def test_mass_is_conserved(evolved):
    for density in evolved[1]:
        assert density.mean(dtype=float) == pytest.approx(1, abs=1e-5)
        counts = su.round_counts(density, np.random.default_rng(6))
        assert abs(counts.sum(dtype=int) - density.size) <= 1
        assert np.abs(counts - density).max() <= 1


def test_rounding_is_unbiased_and_uncorrelated():
    density = np.full((32, 32, 32), 0.3, np.float32)
    density[::2] = 1.75
    rng = np.random.default_rng(7)
    rounded = np.array([su.round_counts(density, rng) for _ in range(40)])
    residual = rounded - density
    for part, fraction in ((residual[:, ::2], 0.75), (residual[:, 1::2], 0.3)):
        assert part.mean() == pytest.approx(0, abs=5 * np.sqrt(fraction * (1 - fraction) / part.size))
        assert part.var() == pytest.approx(fraction * (1 - fraction), rel=0.01)
    neighbours = np.mean(residual[..., 1:] * residual[..., :-1]) / residual.var()
    assert neighbours == pytest.approx(0, abs=5 / np.sqrt(residual.size))


def test_counts_beyond_int16_are_refused():
    density = np.ones((16, 16, 16), np.float32)
    density[3, 4, 5] = 32767.5
    with pytest.raises(UserError, match="int16"):
        su.round_counts(density, np.random.default_rng(8))


@pytest.mark.parametrize("steps", [4, 10, 23])
def test_snapshots_fall_on_steps(steps):
    times, reached = su.step_schedule(steps)
    assert len(times) == steps + 1
    assert np.all(np.diff(times) > 0)
    for number, redshift in reached.items():
        assert times[number] == pytest.approx(1 / (1 + su.REDSHIFTS[redshift]), rel=1e-12)
    assert set(reached.values()) == {0, 1, 2, 3}


def test_more_steps_change_little(evolved):
    overdensity, densities = evolved
    *_, fine = su.evolve(overdensity.copy(), UNIVERSE.omega_m, 20, threads=2)
    coarse, fine = np.fft.rfftn(densities[0]), np.fft.rfftn(fine)
    power = [large_scale_power(one, one, UNIVERSE.grid, UNIVERSE.box, 0.5) for one in (coarse, fine)]
    assert power[0] / power[1] == pytest.approx(1, abs=0.05)


# The command


def test_file_has_the_layout_of_the_public_data(tmp_path):
    result = command("--seed", 5, "--omega-m", "0.25:0.35", "--box", 32, "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with h5py.File(tmp_path / "out" / "universe_5.hdf5") as file:
        full = file["full"]
        assert (full.shape, full.dtype, full.chunks) == ((16, 16, 16, 4), np.int16, None)
        assert full[()].reshape(-1, 4).sum(axis=0) == pytest.approx(16**3, abs=1)
        variance = full[()].reshape(-1, 4).var(axis=0)
        assert np.all(np.diff(variance) < 0)  # index 0 is today, when structure is strongest
        assert file["redshifts"][()].tolist() == [0, 0.5, 1.5, 3]
        assert file["namePar"][()].tolist() == [b"Omega_m", b"sigma_8", b"N_spec", b"H_0"]
        physical = file["physPar"][()]
        assert 0.25 <= physical[0] < 0.35
        assert physical[1:].tolist() == pytest.approx([0.8, 0.96, 70])
        assert file["unitPar"][()] == pytest.approx(physical / [0.3, 0.8, 0.96, 70] - 1)
        assert file.attrs["box_size"] == 32
        assert file.attrs["seed9"] == 5
        assert {"dataset_tag", "universe_tag", "steps", "simulator_version"} <= set(file.attrs)


def test_same_seed_same_bytes_whatever_the_jobs(tmp_path):
    names = [f"universe_{seed}.hdf5" for seed in (3, 4)]
    for folder, options in (("one", ["--jobs", 1]), ("two", ["--jobs", 2]), ("threads", ["--threads", 3])):
        result = command("--seed", 3, "--num", 2, "--sigma-8", "0.7:0.9", "--out", folder, *options, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert sorted(line.split(": written")[0] for line in result.stdout.splitlines()) == [
            os.path.join(folder, name) for name in names
        ]
    for name in names:
        contents = {(tmp_path / folder / name).read_bytes() for folder in ("one", "two", "threads")}
        assert len(contents) == 1
    assert (tmp_path / "one" / names[0]).read_bytes() != (tmp_path / "one" / names[1]).read_bytes()


def test_drawn_parameters_depend_on_the_seed_alone(tmp_path):
    found = []
    for seed, num, folder in ((7, 1, "alone"), (6, 2, "second")):
        assert command("--seed", seed, "--num", num, "--h", "0.6:0.8", "--out", folder, cwd=tmp_path).returncode == 0
        with h5py.File(tmp_path / folder / "universe_7.hdf5") as file:
            found.append(file["physPar"][()].tolist())
    assert found[0] == found[1]


def test_existing_universes_are_reused_and_never_overwritten(tmp_path):
    first = command("--out", "out", cwd=tmp_path)
    path = tmp_path / "out" / "universe_0.hdf5"
    before = path.stat()
    again = command("--out", "out", cwd=tmp_path)
    assert (first.returncode, again.returncode) == (0, 0)
    assert "reused" in again.stdout
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    for options in (["--box", 20], ["--omega-m", 0.31], ["--steps", 12], ["--grid", 18]):
        refused = command("--out", "out", "--num", 2, *options, cwd=tmp_path)
        assert refused.returncode == 2
        assert "other parameters" in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert os.listdir(path.parent) == [path.name]


def test_more_than_the_memory_is_refused():
    su.check_memory(grid=16, jobs=2)
    with pytest.raises(UserError, match=r"GB of memory.*smaller --grid, or fewer --jobs"):
        su.check_memory(grid=16, jobs=10**9)


def test_a_torn_file_is_refused(tmp_path):
    assert command("--out", "out", cwd=tmp_path).returncode == 0
    path = tmp_path / "out" / "universe_0.hdf5"
    path.write_bytes(path.read_bytes()[:5000])
    result = command("--out", "out", cwd=tmp_path)
    assert result.returncode == 2
    assert str(path.name) in result.stderr


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk_is_told_in_one_line(tmp_path, jobs):
    result = command(
        *("--num", 2, "--jobs", jobs, "--out", "out"),
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "universe_" in result.stderr
    assert os.listdir(tmp_path / "out") == []


def test_a_disk_that_fills_up_meanwhile_is_an_error(tmp_path, monkeypatch):
    # HDF5 itself, which writes otherwise, may crash on it.
    def no_room(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", no_room)
    universe, path = su.Universe(0, 16, 16.0, 4, 0.3, 0.8, 0.96, 0.7), tmp_path / "universe_0.hdf5"
    with pytest.raises(OSError, match="No space left") as refused:
        su.simulate((universe, path), threads=1, show_steps=False)
    assert refused.value.filename == str(path)
    assert os.listdir(tmp_path) == []


def test_runs_from_its_own_folder(tmp_path):
    line = [sys.executable, SCRIPT.name, "--num", "1", "--grid", "16", "--out", str(tmp_path)]
    assert subprocess.run(line, cwd=SCRIPT.parent, capture_output=True, check=False).returncode == 0
    assert (tmp_path / "universe_0.hdf5").exists()


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_no_partial_file(tmp_path, number, jobs):
    line = [sys.executable, SCRIPT, "--grid", "64", "--num", "40", "--jobs", str(jobs), "--out", "out"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(line, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    written = process.stdout.readline()
    time.sleep(0.2)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal sends it to all processes
    else:
        process.terminate()  # and `kill` to one
    _, error = process.communicate(timeout=60)  # returns when the last of them has ended
    assert "written" in written
    assert process.returncode == 128 + number
    assert "Traceback" not in error
    for path in (tmp_path / "out").iterdir():
        with h5py.File(path) as file:
            assert file["full"].shape == (64, 64, 64, 4)


def test_what_a_killed_process_left_is_cleared_after_a_day(tmp_path):
    (tmp_path / "out").mkdir()
    old, new = (tmp_path / "out" / f".partial{number}-00.universe_0.hdf5" for number in (1, 2))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    assert command("--out", "out", cwd=tmp_path).returncode == 0
    assert sorted(os.listdir(tmp_path / "out")) == [new.name, "universe_0.hdf5"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--omega-m", "0.4:0.2"], "--omega-m"),
        (["--omega-m", "1.2"], "--omega-m"),
        (["--omega-m", "0"], "--omega-m"),
        (["--omega-m", "0.2:0.3:0.4"], "--omega-m"),
        (["--omega-m", "some"], "--omega-m"),
        (["--omega-m", "nan"], "--omega-m"),
        (["--omega-k", "0.1:0.2"], "--omega-k"),
        (["--sigma-8", "0"], "--sigma-8"),
        (["--sigma-8", "-0.8"], "--sigma-8"),
        (["--h", "70"], "--h"),
        (["--n-s", "inf"], "--n-s"),
        (["--grid", "17"], "--grid"),
        (["--grid", "8"], "--grid"),
        (["--grid", "-64"], "--grid"),
        (["--box", "-1"], "--box"),
        (["--num", "0"], "--num"),
        (["--seed", "-1"], "--seed"),
        (["--seed", "1.5"], "--seed"),
        (["--steps", "3"], "--steps"),
        (["--jobs", "0"], "--jobs"),
        (["--out", "a_file/below"], "a_file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, options, named):
    (tmp_path / "a_file").write_text("no folder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--grid", "16", "--num", "1", "--out", "out", *options])
    with pytest.raises(SystemExit) as left:
        su.run(su.main)
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert error.count("\n") == 1
    assert named in error
    assert os.listdir(tmp_path) == ["a_file"]
