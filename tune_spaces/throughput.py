"""Speed: how many images a second, at clusters that are no worse.

    digpro tune --space tune_spaces/throughput.py --preset cifar10 --trials 12 --concurrent 1

`torch.compile` is not searched: on two CPU cores the digits step takes 1.1 times as long with it, after a minute and
more of compiling, and on GPUs it has not been tried.

One trial at a time, because trials that share a machine slow each other down. The learning rate follows the batch
automatically (`optim.lr` is at a batch of 256). Of trials whose clusters are about equally good, the fastest is the
best.

Not judged by the loss, which does not show the progress of a run: it falls in the warm-up, rises when the prototype
loss starts, and falls again. On digits, after the 10 epochs below, a batch of 256 had a loss of -0.28 and an ACC of
0.64, one of 128 a loss of -0.12 and an ACC of 0.76; `label_free` was 0.45 and 0.59.
"""

from ray import tune

SPACE = {
    # Over all workers. Small batches leave a GPU idle; few clusters have members in a batch below 64.
    "optim.batch_size": tune.choice([64, 128, 256, 512, 1024]),
    # bfloat16 is twice as fast on GPUs that have it, and slower on most CPUs.
    "optim.precision": tune.choice(["float32", "bfloat16"]),
    # Images per worker and forward pass of the E-step, which keeps no gradients and so has room for more.
    "estep.batch_size": tune.choice([256, 512, 2048]),
}

# The paper's batch, and this repository's defaults for the rest.
FIRST = [
    {
        "optim.batch_size": 256,
        "optim.precision": "float32",
        "estep.batch_size": 512,
    },
]

OBJECTIVES = [("label_free", "max"), ("images_per_second", "max")]

# Speed shows in a few epochs, and so do clusters that a batch makes worse.
SETTINGS = {"optim.epochs": 10, "optim.warmup_epochs": 1}
