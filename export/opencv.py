"""The network and the fine head for OpenCV 5's own classes, cv::DISK and cv::ALIKED (docs/native-opencv.md).

They run a file in OpenCV's DNN engine, from C++ or Python, without ONNX Runtime. Its tensors have fixed sizes
of one dimension or more, so the image's size and the number of keypoints are fixed here (`export.fixed`).
"""

from typing import Final, Literal, get_args

import onnx
import torch
from onnx import ModelProto, helper
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .fixed import check_fixed, fixed_features
from .graph import export_static
from .trunk import MEAN_BGR, D2Net

Contract = Literal["disk", "aliked"]
CONTRACTS: Final[tuple[str, ...]] = get_args(Contract)

MULTIPLE: Final = 16
"""cv::DISK takes images whose sides are multiples of this."""

SMALLEST: Final = 64


class NativeFeature(nn.Module):
    """Detection and description of an image of one size, with the inputs and outputs of one contract.

    Args:
        net: a network with a fine head.
        size: (width, height) of the image.
        nfeatures: rows of the outputs.
        contract: "disk" or "aliked".
    """

    def __init__(self, net: D2Net, size: tuple[int, int], nfeatures: int, contract: Contract) -> None:
        super().__init__()
        self.net, self.size, self.nfeatures, self.contract = net, size, nfeatures, contract

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keypoints, scores and descriptors, best first, of a 1 x 3 x H x W image, RGB in [0, 1].

        Where there are fewer than wanted, the last one is repeated, with a score of 0.
        """
        mean = torch.tensor(MEAN_BGR).view(1, 3, 1, 1)
        level = torch.cat([image[:, 2:], image[:, 1:2], image[:, :1]], dim=1) * 255 - mean
        dense, repeatability = self.net(level)
        pixels, scores, descriptors = fixed_features(dense, repeatability, level, self.nfeatures)
        if self.contract == "disk":
            return torch.floor(pixels + 0.5).long(), scores, descriptors
        side = torch.tensor(self.size, dtype=torch.float32)
        return pixels[0] * (2 / side) - 1, scores, descriptors[0]


def build_native(
    checkpoint: Checkpoint, size: tuple[int, int], nfeatures: int, contract: Contract
) -> ModelProto:
    """The ONNX model for OpenCV 5 of a checkpoint.

    Args:
        checkpoint: with a fine head.
        size: (width, height) in pixels, multiples of 16.
        nfeatures: keypoints that an image gives.
        contract: "disk" for cv::DISK, "aliked" for cv::ALIKED.

    Raises:
        ValueError: an argument is out of range, or the checkpoint has the paper's head.
    """
    width, height = size
    if contract not in CONTRACTS:
        raise ValueError(f"the contract is one of {', '.join(CONTRACTS)}, not {contract!r}")
    if min(size) < SMALLEST or width % MULTIPLE or height % MULTIPLE:
        raise ValueError(f"sizes are multiples of {MULTIPLE} from {SMALLEST}, not {width} x {height}")
    check_fixed(checkpoint, size, nfeatures)
    native = NativeFeature(checkpoint.net, size, nfeatures, contract)
    names = ["keypoints", "scores", "descriptors"]
    model = export_static(native, torch.zeros(1, 3, height, width), "image", names)
    helper.set_model_props(
        model, {**checkpoint.metadata, "contract": f"opencv-{contract}", "size": f"{width}x{height}"}
    )
    onnx.checker.check_model(model, full_check=True)
    return model
