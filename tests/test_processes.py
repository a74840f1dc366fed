"""Work shared by processes."""

import signal

import pytest

from utils.cli import UserError
from utils.processes import map_unordered


def square(number):
    return number**2


def turn_into_an_error(_):
    """What HDF5 does with an exception that is raised where it calls Python."""
    try:
        signal.raise_signal(signal.SIGTERM)
    except SystemExit:
        raise TypeError("not defined for this class") from None


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_item_is_worked_on(jobs):
    assert sorted(map_unordered(square, range(5), jobs)) == [(number, number**2) for number in range(5)]


def test_a_process_that_is_told_to_end_leaves_no_traceback(capfd):
    with pytest.raises(UserError, match="killed"):
        list(map_unordered(turn_into_an_error, range(2), 2))
    assert "Traceback" not in capfd.readouterr().err
