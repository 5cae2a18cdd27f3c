"""The parameter rule for the second repository's names (version `fused`), on top of `weights_rule`.

The tables here come first (the first key that occurs in the name wins). Integer and constant buffers:
`num_batches_tracked` and `mask_pred._iter` are 0, `mask_pred.sizes_of_interest` is 64 128 256 512 1024.
"""

import math

import numpy as np

from golden import weights_rule as base

normal = base.normal

CONV_GAIN = (
    ("bottom_up.stem.conv1", 0.02),
    ("shortcut", 1.0),
    ("fpn_lateral", 0.7),
    ("fpn_output", 1.0),
    ("top_block.p6", 1.0),
    ("top_block.p7", 1.4),
    ("fcos_head.ctrness", 1.0),
    ("margin_conv", 8.0),  # its input is divided by 32
    ("embed_conv", 1.4),
    ("margin_head", 2.0),  # spatial_margin_head, free_margin_head
    ("embed_head", 0.28),  # proposal_head.embed_head.*, pixel_head.*
    ("mask_branch.refine", 1.0),
    ("mask_branch.tower.0", 0.7),
    ("mask_branch.tower.4", 0.6),
    ("mask_branch.tower", 1.4),
    ("mask_branch.seg_head", 1.4),
    ("mask_branch.logits", 2.0),
)
BIAS_OFFSET = (
    ("margin_head", math.log(math.log(2.0) / 4.0)),
    ("mask_branch.logits", -4.0),
)


def make_tensor(name, shape, seed=0):
    shape = tuple(shape)
    if name.endswith(".num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name == "mask_pred._iter":
        return np.zeros(shape, np.float32)
    if name == "mask_pred.sizes_of_interest":
        return np.array([64, 128, 256, 512, 1024], np.int64)
    if name.endswith(".weight") and len(shape) == 4:
        for key, gain in CONV_GAIN:
            if key in name:
                scale = gain / math.sqrt(shape[1] * shape[2] * shape[3])
                return (np.float32(0.0) + np.float32(scale) * normal(name, shape, seed)).astype(np.float32)
    if name.endswith(".bias"):
        for key, off in BIAS_OFFSET:
            if key in name:
                return (np.float32(off) + np.float32(0.1) * normal(name, shape, seed)).astype(np.float32)
    return base.make_tensor(name, shape, seed)


def make_state(shapes, seed=0):
    """{official name: shape} -> {official name: array}"""
    return {n: make_tensor(n, s, seed) for n, s in shapes.items()}
