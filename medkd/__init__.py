"""medkd: knowledge distillation and rare-disease learning in medical imaging, driven from notebooks."""

import os

__version__ = "0.1.0"

# torch's OpenMP threads spin while they wait. When another process holds a core, that made training 10 to 60 times
# slower; with a short spin it is about 2 times slower there, and as fast as before on an idle machine.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
