"""Detection on the dense map: the paper's head, the fine head, and descriptors between cells.

Upstream computes Hessians and Newton steps for all 512 channels; only those of the winning channel are
ever used. Here the winner's 3x3 neighbourhood is gathered once (nine maps instead of six times 512) and
all arithmetic is done on that: the same detections at a hundredth of the memory.

Conventions: a dense map of h x w cells is passed as `rows`, (h w) x C, row-major, in single or half precision
(what is computed of it is in single); positions are (x, y), in cells or in pixels of the level as said.

Reference: Dusmanu et al., CVPR 2019, section 3 (equation numbers below).
"""

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import STRIDE

EDGE_RATIO: Final = 5.0
"""Largest ratio of principal curvatures of a detection (SIFT's edge test; upstream's value)."""

FINE_RADIUS: Final = 3
"""Fine detections are maxima of a window of 2 * 3 + 1 pixels."""

FINE_BORDER: Final = 6
"""Fine detections keep this distance, in pixels, from the border of the level."""

FINE_FLOOR: Final = 1e-6
"""D2 scores enter the fine score with at least this value, so that order survives where they are 0."""

CENTROID_RADIUS: Final = 2
"""A fine detection's position is the mean place of a window of 2 * 2 + 1 pixels."""

CENTROID_SPREAD: Final = 1.5
"""Sigma, in pixels, of the Gaussian that weights the window about that mean."""

CENTROID_STEPS: Final = 3
"""How often it is centred on the mean before."""

FLAT: Final = 1.0
"""Grey levels (of 255) by which some channel must vary about a fine detection: even surfaces have none."""

FLAT_OFFSETS: Final = (-6, -3, 0, 3, 6)
"""Where, in pixels from the detection along x and along y, that variation is looked for."""


class Detections(NamedTuple):
    """Keypoints of one pyramid level.

    Attributes:
        cells: N x 2, (x, y) in cells of the dense map.
        pixels: N x 2, (x, y) in pixels of the level.
        scores: N.
    """

    cells: Tensor
    pixels: Tensor
    scores: Tensor


class Peaks(NamedTuple):
    """Finite differences of 3x3 patches about their centres, any shape."""

    dx: Tensor
    dy: Tensor
    dxx: Tensor
    dyy: Tensor
    dxy: Tensor
    det: Tensor

    def newton_step(self) -> tuple[Tensor, Tensor]:
        """-H^-1 g as (x, y): where the quadratic through the patch has its extremum."""
        step_x = -(self.dyy * self.dx - self.dxy * self.dy) / self.det
        step_y = -(self.dxx * self.dy - self.dxy * self.dx) / self.det
        return step_x, step_y


def peaks(patches: Tensor) -> Peaks:
    """First and second differences of 9 x ... patches (row-major 3x3)."""
    nw, n, ne, w, centre, e, sw, s, se = patches.unbind(0)
    dxx = e + w - 2 * centre
    dyy = n + s - 2 * centre
    dxy = (nw + se - ne - sw) / 4
    return Peaks((e - w) / 2, (s - n) / 2, dxx, dyy, dxy, dxx * dyy - dxy * dxy)


def winner_patches(rows: Tensor, h: int, w: int) -> Tensor:
    """9 x h x w: the 3x3 neighbourhood, in the channel k = argmax_t D^t_ij, of every cell (eq. 3).

    D = max(rows, 0); zero outside the map.
    """
    channels = rows.shape[1]
    channel = rows.argmax(dim=1).view(h, w)
    step = torch.arange(9).view(9, 1, 1)
    y = torch.arange(h).view(h, 1) + torch.div(step, 3, rounding_mode="floor") - 1
    x = torch.arange(w) + step % 3 - 1
    inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
    cell = y.clamp(0, h - 1) * w + x.clamp(0, w - 1)
    return F.relu(_take(rows, cell * channels + channel).float()) * inside


def _take(values: Tensor, places: Tensor) -> Tensor:
    """`values.flatten()[places]`; this is the way that ONNX Runtime does in a tenth of the time."""
    return values.reshape(-1).gather(0, places.reshape(-1)).view(places.shape)


def detect_paper(rows: Tensor, h: int, w: int, banned: Tensor, origin: float) -> tuple[Detections, Tensor]:
    """The paper's hard detections (eq. 3) with SIFT's edge test and a Newton step between the cells.

    Also h x w bool, the cells that hold one (they are banned at finer levels).

    Args:
        rows: (h w) x C dense map.
        h, w: its size in cells.
        banned: h x w bool, cells where nothing may be detected.
        origin: pixel coordinate of cell 0's centre.
    """
    patches = winner_patches(rows, h, w)
    value = patches[4]
    peak = peaks(patches)
    trace = peak.dxx + peak.dyy
    edge = (EDGE_RATIO + 1) ** 2 / EDGE_RATIO
    detected = (value >= patches.amax(0)) & (peak.det > 0) & (trace * trace / peak.det <= edge) & ~banned
    step_x, step_y = peak.newton_step()
    near = (step_x.abs() < 0.5) & (step_y.abs() < 0.5)
    y, x = torch.nonzero(detected & near, as_tuple=True)
    cells = torch.stack([x + step_x[y, x], y + step_y[y, x]], dim=1)
    # All four corners of the bilinear interpolation must lie in the map.
    last = torch.tensor([w - 1, h - 1])
    kept = torch.nonzero(((cells >= 0) & (cells <= last)).all(dim=1)).squeeze(1)
    cells = cells[kept]
    return Detections(cells, STRIDE * cells + origin, value[y, x][kept]), detected


def d2_scores(patches: Tensor) -> Tensor:
    """H x w: alpha of the winning channel (eq. 4, with D divided by its maximum), largest 1.

    exp(D^k/m) / sum of exp over the 3x3 neighbourhood, m = max D; 0 where D^k = 0, so that a map without
    any positive value scores 0 everywhere instead of upstream's 0/0.
    """
    value = patches[4]
    exponentials = torch.exp(patches / value.amax((0, 1), keepdim=True).clamp(min=1e-12))
    alpha = exponentials[4] / exponentials.sum(0) * (value > 0)
    return alpha / alpha.amax((0, 1), keepdim=True).clamp(min=1e-12)


def d2_score_map(dense: Tensor) -> Tensor:
    """The h x w `d2_scores` of a C x h x w dense map."""
    channels, h, w = dense.shape
    return d2_scores(winner_patches(dense.permute(1, 2, 0).reshape(h * w, channels), h, w))


def cells_to_pixel_maps(cell_maps: Tensor, height: int, width: int, origin: float) -> Tensor:
    """Resize B x h x w maps of cells bilinearly to height x width pixels, clamped at the border.

    Pixel x lies at cell (x - origin) / 4. A half-pixel resize by 4 of the map with one cell repeated in
    front puts its pixel x' at cell (x' - 1.5) / 4 - 1, so x = x' - 5.5 + origin.
    """
    first = int(5.5 - origin)
    padded = F.pad(cell_maps[:, None], (1, 3, 1, 3), mode="replicate")
    resized = F.interpolate(padded, scale_factor=float(STRIDE), mode="bilinear", align_corners=False)
    return resized[:, 0, first : first + height, first : first + width]


def detect_fine(
    rows: Tensor, h: int, w: int, repeatability: Tensor, level: Tensor, origin: float
) -> Detections:
    """Maxima of `fine_scores`, moved to the `centroid` of the score about them, ranked by `reliable`.

    Args:
        rows: (h w) x C dense map.
        h, w: its size in cells.
        repeatability: 1 x 1 x H x W fine map of the level.
        level: 3 x H x W, the level's pixels (any offset; only differences count).
        origin: pixel coordinate of cell 0's centre.
    """
    alpha = d2_scores(winner_patches(rows, h, w))
    score = fine_scores(alpha[None], repeatability, origin)[0]
    y, x = torch.nonzero(fine_maxima(score[None])[0], as_tuple=True)
    y, x = y + FINE_BORDER, x + FINE_BORDER
    pixels, values, real = refine_fine(score, level, x, y)
    kept = torch.nonzero(real).squeeze(1)
    pixels = pixels[kept]
    cells = (pixels - origin) / STRIDE
    return Detections(cells, pixels, reliable(values[kept], lengths_of(rows), h, w, cells))


def fine_scores(alpha: Tensor, repeatability: Tensor, origin: float) -> Tensor:
    """B x H x W repeatability x D2 score, whose maxima are fine detections.

    Args:
        alpha: B x h x w, the `d2_scores` of each image.
        repeatability: B x 1 x H x W fine maps.
        origin: pixel coordinate of cell 0's centre.
    """
    height, width = repeatability.shape[2:]
    d2 = cells_to_pixel_maps(alpha, height, width, origin).clamp(min=FINE_FLOOR)
    # A reading of the fine map stands last, for of a product's factors ONNX Runtime computes first what the
    # file has last: else the early maps, the largest, are kept until the trunk is done.
    return repeatability[:, 0] * d2


def fine_maxima(score: Tensor) -> Tensor:
    """Which of B x H x W scores are maxima of their window; without a border of `FINE_BORDER` pixels."""
    height, width = score.shape[1:]
    window = 2 * FINE_RADIUS + 1
    tallest = F.max_pool2d(score[:, None], (1, window), 1, (0, FINE_RADIUS))
    tallest = F.max_pool2d(tallest, (window, 1), 1, (FINE_RADIUS, 0))[:, 0]
    return (score >= tallest)[:, FINE_BORDER : height - FINE_BORDER, FINE_BORDER : width - FINE_BORDER]


def refine_fine(
    score: Tensor, level: Tensor, x: Tensor, y: Tensor, above: Tensor | int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """N x 2 positions between the pixels, N scores, and whether N maxima at (x, y) are real peaks.

    Args:
        score: H x W, or those of several images one below the other.
        level: 3 x H x W, likewise.
        x, y: N whole pixels of the image.
        above: for each of N, rows of `score` and `level` that are above its image.
    """
    width = score.shape[1]
    reach = range(-CENTROID_RADIUS, CENTROID_RADIUS + 1)
    offsets = torch.tensor([dy * width + dx for dy in reach for dx in reach])
    patches = _take(score, offsets.unsqueeze(1) + ((above + y) * width + x))
    centre, side = len(offsets) // 2, len(reach)
    values = patches[centre]
    left, right, over, under = (patches[centre + step] for step in (-1, 1, -side, side))
    # A plateau is no peak, and rounding makes peaks of even surfaces.
    peaked = (left + right < 2 * values) | (over + under < 2 * values)
    step_x, step_y = centroid(patches)
    pixels = torch.stack([x + step_x, y + step_y], dim=1)
    return pixels, values, peaked & varies(level, x, above + y)


def centroid(patches: Tensor) -> tuple[Tensor, Tensor]:
    """(x, y) from the centres of 25 x ... patches (row-major 5x5) to where the score about them is centred.

    The mean place, weighted by the squared score and a Gaussian about the mean before (mean shift, Comaniciu
    and Meer 2002): what the window cuts off does not draw the mean to its middle. `training` asks the same
    function to coincide (docs/training.md compares it with a quadratic step).
    """
    side = 2 * CENTROID_RADIUS + 1
    place = (torch.arange(side, device=patches.device) - CENTROID_RADIUS).float()
    place = place.view(-1, *[1] * (patches.ndim - 1))
    weight = (patches / patches.amax(0, keepdim=True).clamp(min=1e-30)).square()
    weight = weight.view(side, side, *patches.shape[1:])
    x = y = torch.zeros_like(patches[0])
    for _ in range(CENTROID_STEPS):
        across, down = (torch.exp((place - at).square() * (-0.5 / CENTROID_SPREAD**2)) for at in (x, y))
        near = weight * across * down.unsqueeze(1)
        total = near.sum((0, 1)).clamp(min=1e-12)
        x, y = (near.sum(0) * place).sum(0) / total, (near.sum(1) * place).sum(0) / total
    return x, y


def varies(level: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """N bool: whether 3 x H x W pixels vary by `FLAT` about N positions at least 6 px from the border."""
    height, width = level.shape[1:]
    offsets = torch.tensor([dy * width + dx for dy in FLAT_OFFSETS for dx in FLAT_OFFSETS])
    channel = torch.arange(3).view(3, 1, 1) * (height * width)
    samples = _take(level, channel + offsets.unsqueeze(1) + (y * width + x))
    return (samples.amax(1) - samples.amin(1)).amax(0) >= FLAT


def reliable(
    scores: Tensor, lengths: Tensor, h: int, w: int, cells: Tensor, above: Tensor | int = 0
) -> Tensor:
    """N scores of detections at N x 2 positions in cells, times the length of the descriptors there.

    Where the network answers weakly a descriptor is found again less often (docs/training.md). For ranking
    alone: as part of `fine_scores` the length, which knows cells and not pixels, would move the keypoints.
    Lengths, `lengths_of` the dense map, are interpolated between cells, as descriptors are; `above` as there.
    """
    return scores * interpolate(lengths, h, w, cells, above).squeeze(1)


def lengths_of(rows: Tensor) -> Tensor:
    """(h w) x 1 float32: the length of each row of a dense map."""
    # Half precision is for GPUs, where the runtime takes twice as long for a norm, which else needs no copy.
    return _lengths(rows.float()) if rows.dtype == torch.float16 else rows.norm(dim=1, keepdim=True)


def describe(rows: Tensor, h: int, w: int, cells: Tensor, above: Tensor | int = 0) -> Tensor:
    """N x C unit descriptors at N x 2 positions in cells; `above` as for `interpolate`."""
    described = interpolate(rows, h, w, cells, above)
    return described / _lengths(described).clamp(min=1e-12)


def _lengths(rows: Tensor) -> Tensor:
    """N x 1, of N x C."""
    return (rows * rows).sum(1, keepdim=True).sqrt()


def interpolate(rows: Tensor, h: int, w: int, cells: Tensor, above: Tensor | int = 0) -> Tensor:
    """N x C float32: the map interpolated bilinearly at N x 2 positions in cells, clamped to it.

    Where `rows` are the maps of several images one below the other, `above` says for each of N how many rows
    of cells are above its image.
    """
    x = cells[:, 0].clamp(0, w - 1)
    y = cells[:, 1].clamp(0, h - 1)
    # Clamped before they are whole: OpenCV's engine clips no whole numbers.
    left, top = x.floor(), y.floor()
    fx, fy = (x - left).unsqueeze(1), (y - top).unsqueeze(1)
    right, bottom = (left + 1).clamp(max=w - 1).long(), (top + 1).clamp(max=h - 1).long()
    upper, lower, left = (above + top.long()) * w, (above + bottom) * w, left.long()
    over = rows.index_select(0, upper + left).float() * (1 - fx)
    over += rows.index_select(0, upper + right).float() * fx
    under = rows.index_select(0, lower + left).float() * (1 - fx)
    under += rows.index_select(0, lower + right).float() * fx
    return over * (1 - fy) + under * fy
