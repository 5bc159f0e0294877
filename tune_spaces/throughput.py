"""Speed: how many images a second, at a loss that is no worse.

    digpro tune --space tune_spaces/throughput.py --preset cifar10 --trials 12 --concurrent 1

One trial at a time, because trials that share a machine slow each other down. The learning rate follows the batch by
itself (`optim.lr` is at a batch of 256). Of trials whose losses are about equal, the fastest is the best.
"""

from ray import tune

SPACE = {
    # Over all workers. Small batches leave a GPU idle; few clusters have members in a batch below 64.
    "optim.batch_size": tune.choice([64, 128, 256, 512, 1024]),
    # bfloat16 is twice as fast on GPUs that have it, and slower on most CPUs.
    "optim.precision": tune.choice(["float32", "bfloat16"]),
    # Images per worker and forward pass of the E-step, which keeps no gradients and so has room for more.
    "estep.batch_size": tune.choice([256, 512, 2048]),
    # Streaming mode only (--set data.mode=streaming): a larger buffer shuffles better, and fills more slowly.
    "data.shuffle_buffer": tune.choice([1024, 8192, 65536]),
}

# The paper's batch, and what this repository makes of the rest.
FIRST = [
    {"optim.batch_size": 256, "optim.precision": "float32", "estep.batch_size": 512, "data.shuffle_buffer": 8192},
]

OBJECTIVES = [("loss", "min"), ("images_per_second", "max")]

# Speed shows in a few epochs, and so does a loss that a batch makes worse.
SETTINGS = {"optim.epochs": 10, "optim.warmup_epochs": 1}
