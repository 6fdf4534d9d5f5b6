"""The network and the fine head for OpenCV 5's own classes, cv::DISK and cv::ALIKED (docs/native-opencv.md).

They run a file in OpenCV's DNN engine, from C++ or Python, without ONNX Runtime. Its tensors have fixed sizes
of one dimension or more, so the image's size and the number of keypoints are fixed here, and a dense map and
TopK take the place of the list of detections; network, head and descriptors are those of the other export.
"""

from typing import Final, Literal, get_args

import onnx
import torch
from onnx import ModelProto, helper
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .geometry import STRIDE, cell_origin
from .graph import export_static
from .head import FINE_BORDER, describe, fine_maxima, fine_scores, refine_fine, reliable
from .trunk import MEAN_BGR, D2Net

Contract = Literal["disk", "aliked"]
CONTRACTS: Final[tuple[str, ...]] = get_args(Contract)

MULTIPLE: Final = 16
"""cv::DISK takes images whose sides are multiples of this."""

SMALLEST: Final = 64

CANDIDATES: Final = 4
"""So many times the wanted number of maxima are looked at, for some turn out to be even surfaces."""


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
        self.origin = cell_origin("opencv")

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keypoints, scores and descriptors, best first, of a 1 x 3 x H x W image, RGB in [0, 1].

        Where there are fewer than wanted, the last one is repeated, with a score of 0.
        """
        width, height = self.size
        mean = torch.tensor(MEAN_BGR).view(1, 3, 1, 1)
        level = torch.cat([image[:, 2:], image[:, 1:2], image[:, :1]], dim=1) * 255 - mean
        dense, repeatability = self.net(level)
        h, w = dense.shape[2:]
        rows = dense[0].permute(1, 2, 0).reshape(h * w, dense.shape[1])
        score = fine_scores(rows, h, w, repeatability[0, 0], self.origin)

        inner = score[FINE_BORDER : height - FINE_BORDER, FINE_BORDER : width - FINE_BORDER]
        ranked = (inner * fine_maxima(score).float()).reshape(1, -1)
        values, found = torch.topk(ranked, CANDIDATES * self.nfeatures, dim=1)
        candidates = found[0]
        inner_width = width - 2 * FINE_BORDER
        y = torch.div(candidates, inner_width, rounding_mode="floor")
        x = candidates - y * inner_width + FINE_BORDER
        y = y + FINE_BORDER
        pixels, _, real = refine_fine(score, level[0], x, y)
        ranked = reliable(values[0] * real.float(), rows, h, w, (pixels - self.origin) / STRIDE)
        scores, best = torch.topk(ranked[None], self.nfeatures, dim=1)  # 0 where there is no maximum

        count = (scores > 0).float().sum(dim=1)
        row = torch.minimum(torch.arange(self.nfeatures).float(), (count - 1).clamp(min=0)).long()
        pixels = pixels[best[0][row]]
        descriptors = describe(rows, h, w, (pixels - self.origin) / STRIDE)
        if self.contract == "disk":
            return torch.floor(pixels + 0.5).long()[None], scores, descriptors[None]
        side = torch.tensor([width, height], dtype=torch.float32)
        return pixels * (2 / side) - 1, scores[0], descriptors


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
    most = (width - 2 * FINE_BORDER) * (height - 2 * FINE_BORDER) // CANDIDATES
    if not 1 <= nfeatures <= most:
        raise ValueError(f"{width} x {height} pixels give 1 to {most} keypoints, not {nfeatures}")
    if checkpoint.net.fine is None:
        raise ValueError("only networks with a fine head can be exported for OpenCV, not the paper's")
    native = NativeFeature(checkpoint.net, size, nfeatures, contract)
    names = ["keypoints", "scores", "descriptors"]
    model = export_static(native, torch.zeros(1, 3, height, width), "image", names)
    helper.set_model_props(
        model, {**checkpoint.metadata, "contract": f"opencv-{contract}", "size": f"{width}x{height}"}
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of a text such as 640x480.

    Raises:
        ValueError: it is another text.
    """
    try:
        width, height = map(int, text.lower().split("x"))
    except ValueError:
        raise ValueError(f"a size is written as 640x480, not {text!r}") from None
    return width, height
