"""A network without taste: its filters are symmetric, so that every bias it shows is the graph's geometry.

Trained filters move a keypoint of their own accord (a corner seen from the left is not one seen from the
right); here each layer only smooths the brightness, and the detection of a blob is its centre.
"""

from pathlib import Path

import torch

from export.checkpoint import TRUNK_LAYERS
from export.trunk import D2Net

WIDTHS = (4, 4, 4, 8)


def write_symmetric_checkpoint(path: Path, *, fine: bool) -> Path:
    """Write a checkpoint of our format (fine head) or of the official one (paper's head) to `path`."""
    net = D2Net(WIDTHS, fine=4 if fine else 0, descriptor_relu=not fine)
    smooth = torch.tensor([1.0, 2.0, 1.0])
    kernel = torch.outer(smooth, smooth) / 16
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        layers = net.dense_feature_extraction.model
        for place in TRUNK_LAYERS:
            layers[place].weight[0, 0] = kernel
        layers[0].weight[0] = kernel / 3  # of the three colours
        layers[0].bias[0] = 115.0  # the mean that was subtracted: brightness stays positive
        layers[TRUNK_LAYERS[-1]].bias[0] = -42.0  # only what is brighter than the ground remains
        if net.fine is not None:
            net.fine.a.weight[0, 0, 1, 1] = 1 / 50
            net.fine.c.weight[0, 0, 1, 1] = 1.0
    content: dict[str, object] = {"model": net.state_dict()}
    if fine:
        content["d2feat"] = {"name": "symmetric", "head": "fine", "descriptor_relu": False}
    torch.save(content, path)
    return path
