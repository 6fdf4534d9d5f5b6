"""The objective of one step: the network on both views of a batch, and the weighted terms."""

import torch
from torch import Generator, Tensor

from export.trunk import MEAN_BGR, D2Net, FineHead

from . import labels as labelling
from . import objectives as o
from .config import Config, Geometry
from .pairs import Pairs, correspondence, random_views, sample, view
from .policy import policy

ADAPTATION = Geometry(
    rotation=20, strong_share=0, zoom=1.5, perspective=0.2, stretch=1.2, shift=0.05, coarsest=(0.8, 1.2)
)
"""The homographies of homographic adaptation: an image as seen from a little elsewhere."""


def run_network(net: D2Net, images: Tensor, *, bfloat16: bool) -> tuple[Tensor, Tensor]:
    """Dense map and repeatability of B x 3 x H x W images of 0..255.

    The trunk runs in bfloat16 if so told; the fine head always in float32, whose resolution its peaks need.
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
        maps = net.dense_feature_extraction(centred(images))
    repeatability: Tensor = _fine_head(net)(*(early.float() for early in maps[1:]))
    return maps.dense, repeatability


def run_fine_head(net: D2Net, images: Tensor, *, bfloat16: bool) -> Tensor:
    """Repeatability alone: of the trunk, which gets no gradient, only the early layers are computed."""
    with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
        maps = net.dense_feature_extraction.early(centred(images))
    repeatability: Tensor = _fine_head(net)(*(early.float() for early in maps))
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
    score, dense = _scores(net, images, config)
    scores = (score[:count], score[count:])
    denses = None if dense is None else (dense[:count], dense[count:])
    forth = _one_way(pairs, scores, denses, config, generator)
    back = _one_way(pairs.swapped(), scores[::-1], denses and denses[::-1], config, generator)
    terms = {name: (forth[name] + back[name]) / 2 for name in forth}
    if config.weights.peakiness:
        terms["peakiness"] = o.peakiness(score, config.repeatability_window)
    if config.weights.adaptation:
        labels = labelling.best_maxima(adapted_scores(net, images, score, config, generator))
        terms["adaptation"] = labelling.adaptation(score, labels, config.window, generator)
    return terms


def total(terms: dict[str, Tensor], config: Config) -> Tensor:
    """The weighted sum."""
    weighted = [getattr(config.weights, name) * value for name, value in terms.items()]
    return torch.stack(weighted).sum()


def adapted_scores(net: D2Net, images: Tensor, score: Tensor, config: Config, generator: Generator) -> Tensor:
    """The score of B x 3 x H x W images averaged over random homographies of them, B x 1 x H x W.

    Homographic adaptation (SuperPoint, section 5.2); `score` is that of the images themselves. Where a
    warped image does not show a pixel it has no vote.
    """
    height, width = images.shape[2:]
    sizes = torch.tensor([width, height], device=images.device).expand(len(images), 2)
    with torch.no_grad():
        sums, votes = score.detach().clone(), torch.ones_like(score)
        for _ in range(config.adaptations):
            _, to_image = random_views(sizes, (height, width), ADAPTATION, generator)
            warped, inside = view(images, sizes, to_image, (height, width), 1)
            back = correspondence(torch.linalg.inv(to_image), torch.ones_like(inside), inside)
            found, _ = _scores(net, warped, config)
            shown = back.shown.unsqueeze(1)
            sums += sample(found, back.positions) * shown
            votes += shown
    return sums / votes


def _scores(net: D2Net, images: Tensor, config: Config) -> tuple[Tensor, Tensor | None]:
    """The score whose maxima are detected, and the dense map unless the fine head is trained without it."""
    if config.train == "fine" and not (config.weights.multilevel or config.weights.policy):
        return run_fine_head(net, images, bfloat16=config.bfloat16), None
    dense, fine = run_network(net, images, bfloat16=config.bfloat16)
    return o.fine_scores(dense, fine), dense


def _one_way(
    pairs: Pairs,
    scores: tuple[Tensor, Tensor],
    denses: tuple[Tensor, Tensor] | None,
    config: Config,
    generator: Generator,
) -> dict[str, Tensor]:
    """The terms with points of the first view."""
    weights, truth = config.weights, pairs.forth
    terms: dict[str, Tensor] = {}
    half = config.positions // 2
    peaks = o.window_peaks(scores[0], truth, config.window, half, generator)
    found = torch.ones_like(peaks.valid)
    if denses is not None:
        points = peaks.joined(o.random_points(truth, config.positions - half, generator))
        if weights.match or weights.matchability or weights.multilevel or weights.evolution:
            loss, matched = o.info_nce(*denses, points, pairs.scene, config.temperature, config.radius)
            found = matched[:, : found.shape[1]]
            if weights.match:
                terms["match"] = o.mean_where(loss, points.valid)
            if weights.multilevel:
                terms["multilevel"] = o.multilevel(loss, scores, denses, points)
        if weights.triplet:
            terms["triplet"] = o.triplet(*denses, points, config.radius)
        if weights.policy:
            terms["policy"] = policy(
                scores, denses, truth, config.window, config.sharpness, config.temperature, generator
            )
    if weights.matchability:
        terms["matchability"] = o.matchability(*scores, peaks, found, config.within)
    if weights.evolution:
        good = o.found_again(scores[1], peaks, found, config.within)
        terms["evolution"] = labelling.evolution(scores[0], peaks, good)
    if weights.repeatability or weights.coincidence or weights.warped_target:
        warped = sample(scores[1], truth.positions)
        if weights.repeatability:
            terms["repeatability"] = o.repeatability(
                scores[0], warped, truth.shown, config.repeatability_window
            )
        if weights.coincidence:
            terms["coincidence"] = o.coincidence(
                scores[0], warped, truth.shown, config.window, config.sharpness, config.tolerance, generator
            )
        if weights.warped_target:
            terms["warped_target"] = labelling.warped_target(scores[0], warped, truth.shown)
    if weights.reprojection:
        terms["reprojection"] = o.reprojection(*scores, peaks, truth)
    return terms
