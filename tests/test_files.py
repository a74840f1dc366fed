"""Atomic files and the one-line errors of the command line."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.conftest import ROOT
from tests.universe_files import write_universe
from utils.cli import UserError
from utils.files import atomic_path, write_text
from utils.universes import DamagedUniverse, read_header, read_planes


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "weights.weights.h5"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        assert not path.exists()
        assert temporary.name.endswith(".weights.h5")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail_half_way():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("named", [True, False])
def test_an_error_while_writing_names_the_final_file(tmp_path, named):
    def fill_the_disk():
        with atomic_path(tmp_path / "a.h5") as temporary:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *[str(temporary)] * named)

    with pytest.raises(OSError, match="No space left") as refused:
        fill_the_disk()
    assert refused.value.filename == str(tmp_path / "a.h5")


def test_a_universe_that_is_exchanged_while_it_is_read_is_told(tmp_path):
    path = tmp_path / "universe_0.hdf5"
    write_universe(path)
    universe = read_header(path, path.name)
    write_universe(path, full=None)
    with pytest.raises(DamagedUniverse, match="plane 3 cannot be read"):
        list(read_planes(universe, [3], 0.0))


def script(body):
    return f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from utils.cli import UserError, run
def main():
{textwrap.indent(textwrap.dedent(body), "    ")}
run(main)
"""


def run_main(body):
    return subprocess.run([sys.executable, "-c", script(body)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("body", "code", "lines"),
    [
        ("pass", 0, 0),
        ("raise UserError('no such\\n  thing')", 2, 1),
        (f"raise OSError({errno.ENOSPC}, 'No space left on device', 'data/x.h5')", 2, 1),
        ("raise MemoryError('cannot allocate 80 GB')", 2, 1),
        ("os.kill(os.getpid(), signal.SIGINT)", 128 + signal.SIGINT, 1),
    ],
)
def test_what_the_user_can_mend_is_one_line(body, code, lines):
    process = run_main(body)
    assert process.returncode == code
    assert len(process.stderr.splitlines()) == lines
    if code == 2:
        assert "error: " in process.stderr


@pytest.mark.parametrize(("number", "lines"), [(signal.SIGTERM, 0), (signal.SIGINT, 1)])
def test_an_interruption_that_a_library_turns_into_an_error_is_still_one(number, lines):
    """As HDF5 does with what is raised where it calls Python."""
    process = run_main(f"""
        try:
            os.kill(os.getpid(), {int(number)})
        except (SystemExit, KeyboardInterrupt):
            raise TypeError("not defined for this class")
    """)
    assert process.returncode == 128 + number
    assert len(process.stderr.splitlines()) == lines


def test_programming_errors_keep_their_traceback():
    process = run_main("[][1]")
    assert process.returncode == 1
    assert "Traceback" in process.stderr
    assert "IndexError" in process.stderr


@pytest.mark.parametrize("body", ["print('x' * 10**6)", "for _ in range(10**6): print('x')"])
def test_output_that_nobody_reads_ends_it_quietly(body):
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": writer, "stderr": subprocess.PIPE}
    process = subprocess.run([sys.executable, "-c", script(body)], **streams, text=True, check=False)
    os.close(writer)
    assert (process.returncode, process.stderr) == (128 + signal.SIGPIPE, "")


def test_a_pipe_of_the_programs_own_that_breaks_keeps_its_traceback():
    process = run_main("raise BrokenPipeError('between processes')")
    assert process.returncode == 1
    assert "Traceback" in process.stderr


def test_a_full_disk_names_the_file():
    assert "data/x.h5: No space left" in run_main(f"raise OSError({errno.ENOSPC}, 'No space left', 'data/x.h5')").stderr


def test_user_errors_exit_with_2():
    assert UserError("x").exit_code == 2
