"""The method, one file an equation: pure functions on tensors. README.md tells it on one page."""
