"""medkd: knowledge distillation and rare-disease learning in medical imaging, driven from notebooks."""

__version__ = "0.1.0"
