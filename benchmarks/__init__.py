"""Benchmarks: ratios that are measured side by side in one process, on one machine, on the same data."""

import medkd  # noqa: F401  before torch: it sets how torch's threads wait
