"""The objective of one step: the network on both views of a batch, and the weighted terms."""

import torch
from torch import Generator, Tensor

from export.trunk import MEAN_BGR, D2Net, FineHead

from . import objectives as o
from .config import Config
from .pairs import Pairs, sample, visible


def run_network(net: D2Net, images: Tensor, *, bfloat16: bool) -> tuple[Tensor, Tensor]:
    """Dense map and repeatability of B x 3 x H x W images of 0..255.

    The trunk runs in bfloat16 if so told; the fine head always in float32, whose resolution its peaks need.
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
        dense, full, half = net.dense_feature_extraction(centred(images))
    repeatability: Tensor = _fine_head(net)(full.float(), half.float())
    return dense, repeatability


def run_fine_head(net: D2Net, images: Tensor, *, bfloat16: bool) -> Tensor:
    """Repeatability alone: of the trunk, which gets no gradient, only the early layers are computed."""
    layers = net.dense_feature_extraction.model
    with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
        full = layers[:4](centred(images))
        half = layers[4:9](full)
    repeatability: Tensor = _fine_head(net)(full.float(), half.float())
    return repeatability


def centred(images: Tensor) -> Tensor:
    """B x 3 x H x W images of 0..255 as the network takes them, in channels-last layout."""
    inputs = images - torch.tensor(MEAN_BGR, device=images.device).view(3, 1, 1)
    return inputs.contiguous(memory_format=torch.channels_last)


def _fine_head(net: D2Net) -> FineHead:
    if net.fine is None:
        raise ValueError("training needs a network with the fine head")
    return net.fine


def losses(net: D2Net, pairs: Pairs, config: Config, generator: Generator) -> dict[str, Tensor]:
    """Every term of non-zero weight, unweighted, by name; each is symmetric in the two views."""
    count = len(pairs.first)
    images = torch.cat([pairs.first, pairs.second])
    denses = None
    if config.train == "fine":
        score = run_fine_head(net, images, bfloat16=config.bfloat16)
    else:
        dense, fine = run_network(net, images, bfloat16=config.bfloat16)
        score = o.fine_scores(dense, fine)
        denses = (dense[:count], dense[count:])
    scores = (score[:count], score[count:])
    forth = _one_way(pairs, scores, denses, config, generator)
    back = _one_way(pairs.swapped(), scores[::-1], denses and denses[::-1], config, generator)
    terms = {name: (forth[name] + back[name]) / 2 for name in forth}
    if config.weights.peakiness:
        terms["peakiness"] = o.peakiness(score, config.repeatability_window)
    return terms


def total(terms: dict[str, Tensor], config: Config) -> Tensor:
    """The weighted sum."""
    weighted = [getattr(config.weights, name) * value for name, value in terms.items()]
    return torch.stack(weighted).sum()


def _one_way(
    pairs: Pairs,
    scores: tuple[Tensor, Tensor],
    denses: tuple[Tensor, Tensor] | None,
    config: Config,
    generator: Generator,
) -> dict[str, Tensor]:
    """The terms with points of the first view."""
    weights = config.weights
    terms: dict[str, Tensor] = {}
    positions, shown = visible(pairs, margin=4.0)
    half = config.positions // 2
    peaks = o.window_peaks(scores[0], positions, shown, config.window, half, generator)
    found = torch.ones_like(peaks.valid)
    if denses is not None and (weights.match or weights.matchability or weights.triplet):
        points = peaks.joined(o.random_points(pairs.homography, shown, config.positions - half, generator))
        if weights.match or weights.matchability:
            loss, matched = o.info_nce(*denses, points, config.temperature, config.radius)
            found = matched[:, : found.shape[1]]
            if weights.match:
                terms["match"] = o.mean_where(loss, points.valid)
        if weights.triplet:
            terms["triplet"] = o.triplet(*denses, points, config.radius)
    if weights.matchability:
        terms["matchability"] = o.matchability(*scores, peaks, found, config.within)
    if weights.repeatability or weights.coincidence:
        warped = sample(scores[1], positions)
        if weights.repeatability:
            terms["repeatability"] = o.repeatability(scores[0], warped, shown, config.repeatability_window)
        if weights.coincidence:
            terms["coincidence"] = o.coincidence(
                scores[0], warped, shown, config.window, config.sharpness, config.tolerance, generator
            )
    if weights.reprojection:
        terms["reprojection"] = o.reprojection(*scores, peaks, pairs.homography, config.sharpness)
    return terms
