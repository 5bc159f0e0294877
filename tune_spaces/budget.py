"""The method on a budget: short trials with smaller heads, as a proxy for long ones.

    digpro tune --space tune_spaces/budget.py --preset cifar10 --trials 40

Only settings that should mean the same in a long run are searched. What depends on the horizon is left out: a short run
likes higher rates, a quicker target network and more frequent resets than a long one. `best.yaml` has the preset's own
epochs and heads. Whether short trials order settings as long ones do must be tried on your data: train the best and the
paper's values to the end, and compare.
"""

from ray import tune

SPACE = {
    # The reasons for these ranges are in digpro.py.
    "method.prototype_weight": tune.loguniform(0.01, 1.0),
    "method.group_weight": tune.loguniform(0.03, 1.0),
    "method.prototype_temperature": tune.loguniform(0.1, 1.0),
    "method.group_temperature": tune.loguniform(0.03, 0.5),
}

# The paper's.
FIRST = [
    {
        "method.prototype_weight": 0.1,
        "method.group_weight": 0.3,
        "method.prototype_temperature": 0.5,
        "method.group_temperature": 0.1,
    }
]

OBJECTIVES = [("label_free", "max")]

SETTINGS = {
    # A quarter of the digits preset, a fiftieth of the paper's; the prototype loss is on for 18 of them.
    "optim.epochs": 20,
    "optim.warmup_epochs": 2,
    # The heads hold most of the weights of a small network. Narrower ones cluster a little worse, all alike.
    "model.projector_hidden": 256,
    "model.predictor_hidden": 256,
}
