"""Settings that were removed. Runs that were saved with them can still be read, and keep their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ANEW = "each E-step starts k-means from scratch, estep.restarts times"
REFERENCE = "method.reference=true switches on all of the reference code's behaviour"

REMOVED = {
    "data.shuffle_buffer": "streaming runs take the images in the same order as resident runs",
    "data.prefetch_batches": "Ray Data decides how far it reads ahead",
    "method.reference_double_momentum": REFERENCE,
    "method.reference_raw_groups": REFERENCE,
    "method.reference_empty_logit": REFERENCE,
    "method.reference_long_cosine": REFERENCE,
    "optim.final_lr_fraction": "the learning rate always ends at 0",
    "optim.fixed_predictor_lr": "the predictor always learns at optim.predictor_lr_factor times the scheduled rate",
    "optim.channels_last": "networks on CPUs always use the channels-last memory format",
    "estep.warm_start": ANEW,
    "estep.settled_restarts": ANEW,
    "estep.settled_churn": ANEW,
    "alarms.rollback_seed": "every rollback changes the seed",
    "monitor.held_out": "one fifth of the images with a class is always held out",
}
"""Setting -> what all runs do now."""

STILL_NAMED: dict[str, Any] = {
    "method.reference_double_momentum": False,
    "method.reference_raw_groups": False,
    "method.reference_empty_logit": False,
    "method.reference_long_cosine": False,
    "optim.final_lr_fraction": 0.0,
    "optim.fixed_predictor_lr": False,
    "estep.warm_start": False,
}
"""Removed settings that were part of every run's fingerprint, and the value that all runs have now."""

DECIDED_RESULTS: dict[str, Any] = STILL_NAMED | {"estep.settled_restarts": None}
"""Removed settings whose value changed the labels of a run, and the value that all runs have now."""


def lost_settings(saved: Mapping[str, Any]) -> list[str]:
    """The settings of a saved configuration that decided its result and that this version cannot follow."""
    lost = list[str]()
    for key, now in DECIDED_RESULTS.items():
        section, name = key.split(".")
        if (value := saved.get(section, {}).get(name, now)) != now:
            lost.append(f"{key} was {value}, and is no longer a setting: {REMOVED[key]}")
    return lost
