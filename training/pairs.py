"""Pairs of views with exact correspondence, made of photographs in batches on the training device.

Of these, both views are resampled from the photograph itself, so neither is a copy of the other, and the
homography between them is exact. Pixel centres are integers; homographies act on (x, y, 1).
"""

import math
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .config import Geometry, Light
from .photos import Photos

MARGIN: Final = 4.0
"""Pixels this near to the border of a view have no counterpart: their descriptors would lack context."""


class Correspondence(NamedTuple):
    """Where the pixels of one view of B pairs lie in the other.

    Attributes:
        positions: B x H x W x 2 float32, (x, y) in the other view's pixels; finite everywhere.
        shown: B x H x W bool, where that is known, and at least `MARGIN` inside the other view.
    """

    positions: Tensor
    shown: Tensor

    def at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """B x K x 2 positions carried over, between pixels too, and B x K bool: whether that is known."""
        height, width = self.shown.shape[1:]
        own = ((points >= 0) & (points <= points.new_tensor([width - 1, height - 1]))).all(2)
        carried = sample(self.positions.permute(0, 3, 1, 2), points).mT
        return carried, own & (sample(self.shown.float().unsqueeze(1), points)[:, 0] > 0.999)


class Pairs(NamedTuple):
    """B pairs of views of H x W pixels, of whatever source.

    Attributes:
        first, second: B x 3 x H x W float32, BGR, whole grey levels 0 to 255.
        forth, back: pixels of `first` in `second`, and the reverse. Dense, but for pairs from structure from
            motion, which know it only about their tracks.
        scene: B int64; pairs of one number may show the same things.
    """

    first: Tensor
    second: Tensor
    forth: Correspondence
    back: Correspondence
    scene: Tensor

    def swapped(self) -> "Pairs":
        """The same pairs seen from the second view."""
        return Pairs(self.second, self.first, self.back, self.forth, self.scene)

    def to(self, device: torch.device) -> "Pairs":
        """The same pairs on `device`."""
        forth, back = (
            Correspondence(*(maps.to(device) for maps in truth)) for truth in (self.forth, self.back)
        )
        return Pairs(self.first.to(device), self.second.to(device), forth, back, self.scene.to(device))


def make_pairs(
    photos: Photos,
    count: int,
    size: tuple[int, int],
    geometry: Geometry,
    light: Light,
    generator: Generator,
    strength: float = 1.0,
) -> Pairs:
    """Draw `count` photographs and two views of (height, width) = `size` of each.

    `strength` scales the light changes of `light`, 0 for none; `generator` is on the photos' device.
    """
    device = photos.canvases.device
    chosen = torch.randint(len(photos), (count,), generator=generator, device=device)
    to_photo = random_views(photos.sizes[chosen], size, geometry, generator)
    canvases, sizes = photos.canvases[chosen], photos.sizes[chosen]
    views, inside = zip(*(view(canvases, sizes, m, size, geometry.oversample) for m in to_photo), strict=True)
    lit = change_light(torch.cat(views), light, generator, strength)
    return Pairs(
        lit[:count],
        lit[count:],
        correspondence(torch.linalg.inv(to_photo[1]) @ to_photo[0], *inside),
        correspondence(torch.linalg.inv(to_photo[0]) @ to_photo[1], *inside[::-1]),
        chosen,
    )


def random_views(
    sizes: Tensor, size: tuple[int, int], geometry: Geometry, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Two B x 3 x 3 float64 maps from view pixels to photograph pixels, for B photographs of `sizes`.

    The first is a scaling and a shift; the second adds rotation, stretch, perspective and another scale.
    """
    count, device = sizes.shape[0], sizes.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand((count, *shape), generator=generator, device=device, dtype=torch.float64)
        return low + (high - low) * drawn

    height, width = size
    coarse = uniform(*geometry.coarsest)
    zoom = torch.exp(uniform(0, math.log(geometry.zoom)))
    first_is_coarse = uniform(0, 1) < 0.5
    scale_first = torch.where(first_is_coarse, coarse, coarse / zoom)
    scale_second = torch.where(first_is_coarse, coarse / zoom, coarse)

    mild = geometry.rotation * torch.randn(
        count, generator=generator, device=device, dtype=torch.float64
    ).clamp(-3, 3)
    strong = uniform(-geometry.strong_rotation, geometry.strong_rotation)
    angle = torch.deg2rad(torch.where(uniform(0, 1) < geometry.strong_share, strong, mild))
    direction = uniform(0, math.pi)
    stretch = torch.exp(0.5 * uniform(0, math.log(geometry.stretch)))
    tilt = uniform(-geometry.perspective, geometry.perspective, 2)

    # The smaller view's centre may lie anywhere that keeps most of it on the photograph.
    half_view = 0.5 * torch.tensor([width, height], dtype=torch.float64, device=device)
    half = half_view * torch.minimum(scale_first, scale_second).unsqueeze(1)
    low = torch.minimum(half, 0.5 * sizes.double())
    centre = low + (sizes - 1 - 2 * low).clamp(min=0) * uniform(0, 1, 2)
    shift = uniform(-geometry.shift, geometry.shift, 2) * 2 * half

    to_middle = translation(-half_view.expand(count, 2) + 0.5)
    first = translation(centre) @ linear_map(rotation(0 * angle) * scale_first.view(-1, 1, 1)) @ to_middle
    axes = torch.stack([stretch, 1 / stretch], 1)
    stretched = rotation(direction) @ torch.diag_embed(axes) @ rotation(-direction)
    linear = rotation(angle) @ stretched * scale_second.view(-1, 1, 1)
    perspective = torch.eye(3, dtype=torch.float64, device=device).repeat(count, 1, 1)
    perspective[:, 2, :2] = tilt / half_view
    second = translation(centre + shift) @ linear_map(linear) @ perspective @ to_middle
    return first, second


def translation(by: Tensor) -> Tensor:
    """B x 3 x 3 homographies that shift by B x 2."""
    matrix = torch.eye(3, dtype=by.dtype, device=by.device).repeat(len(by), 1, 1)
    matrix[:, :2, 2] = by
    return matrix


def linear_map(block: Tensor) -> Tensor:
    """B x 3 x 3 homographies of B x 2 x 2 linear maps."""
    matrix = torch.eye(3, dtype=block.dtype, device=block.device).repeat(len(block), 1, 1)
    matrix[:, :2, :2] = block
    return matrix


def rotation(angle: Tensor) -> Tensor:
    """B x 2 x 2 rotations by B angles, radians."""
    cosine, sine = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)


def project(homography: Tensor, points: Tensor) -> Tensor:
    """B x ... x 2 points (x, y) mapped by B x 3 x 3 homographies; what lies behind goes far away."""
    flat = points.reshape(points.shape[0], -1, 2)
    mapped = flat @ homography[:, :, :2].mT + homography[:, :, 2].unsqueeze(1)
    depth = mapped[..., 2:]
    inverse = torch.where(depth > 1e-6, 1 / depth.clamp(min=1e-6), torch.full_like(depth, 1e6))
    return (mapped[..., :2] * inverse).reshape(points.shape)


def pixel_grid(height: int, width: int, device: torch.device) -> Tensor:
    """H x W x 2: (x, y) of every pixel."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([x, y], dim=-1)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """B x C x ...: B x C x H x W maps interpolated bilinearly at B x ... x 2 pixel positions, clamped."""
    height, width = maps.shape[2:]
    extent = points.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    flat = points.reshape(points.shape[0], 1, -1, 2)
    sampled = F.grid_sample(maps, 2 * flat / extent - 1, padding_mode="border", align_corners=True)
    return sampled.reshape(*maps.shape[:2], *points.shape[1:-1])


def view(
    canvases: Tensor, sizes: Tensor, to_photo: Tensor, size: tuple[int, int], oversample: int
) -> tuple[Tensor, Tensor]:
    """Resample B photographs: B x 3 x H x W float32 views, and B x 1 x H x W bool where they are inside.

    Every view pixel is the mean of oversample x oversample bilinear samples spread evenly over it, so a
    view that shrinks the photograph is area-filtered, by as much as it shrinks at that very place.
    """
    height, width = size
    fine = (pixel_grid(height * oversample, width * oversample, canvases.device) + 0.5) / oversample - 0.5
    positions = project(to_photo.float(), fine.expand(len(canvases), -1, -1, -1))
    last = (sizes - 1).float().view(-1, 1, 1, 2)
    inside = ((positions >= 0) & (positions <= last)).all(-1).unsqueeze(1).float()
    images = sample(canvases.float(), torch.minimum(positions.clamp(min=0), last))
    return F.avg_pool2d(images, oversample), F.avg_pool2d(inside, oversample) > 0.99


def correspondence(homography: Tensor, inside: Tensor, inside_other: Tensor) -> Correspondence:
    """Exact correspondence by B x 3 x 3 homographies from one view to the other.

    `inside`, `inside_other`: B x 1 x H x W bool, where the views show their photograph.
    """
    height, width = inside.shape[2:]
    homography = (homography / homography[:, 2:, 2:]).float()
    positions = project(homography, pixel_grid(height, width, inside.device).expand(len(inside), -1, -1, -1))
    shown = sample(inside_other.float(), positions)[:, 0] > 0.99
    return Correspondence(positions, within_margin(positions) & shown & inside[:, 0])


def within_margin(positions: Tensor) -> Tensor:
    """B x H x W bool: which of the B x H x W x 2 positions lie `MARGIN` inside a view of H x W pixels."""
    height, width = positions.shape[1:3]
    last = positions.new_tensor([width - 1, height - 1])
    return ((positions >= MARGIN) & (positions <= last - MARGIN)).all(-1)


def change_light(images: Tensor, light: Light, generator: Generator, strength: float = 1.0) -> Tensor:
    """Change B x 3 x H x W images of 0..255 as other light, lenses, sensors and files would.

    Blur, shade, exposure, colour, gamma, night, noise and block noise, in the order of a camera; each is
    applied to a random part of the batch. Returns whole grey levels.
    """
    count, device = len(images), images.device

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        drawn = torch.rand((count, channels, 1, 1), generator=generator, device=device)
        return low + (high - low) * drawn

    def applied(share: float) -> Tensor:
        return (uniform(0, 1) < share).float() * strength

    share = light.share
    # Squared: mostly mild. Two sigmas: partly along one axis, as motion blurs.
    sigma = light.blur * applied(0.7 * share) * uniform(0, 1).square() * uniform(0.4, 1, 2)
    out = gaussian_blur(images, sigma[:, 0].reshape(-1), sigma[:, 1].reshape(-1)) / 255

    coarse = torch.rand((count, 1, 4, 4), generator=generator, device=device)
    shadow = F.interpolate(coarse, size=images.shape[2:], mode="bicubic", align_corners=True).clamp(0, 1)
    out = out * (1 - light.shade * applied(share) * uniform(0, 1) * shadow)
    out = out * 2 ** (light.exposure * applied(share) * uniform(-1, 0.7))
    out = out * (1 + light.colour * applied(share) * uniform(-1, 1, 3))
    gamma = light.gamma ** (applied(share) * uniform(-1, 1))
    out = out.clamp(1e-4, 1) ** gamma

    night = applied(light.night).clamp(max=1)
    tint = uniform(0.5, 1.0, 3)
    dark = 0.03 + 0.35 * tint * out.clamp(0, 1) ** 1.5 * uniform(0.5, 1)
    out = out + (dark - out) * night

    grain = torch.randn(images.shape, generator=generator, device=device)
    sigma_noise = light.noise / 255 * (applied(share) * uniform(0, 1).square() + 0.5 * night)
    out = out + grain * sigma_noise * (0.5 + out.clamp(0, 1).sqrt())
    out = 255 * out.clamp(0, 1)

    step = light.blocks * applied(0.7 * share) * uniform(0, 1).square()
    return block_noise(out, step).clamp(0, 255).round()


def gaussian_blur(images: Tensor, sigma_x: Tensor, sigma_y: Tensor) -> Tensor:
    """Blur B x C x H x W images, each with sigmas of its own (B, px; 0 leaves an image as it is)."""
    radius = 12
    count, channels, height, width = images.shape
    taps = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)

    def kernels(sigma: Tensor) -> Tensor:
        weights = torch.exp(-0.5 * (taps / sigma.clamp(min=1e-3).unsqueeze(1)) ** 2)
        return (weights / weights.sum(1, keepdim=True)).repeat_interleave(channels, 0)

    flat = F.pad(images.reshape(1, -1, height, width), (radius,) * 4, mode="replicate")
    flat = F.conv2d(flat, kernels(sigma_x).view(-1, 1, 1, len(taps)), groups=count * channels)
    flat = F.conv2d(flat, kernels(sigma_y).view(-1, 1, len(taps), 1), groups=count * channels)
    return flat.view(count, channels, height, width)


def block_noise(images: Tensor, step: Tensor) -> Tensor:
    """What JPEG does: quantise the cosine transform of 8x8 blocks, coarser for higher frequencies.

    Args:
        images: B x C x H x W.
        step: B x 1 x 1 x 1, quantisation step, in grey levels, at frequency (0, 1); 0 for none.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate")
    place = torch.arange(8, device=images.device, dtype=images.dtype)
    basis = torch.cos(math.pi / 8 * (place.view(1, 8) + 0.5) * place.view(8, 1)) / 2
    basis[0] /= math.sqrt(2)
    rows, columns = padded.shape[2] // 8, padded.shape[3] // 8
    blocks = padded.reshape(*padded.shape[:2], rows, 8, columns, 8).transpose(3, 4)
    frequency = basis @ blocks @ basis.mT
    quantum = (step.reshape(-1, 1, 1, 1, 1, 1) * (1 + place.view(8, 1) + place.view(1, 8)) / 2).clamp(
        min=1e-3
    )
    back = basis.mT @ (torch.round(frequency / quantum) * quantum) @ basis
    return back.transpose(3, 4).reshape(padded.shape)[:, :, :height, :width]
