import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from medkd.data.arrays import ArrayImages
from medkd.data.cohort import Cohort

mpl.use("Agg")


@pytest.fixture(autouse=True)
def own_figures():
    """Each test starts with matplotlib's defaults and leaves no figure open."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.use("Agg")
        yield
    plt.close("all")


@pytest.fixture
def ax():
    """Empty axes."""
    return plt.subplots()[1]


@pytest.fixture
def cohort():
    """Forty common images (n, m) and eight rare ones (d, v); the grey value is the row number."""
    classes = ("n", "m", "d", "v")
    names = ["n"] * 20 + ["m"] * 20 + ["d"] * 4 + ["v"] * 4
    table = pd.DataFrame({"id": [f"i{i:02d}" for i in range(48)], "class": names})
    table["patient"] = [f"p{i // 2}" for i in range(48)]
    table["label"], table["roi"] = [classes.index(name) for name in names], table["id"]
    pixels = np.zeros((48, 8, 8, 3), np.uint8) + np.arange(48, dtype=np.uint8)[:, None, None, None]
    roles = {"base_classes": ("n", "m"), "rare_classes": ("d", "v")}
    return Cohort("tiny", "Tiny", True, classes, table, {"photo": ArrayImages(pixels)}, **roles)
