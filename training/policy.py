"""Reward for correct matches by policy gradient (DISK, Tyszkiewicz et al. 2020)."""

from typing import Final, NamedTuple

import torch
from torch import Generator, Tensor

from .objectives import TINY, descriptors, grid_offset, grid_windows
from .pairs import Correspondence

TRUE, FALSE, KEYPOINT = 1.0, -0.25, -0.001
"""Rewards of a true match, of a false one, and of every keypoint (DISK, section 3.2)."""

REACH: Final = 1.5
"""Pixels by which a true match may be off (DISK's epsilon)."""


class Draw(NamedTuple):
    """One keypoint proposed in each of L windows.

    Attributes:
        points: B x L x 2, (x, y) in pixels. kept: B x L bool, whether the proposal was accepted.
        log_probability: B x L, of proposing and accepting it; differentiable.
    """

    points: Tensor
    kept: Tensor
    log_probability: Tensor


def draw_keypoints(score: Tensor, window: int, sharpness: float, generator: Generator) -> Draw:
    """Draw keypoints of B x 1 x H x W scores in (0, 1] (DISK, section 3.1).

    In every cell of a randomly placed grid one pixel is proposed by softmax(sharpness log S), and accepted
    with probability S there: S is to be the chance that it is found again and matched.
    """
    top, left = grid_offset(window, generator)
    logs = grid_windows(score.clamp(1e-4, 1 - 1e-4).log(), window, (top, left))
    columns = (score.shape[3] - left) // window
    proposal = torch.log_softmax(sharpness * logs, dim=2)
    # A network gone bad scores NaN: the trainer finds out by the loss.
    weight = torch.nan_to_num(proposal.detach().exp(), nan=1.0)
    place = torch.multinomial(weight.flatten(0, 1), 1, generator=generator).view(*logs.shape[:2], 1)
    accepted = logs.gather(2, place)
    kept = torch.rand(accepted.shape, generator=generator, device=score.device) < accepted.exp()
    cell = torch.arange(logs.shape[1], device=score.device)
    x = left + window * (cell % columns) + place[..., 0] % window
    y = top + window * (cell // columns) + place[..., 0] // window
    log_probability = (proposal.gather(2, place) + accepted)[..., 0]
    return Draw(torch.stack([x, y], dim=2).float(), kept[..., 0], log_probability)


def policy(
    scores: tuple[Tensor, Tensor],
    denses: tuple[Tensor, Tensor],
    truth: Correspondence,
    window: int,
    sharpness: float,
    temperature: float,
    generator: Generator,
) -> Tensor:
    """Minus the expected reward of matching drawn keypoints, per window (DISK, section 3.3).

    The value is minus the reward of this draw, expected over matches: each view's keypoints choose among the
    other's by softmax(cosine / temperature), and both must agree. Its gradient is REINFORCE's for the
    positions, and the exact one for the descriptors. Keypoints whose counterpart is not known give neither
    reward nor punishment.
    """
    one, two = (draw_keypoints(score, window, sharpness, generator) for score in scores)
    carried, known = truth.at(one.points)
    reward = torch.where(torch.cdist(carried, two.points) <= REACH, TRUE, FALSE) * known.unsqueeze(2)
    similarity = descriptors(denses[0], one.points) @ descriptors(denses[1], two.points).mT / temperature
    gone = ~(one.kept.unsqueeze(2) & two.kept.unsqueeze(1))
    similarity = similarity.masked_fill(gone, -1 / TINY)
    matched = torch.softmax(similarity, 2) * torch.softmax(similarity, 1) * ~gone
    rewards = reward * matched
    drawn = one.log_probability.unsqueeze(2) + two.log_probability.unsqueeze(1)
    both = torch.cat([one.log_probability * one.kept, two.log_probability * two.kept], 1)
    # The second part has the gradient of REINFORCE and the value 0.
    surrogate = (rewards.detach() * drawn).sum() + KEYPOINT * both.sum()
    return -(rewards.sum() + surrogate - surrogate.detach()) / one.kept.numel()
