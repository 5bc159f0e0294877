"""The search for settings: Ray Tune around whole training runs, with labels or without."""
