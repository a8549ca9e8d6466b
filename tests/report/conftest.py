import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

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
