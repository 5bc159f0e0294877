"""Every speed claim of this repository, repeatable; run them as modules: `python -m benchmarks.pipeline`."""
