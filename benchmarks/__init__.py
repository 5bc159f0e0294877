"""Benchmarks behind every speed claim of this repository. Run them as modules: `python -m benchmarks.pipeline`."""
