"""Augmentation: how far two views of an image may differ.

    digpro tune --space tune_spaces/views.py --preset uc-merced --trials 30

Not judged by `label_free`: a part of it is the agreement of views, which milder augmentation gives without learning.
The silhouette and the balance of the clusters are measured on images without augmentation. With classes, use
OBJECTIVES = [("acc", "max")].
"""

from ray import tune

SPACE = {
    # Smallest crop, as a part of the image. SimCLR's 0.08 suits photographs; beyond 0.6 two crops are nearly the same.
    "views.crop_scale.0": tune.uniform(0.08, 0.6),
    # Degrees. For images without an upright: from the air, through a microscope. Digits turn into others beyond 30.
    "views.rotation": tune.uniform(0.0, 45.0),
    # 0 where left and right matter, as in writing.
    "views.horizontal_flip": tune.choice([0.0, 0.5]),
    # 0.5 for images from above.
    "views.vertical_flip": tune.choice([0.0, 0.5]),
    # The colour jitter's strengths: none, to twice SimCLR's for small images.
    "views.brightness": tune.uniform(0.0, 0.8),
    "views.contrast": tune.uniform(0.0, 0.8),
    "views.saturation": tune.uniform(0.0, 0.8),
    # 0.2 is two fifths of the colour circle, both directions together: beyond that, colour says nothing.
    "views.hue": tune.uniform(0.0, 0.2),
    # Removes colour altogether, which is right when clusters must not be colours.
    "views.grayscale": tune.uniform(0.0, 0.5),
    # Off in the reference. On images of 32 pixels and less it removes more than it gives.
    "views.blur": tune.uniform(0.0, 0.5),
}

# The paper's, which are SimCLR's without blur.
FIRST = [
    {
        "views.crop_scale.0": 0.08,
        "views.rotation": 0.0,
        "views.horizontal_flip": 0.5,
        "views.vertical_flip": 0.0,
        "views.brightness": 0.4,
        "views.contrast": 0.4,
        "views.saturation": 0.4,
        "views.hue": 0.1,
        "views.grayscale": 0.2,
        "views.blur": 0.0,
    }
]

OBJECTIVES = [("silhouette", "max"), ("size_entropy", "max")]
