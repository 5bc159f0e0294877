"""Failures of a run that are neither the configuration's fault nor the data's."""


class RunFailed(RuntimeError):
    """A run that started and could not end; the message says why, and where to look."""
