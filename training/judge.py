"""A small deterministic judgement: pairs with exact truth, made of photographs kept out of training.

Detection and description are those of `export.head`, single scale. MMA@t is the fraction of mutual
nearest neighbours whose reprojection error is at most t px, averaged over pairs.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

import torch
from torch import Generator, Tensor

from export import head
from export.trunk import D2Net

from .config import Geometry, Light
from .loss import run_network
from .objectives import ORIGIN
from .pairs import Correspondence, Pairs, make_pairs
from .photos import Photos

SIZE: Final = (240, 320)
"""Height and width of the judged views, px."""

KEYPOINTS: Final = 512
"""Best by score that are kept: as dense as 2048 in 640 x 480, so detectors are compared at equal numbers."""

STILL: Final = Geometry(
    rotation=0, strong_share=0, zoom=1, perspective=0, stretch=1, shift=0, coarsest=(0.9, 1.1)
)
MOVED: Final = Geometry(
    rotation=15, strong_rotation=45, strong_share=0.2, zoom=1.8, perspective=0.25, stretch=1.2, shift=0.1,
    coarsest=(0.9, 1.3),
)  # fmt: skip
HARD_LIGHT: Final = Light(share=0.6, night=0.1)
MILD_LIGHT: Final = Light(
    exposure=0.3, gamma=1.2, colour=0.1, shade=0.2, blur=0.7, noise=4, blocks=4, night=0
)


@dataclass(frozen=True)
class Judgement:
    """Figures over the pairs of one kind: MMA@1, @3, keypoints an image, mutual matches a pair."""

    mma1: float
    mma3: float
    keypoints: float
    matches: float

    def __str__(self) -> str:
        return f"{self.mma1:.3f}/{self.mma3:.3f} of {self.matches:.0f} ({self.keypoints:.0f} keypoints)"


def judge(net: D2Net, photos: Photos, pairs: int = 24, *, bfloat16: bool = False) -> dict[str, Judgement]:
    """Judge `net` on `pairs` pairs of each kind, "light" and "viewpoint", always the same of `photos`.

    `bfloat16` runs the trunk (never the fine head) in that precision: faster, and nearly the same figures.
    """
    kinds = {"light": (STILL, HARD_LIGHT), "viewpoint": (MOVED, MILD_LIGHT)}
    was_training = net.training
    net.eval()
    result = {}
    with torch.inference_mode():
        for kind, (geometry, light) in kinds.items():
            seed = int(hashlib.sha256(kind.encode()).hexdigest()[:8], 16)
            generator = Generator().manual_seed(seed)
            # Made on the CPU, so that every device judges by the same pixels.
            made = make_pairs(photos.to(torch.device("cpu")), pairs, SIZE, geometry, light, generator)
            result[kind] = _judge_pairs(net, made, bfloat16)
    net.train(was_training)
    return result


def _judge_pairs(net: D2Net, pairs: Pairs, bfloat16: bool) -> Judgement:
    rows = []
    for i in range(len(pairs.first)):
        one, two = (
            features(net, image[i : i + 1], bfloat16=bfloat16) for image in (pairs.first, pairs.second)
        )
        matches = mutual_nearest(one[1], two[1])
        error = reprojection_errors(pairs.forth, i, one[0][matches[:, 0]], two[0][matches[:, 1]])
        within = [float((error <= t).float().mean()) if len(error) else 0.0 for t in (1.0, 3.0)]
        rows.append([*within, (len(one[0]) + len(two[0])) / 2, float(len(matches))])
    return Judgement(*torch.tensor(rows).mean(0).tolist())


def features(
    net: D2Net, image: Tensor, keypoints: int = KEYPOINTS, *, bfloat16: bool = False
) -> tuple[Tensor, Tensor]:
    """N x 2 pixel positions and N x C descriptors, on the CPU, of a 1 x 3 x H x W image of 0..255."""
    device = next(net.parameters()).device
    dense, repeatability = run_network(net, image.to(device), bfloat16=bfloat16)
    one = dense[0].float().cpu()
    h, w = one.shape[1:]
    rows = one.permute(1, 2, 0).reshape(h * w, -1)
    found = head.detect_fine(rows, h, w, repeatability.float().cpu(), image[0].cpu(), ORIGIN)
    best = found.scores.topk(min(keypoints, len(found.scores))).indices
    return found.pixels[best], head.describe(rows, h, w, found.cells[best])


def mutual_nearest(one: Tensor, two: Tensor) -> Tensor:
    """M x 2 indices of unit descriptors that are each other's nearest by cosine."""
    if not len(one) or not len(two):
        return torch.zeros((0, 2), dtype=torch.int64)
    similarity = one @ two.T
    forth, back = similarity.argmax(1), similarity.argmax(0)
    index = torch.arange(len(one))
    mutual = back[forth] == index
    return torch.stack([index[mutual], forth[mutual]], dim=1)


def reprojection_errors(truth: Correspondence, pair: int, first: Tensor, second: Tensor) -> Tensor:
    """N distances, px, of N x 2 points of the first view, carried over by one pair's truth, from N x 2."""
    carried, _ = Correspondence(*(maps[pair : pair + 1] for maps in truth)).at(first[None])
    errors: Tensor = torch.linalg.vector_norm(carried[0] - second, dim=1)
    return errors
