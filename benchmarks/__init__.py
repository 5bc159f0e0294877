"""They make every speed claim of this repository reproducible. Run them as modules: `python -m benchmarks.pipeline`."""
