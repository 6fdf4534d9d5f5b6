"""Networks of other widths out of trained ones, and dead channels begun anew: starts for training."""

import copy
from collections.abc import Sequence
from typing import Final, cast

import numpy as np
import torch
from torch import Tensor, nn

from export.checkpoint import TRUNK_LAYERS
from export.trunk import D2Net, FineHead

BLOCKS: Final = (0, 0, 1, 1, 2, 2, 2, 3, 3, 3)
"""The block, and so the entry of `widths`, of every convolution."""


def narrow(net: D2Net, widths: Sequence[int], fine: int, images: Tensor) -> D2Net:
    """Keep of every layer the channels that matter most, and scale what is left to the old level.

    A channel matters by the standard deviation of its output times the norm of the weights that read it
    (after Molchanov et al. 2019, without the gradients). What the others contributed is missing, so every
    layer is scaled until the mean deviation of its outputs is that of the same channels in `net`
    (LSUV, Mishkin and Matas 2016).

    Args:
        net: a network with a fine head.
        widths, fine: of the new network, see `export.trunk.D2Net`; none larger than the old one's.
        images: B x 3 x H x W, as the network takes them.

    Raises:
        ValueError: `net` has no fine head or is narrower.
    """
    if net.fine is None:
        raise ValueError("only a network with a fine head can be made narrower")
    if any(new > have for new, have in zip((*widths, fine), channels(net), strict=True)):
        raise ValueError(f"channels {(*widths, fine)} are not all within the network's {channels(net)}")
    small = D2Net(widths, fine=fine, fine_stride=net.fine.stride, descriptor_relu=net.descriptor_relu)
    wide, layers = net.dense_feature_extraction.model, small.dense_feature_extraction.model
    wide_convs, convs = _convolutions(net), _convolutions(small)
    inputs = torch.arange(3)
    maps, thin = images, images
    kept: list[Tensor] = []
    with torch.no_grad():
        for i, place in enumerate(TRUNK_LAYERS):
            before = 0 if i == 0 else TRUNK_LAYERS[i - 1] + 1
            maps, thin = wide[before : place + 1](maps), layers[before:place](thin)
            deviation = maps.std((0, 2, 3))
            importance = deviation
            if i + 1 < len(TRUNK_LAYERS):
                importance = deviation * wide_convs[i + 1].weight.square().sum((0, 2, 3)).sqrt()
            chosen = importance.topk(widths[BLOCKS[i]]).indices.sort().values
            _take(convs[i], wide_convs[i], chosen, inputs)
            convs[i].weight *= deviation[chosen].mean() / convs[i](thin).std((0, 2, 3)).mean()
            thin = convs[i](thin)
            kept.append(chosen)
            inputs = chosen
        _narrow_fine_head(small, net, (kept[1], kept[3], kept[6]), images)
    return small.eval().requires_grad_(False)


def widen_fine_head(net: D2Net, fine: int, seed: int = 0) -> D2Net:
    """The same function with a fine head of more channels, for training to make use of.

    The new channels of its first layers are random, with the old ones' deviation; `c` does not read them yet.

    Args:
        net: a network with a fine head.
        fine: channels of the new one; no fewer than the old one's.
        seed: of the new channels.

    Raises:
        ValueError: `net` has no fine head, or a wider one.
    """
    have = channels(net)[-1]
    if net.fine is None or fine < have:
        raise ValueError(f"a fine head of {have} channels cannot be made one of {fine} by widening")
    wide = _with_trunk(net, fine, net.fine.stride)
    assert wide.fine is not None
    with torch.no_grad():
        for new, old in _first_layers(wide.fine, net.fine):
            _put(new, old, (slice(have), slice(None)))
        _put(wide.fine.c, net.fine.c, (slice(None), slice(have)))
        _start(wide.fine, torch.arange(have, fine), net.fine, seed)
    return wide.eval().requires_grad_(False)


def stride_fine_head(net: D2Net) -> D2Net:
    """The network with a fine head of stride 2 (`export.trunk.FineHead`), for training to sharpen.

    Its hidden layer begins as the mean of 2 x 2 pixels of the old one's, but for the ReLU and the other maps'
    interpolation, and `c` reads it as the old one would if these pixels were alike.

    Args:
        net: a network with a fine head of stride 1.

    Raises:
        ValueError: `net` has another head.
    """
    if net.fine is None or net.fine.stride != 1:
        raise ValueError("only a fine head of stride 1 can be made one of stride 2")
    strided = _with_trunk(net, net.fine.c.in_channels, 2)
    weights = net.fine.state_dict()
    first, last = weights["a.weight"], weights["c.weight"]
    mean = first.new_zeros(*first.shape[:2], 4, 4)
    four = last.new_zeros(4, *last.shape[1:])
    for y, x in np.ndindex(2, 2):  # of the four pixels
        mean[:, :, y : y + 3, x : x + 3] += first / 4
        for dy, dx in np.ndindex(3, 3):
            # This tap reads pixel (y + dy - 1, x + dx - 1), which is in this cell, counted from -1 on.
            four[2 * y + x, :, (y + dy + 1) // 2, (x + dx + 1) // 2] += last[0, :, dy, dx]
    assert strided.fine is not None
    strided.fine.load_state_dict(
        {**weights, "a.weight": mean, "c.weight": four, "c.bias": weights["c.bias"].expand(4)}
    )
    return strided.eval().requires_grad_(False)


def revive_fine_head(net: D2Net, images: Tensor, seed: int = 0) -> D2Net:
    """The same function, but for channels of the fine head that never answer: these begin anew.

    A step too large can leave a channel negative everywhere, where a ReLU has no gradient; it stays so.

    Args:
        net: a network with a fine head.
        images: B x 3 x H x W, as the network takes them, H and W even; what is 0 on all of them is dead.
        seed: of the new weights.
    """
    assert net.fine is not None
    revived = copy.deepcopy(net)
    assert revived.fine is not None
    with torch.no_grad():
        maps = net.dense_feature_extraction(images)
        answers = net.fine.hidden(*maps[1:]).amax((0, 2, 3))
        alive = torch.nonzero(answers > 0).squeeze(1)
        if len(alive):  # else there is nothing to take the new weights' size from
            _start(revived.fine, torch.nonzero(answers == 0).squeeze(1), net.fine, seed, alive)
    return revived


def _with_trunk(net: D2Net, fine: int, stride: int) -> D2Net:
    """The network with another fine head, of random weights."""
    *widths, _ = channels(net)
    other = D2Net(widths, fine=fine, fine_stride=stride, descriptor_relu=net.descriptor_relu)
    other.dense_feature_extraction.load_state_dict(net.dense_feature_extraction.state_dict())
    return other


def channels(net: D2Net) -> tuple[int, ...]:
    """Channels of the four blocks and of the fine head (0 without one)."""
    convs = _convolutions(net)
    widths = (convs[BLOCKS.index(block)].out_channels for block in range(4))
    return (*widths, 0 if net.fine is None else net.fine.c.in_channels)


def _convolutions(net: D2Net) -> list[nn.Conv2d]:
    return [cast(nn.Conv2d, net.dense_feature_extraction.model[place]) for place in TRUNK_LAYERS]


def _narrow_fine_head(small: D2Net, net: D2Net, kept: Sequence[Tensor], images: Tensor) -> None:
    """`kept`: the channels that are left of the three maps that the fine head reads."""
    assert net.fine is not None
    assert small.fine is not None
    maps = net.dense_feature_extraction(images)
    deviation = net.fine.hidden(*maps[1:]).std((0, 2, 3))
    importance = deviation * net.fine.c.weight.square().sum((0, 2, 3)).sqrt()
    chosen = importance.topk(small.fine.c.in_channels).indices.sort().values
    for (new, old), inputs in zip(_first_layers(small.fine, net.fine), kept, strict=True):
        _take(new, old, chosen, inputs)
    _take(small.fine.c, net.fine.c, torch.arange(net.fine.c.out_channels), chosen)


def _take(new: nn.Conv2d, old: nn.Conv2d, outputs: Tensor, inputs: Tensor) -> None:
    assert new.bias is not None
    assert old.bias is not None
    new.weight.copy_(old.weight[outputs][:, inputs])
    new.bias.copy_(old.bias[outputs])


def _start(new: FineHead, places: Tensor, old: FineHead, seed: int, like: Tensor | None = None) -> None:
    """Random weights for hidden channels, as large as those of `old` (of its channels `like`), yet unread."""
    random = torch.Generator().manual_seed(seed)
    for conv, model in _first_layers(new, old):
        assert conv.bias is not None
        weight = model.weight if like is None else model.weight[like]
        drawn = torch.randn((len(places), *weight.shape[1:]), generator=random)
        conv.weight[places] = float(weight.std()) * drawn
        conv.bias[places] = 0
    new.c.weight[:, places] = 0


def _first_layers(one: FineHead, other: FineHead) -> list[tuple[nn.Conv2d, nn.Conv2d]]:
    return [(one.a, other.a), (one.b, other.b), (one.d, other.d)]


def _put(new: nn.Conv2d, old: nn.Conv2d, place: tuple[slice, slice]) -> None:
    assert new.bias is not None
    assert old.bias is not None
    new.weight[place] = old.weight
    new.bias[place[0]] = old.bias
