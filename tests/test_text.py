"""Numbers and settings as people read them."""

import numpy as np
import pytest

from medkd.text import duration, shown, with_interval, word


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (75, "1 min 15 s"),
        (3599.9, "1 h 0 min"),
        (5400, "1 h 30 min"),
    ],
)
def test_a_time_has_the_two_largest_of_its_units(seconds, told):
    assert duration(seconds) == told


def test_numbers_that_would_vanish_have_more_digits_and_zero_has_no_sign():
    numbers = (0.8124, 0.0002, 0.0, -0.0, 3e-7)
    assert [shown(value) for value in numbers] == ["0.812", "0.0002", "0.000", "0.000", "3e-07"]
    assert [shown(value, "{:+.3f}") for value in (0.0312, -0.0004, 3e-7)] == ["+0.031", "-0.0004", "3e-07"]
    assert shown(0.0004, "{:.1%}") == "0.0%" and shown("GMCD", "{}") == "GMCD"


def test_an_interval_stands_in_brackets_behind_its_value():
    assert with_interval(0.8124, 0.7, np.float64(0.9)) == "0.812 (0.700 to 0.900)"
    assert with_interval(-1.25, -2.0, 0.5, "+.1f") == "-1.2 (-2.0 to +0.5)"
    assert with_interval(-0.0002, -0.0021, -0.0003, "+.3f") == "-0.0002 (-0.0021 to -0.0003)"
    assert with_interval(0.0, -0.00001, 0.1, "+.1f") == "+0.00 (+0.00 to +0.10)"
    assert with_interval(0.5, float("nan"), float("nan")) == "0.500"


def test_settings_read_as_a_command_line_takes_them():
    assert [word(value) for value in ("hard", 3, True, None, ["ce", "kd"], [1, 0.5])] == [
        "hard",
        "3",
        "true",
        "null",
        "ce,kd",
        "1,0.5",
    ]
