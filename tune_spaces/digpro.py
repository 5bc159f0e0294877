"""The method's own settings (arXiv 2401.13581): weights, temperatures, groups, resets, momenta, noise, warm-up.

    digpro tune --space tune_spaces/digpro.py --preset digits --trials 30

Judged without labels, by `label_free` (docs/objectives.md). The learning rate is left out on purpose: a rate near zero
holds clusters still, and stable clusters are a part of that metric.
"""

from ray import tune

SPACE = {
    # The instance loss has weight 1. At 1 the prototype loss counts as much; at 0.01 it has no visible effect.
    "method.prototype_weight": tune.loguniform(0.01, 1.0),
    # The paper has 0.3; a factor of three up, and of thirty down.
    "method.group_weight": tune.loguniform(0.01, 1.0),
    # Epochs before the prototype loss starts: a tenth to two fifths of the 80 of digits. Early pseudo-labels are
    # wrong, and prototypes reinforce them. The paper has 50 or 200 of 1,000: for longer runs, make these longer too.
    "optim.warmup_epochs": tune.choice([8, 16, 24, 32]),
    # null is K, as in the paper. With 3 to 10 times as many, groups are parts of clusters and cannot merge two.
    "method.num_groups": tune.choice([None, 30, 100]),
    # Logits are cosines over T. Above 1 all prototypes look alike to the softmax, below 0.1 only the nearest counts.
    "method.prototype_temperature": tune.loguniform(0.1, 1.0),
    # The same, over groups. Contrastive losses are usual from 0.05 to 0.2.
    "method.group_temperature": tune.loguniform(0.03, 0.5),
    # In steps of about three in what an update adds: 0.1, 0.03, 0.01, 0.003, 0.001.
    "method.group_momentum": tune.choice([0.9, 0.97, 0.99, 0.997, 0.999]),
    # Steps. null is as many as there are groups; the reference's notes go from 4 to 20. An epoch of digits has 14.
    "method.reset_every": tune.choice([None, 30, 100, 300, 1000]),
    # 0.986 is the product of the reference's two moves a step. Slower than 0.999, the target lags in short runs.
    "method.target_momentum": tune.choice([0.97, 0.986, 0.996, 0.999]),
    # On features that are not normalised, of length 1 to 10: from no visible effect to hiding a tenth of them.
    "method.latent_noise": tune.loguniform(0.0001, 0.1),
}

# The paper's, and those that this search found for digits. The preset's own values come before them, where the space
# holds them.
FIRST = [
    {
        "method.prototype_weight": 0.1,
        "method.group_weight": 0.3,
        "optim.warmup_epochs": 8,
        "method.num_groups": None,
        "method.prototype_temperature": 0.5,
        "method.group_temperature": 0.1,
        "method.group_momentum": 0.99,
        "method.reset_every": None,
        "method.target_momentum": 0.996,
        "method.latent_noise": 0.001,
    },
    {
        "method.prototype_weight": 0.99,
        "method.group_weight": 0.53,
        "optim.warmup_epochs": 24,
        "method.num_groups": 100,
        "method.prototype_temperature": 0.6,
        "method.group_temperature": 0.49,
        "method.group_momentum": 0.99,
        "method.reset_every": 100,
        "method.target_momentum": 0.97,
        "method.latent_noise": 0.042,
    },
]

OBJECTIVES = [("label_free", "max")]
