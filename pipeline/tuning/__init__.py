"""Searches for settings: Ray Tune around whole training runs, with or without labels."""
