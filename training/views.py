"""Pairs of views of real scenes, whose correspondence is known by cameras and depth, or by tracks.

By depth it is dense; by tracks the truth is known about these only.
"""

from typing import Final, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from .config import Geometry, Light
from .pairs import (
    Correspondence,
    Pairs,
    change_light,
    linear_map,
    pixel_grid,
    rotation,
    sample,
    translation,
    view,
    within_margin,
)
from .scenes import Scene, SceneError, read_depth, read_image

OCCLUSION: Final = 0.05
"""Relative difference of depths beyond which something else is in front."""

TRACK_RADIUS: Final = 2.5
"""Pixels about a track within which the truth is known: the surface there is taken to be a plane."""

LEAST_COSINE: Final = 0.2
"""Between a surface's normal and a ray, below which the surface is no such one as both cameras see."""

TRACK_ERROR: Final = 1.0
"""Pixels by which a track may contradict its cameras."""

TRIES: Final = 100
"""Pairs of photographs that may turn out to share nothing before that is an error."""


class View(NamedTuple):
    """A view cut out of a photograph.

    Attributes:
        image: 3 x H x W. inside: H x W bool, where it shows the photograph. depth: H x W, 0 where unknown.
        to_photo: 3 x 3, pixels of the view to those of the photograph. intrinsics: 3 x 3, of the view.
        pose: 4 x 4.
    """

    image: Tensor
    inside: Tensor
    depth: Tensor
    to_photo: Tensor
    intrinsics: Tensor
    pose: Tensor


def scene_pairs(
    scenes: list[Scene],
    count: int,
    size: tuple[int, int],
    geometry: Geometry,
    light: Light,
    generator: Generator,
) -> Pairs:
    """Draw `count` pairs of views of (height, width) = `size`, on the CPU, from the generator's seed alone.

    Scene, pair of photographs and a point that both see are drawn evenly; the views lie about it, at one
    scale for both, so that their difference is the true one; the second is turned by `geometry`'s rotation
    besides, and the light of both changed by `light`.

    Raises:
        SceneError: pairs that should overlap share nothing, or a file cannot be read.
    """
    draw = np.random.default_rng([generator.initial_seed() % 2**63, 1])
    views, forth, back, chosen = [], [], [], []
    for _ in range(count):
        number = int(draw.integers(len(scenes)))
        pair = _draw_pair(scenes[number], size, geometry, draw)
        views.append(pair[:2])
        forth.append(pair[2])
        back.append(pair[3])
        chosen.append(number)
    first, second = ([both[side].image for both in views] for side in (0, 1))
    lit = change_light(torch.stack(first + second), light, generator)

    def stacked(truths: list[Correspondence]) -> Correspondence:
        return Correspondence(*(torch.cat(maps) for maps in zip(*truths, strict=True)))

    return Pairs(lit[:count], lit[count:], stacked(forth), stacked(back), torch.tensor(chosen))


def _draw_pair(
    scene: Scene, size: tuple[int, int], geometry: Geometry, draw: np.random.Generator
) -> tuple[View, View, Correspondence, Correspondence]:
    for _ in range(TRIES):
        one, two = (int(i) for i in draw.permutation(scene.pairs[draw.integers(len(scene.pairs))]))
        centres = _shared_point(scene, one, two, draw)
        if centres is None:
            continue
        shorter = min(min(read_image(scene.folder / scene.images[i]).shape[:2]) for i in (one, two))
        finest = geometry.coarsest[0]
        scale = finest * (max(shorter / max(size), finest) / finest) ** draw.random()
        mild = geometry.rotation * float(np.clip(draw.normal(), -3, 3))
        strong = draw.uniform(-geometry.strong_rotation, geometry.strong_rotation)
        angle = strong if draw.random() < geometry.strong_share else mild
        shift = geometry.shift * scale * max(size) * torch.from_numpy(draw.uniform(-1, 1, (2, 2)))
        first = _cut(scene, one, centres[0] + shift[0], scale, 0.0, size)
        second = _cut(scene, two, centres[1] + shift[1], scale, angle, size)
        if scene.depths:
            return first, second, by_depth(first, second), by_depth(second, first)
        places, points, normals = _shared_tracks(scene, one, two)
        return (
            *(first, second),
            by_tracks(first, second, places[0], places[1], points, normals),
            by_tracks(second, first, places[1], places[0], points, normals),
        )
    raise SceneError(f"the photographs of {scene.folder} that should overlap share nothing")


def _shared_point(
    scene: Scene, one: int, two: int, draw: np.random.Generator
) -> tuple[Tensor, Tensor] | None:
    """The two places, in pixels of the photographs, of something that both see; None if nothing is found."""
    if not scene.depths:
        places = _shared_tracks(scene, one, two)[0]
        if not len(places[0]):
            return None
        chosen = int(draw.integers(len(places[0])))
        return places[0][chosen], places[1][chosen]
    first, second = _whole(scene, one), _whole(scene, two)
    height, width = first.depth.shape
    some = torch.from_numpy(draw.uniform(0, 1, (256, 2))) * torch.tensor([width - 1, height - 1])
    some = some.round()
    depth = first.depth[some[:, 1].long(), some[:, 0].long()]
    carried, seen = _seen(first, second, some, depth)
    kept = torch.nonzero(seen)[:, 0]
    return None if not len(kept) else (some[kept[0]], carried[kept[0]])


def _shared_tracks(scene: Scene, one: int, two: int) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Places in both photographs (M x 2 each) of the points that both see; the points and normals, M x 3."""
    (numbers, places), (other_numbers, other_places) = scene.tracks[one], scene.tracks[two]
    shared, at, other_at = np.intersect1d(numbers, other_numbers, return_indices=True)
    return (places[at], other_places[other_at]), scene.points[shared], scene.normals[shared]


def _whole(scene: Scene, i: int) -> View:
    """A photograph with a depth map as a view of itself, without its pixels."""
    depth = read_depth(scene.folder / scene.depths[i]).double()
    shape = read_image(scene.folder / scene.images[i]).shape[:2]
    if depth.shape != shape:
        raise SceneError(
            f"{scene.images[i]} has {shape[1]} x {shape[0]} pixels, its depth map {depth.shape[1]} x "
            f"{depth.shape[0]}: preprocess MegaDepth with its undistorted photographs"
        )
    nothing = torch.zeros(0)
    return View(nothing, nothing, depth, torch.eye(3).double(), scene.intrinsics[i], scene.poses[i])


def _cut(scene: Scene, i: int, centre: Tensor, scale: float, angle: float, size: tuple[int, int]) -> View:
    """The view of (height, width) = `size` about a place of a photograph, `scale` of its pixels a pixel."""
    image = read_image(scene.folder / scene.images[i])
    extent = torch.tensor([image.shape[1], image.shape[0]]).double()
    half_view = 0.5 * torch.tensor([size[1], size[0]]).double()
    # As much of the view as can lies on the photograph.
    half = torch.minimum(scale * half_view, 0.5 * extent)
    centre = torch.minimum(torch.maximum(centre, half - 0.5), extent - half - 0.5)
    turn = rotation(torch.deg2rad(torch.tensor([angle]).double())) * scale
    to_photo = (translation(centre[None]) @ linear_map(turn) @ translation(0.5 - half_view[None]))[0]

    shrink = max(1.0, scale)
    corners = torch.tensor([[0.0, 0, 1], [size[1], 0, 1], [0, size[0], 1], [size[1], size[0], 1]]).double()
    reach = (corners @ to_photo.T)[:, :2]
    low = torch.minimum((reach.amin(0) - 2 * shrink).clamp(min=0), extent - 1).floor().int().tolist()
    high = (
        torch.maximum(torch.minimum(reach.amax(0) + 2 * shrink, extent), torch.ones(2)).ceil().int().tolist()
    )
    crop = image[low[1] : max(high[1], low[1] + 1), low[0] : max(high[0], low[0] + 1)]
    small = (max(1, round(crop.shape[1] / shrink)), max(1, round(crop.shape[0] / shrink)))
    resized = np.asarray(cv2.resize(crop, small, interpolation=cv2.INTER_AREA))
    factor = torch.tensor([small[0] / crop.shape[1], small[1] / crop.shape[0]]).double()
    to_small = translation((0.5 * factor - 0.5 - factor * torch.tensor(low))[None])[0]
    to_small = to_small @ torch.diag(torch.cat([factor, torch.ones(1)]))
    canvas = torch.from_numpy(resized).permute(2, 0, 1)[None]
    pixels, inside = view(canvas, torch.tensor([small]), (to_small @ to_photo)[None], size, 2)

    depth = torch.zeros(size, dtype=torch.float64)
    if scene.depths:
        whole = _whole(scene, i).depth
        places = pixel_grid(*size, whole.device).double() @ to_photo[:2, :2].T + to_photo[:2, 2]
        depth = _sampled_depth(whole, places) * inside[0, 0]
    intrinsics = torch.linalg.inv(to_photo) @ scene.intrinsics[i]
    return View(pixels[0], inside[0, 0], depth, to_photo, intrinsics, scene.poses[i])


def _sampled_depth(depth: Tensor, places: Tensor) -> Tensor:
    """An H x W depth map at ... x 2 places: linear in 1 / depth, as planes are; 0 where it is unknown."""
    known = depth > 0
    maps = torch.stack([torch.where(known, 1 / depth.clamp(min=1e-9), 0.0), known.double()])
    inverse, share = sample(maps[None], places[None])[0]
    return torch.where(share > 0.999, 1 / inverse.clamp(min=1e-9), 0.0)


def _rays(side: View, places: Tensor) -> Tensor:
    """... x 3 directions, of depth 1 in the camera's axes, of ... x 2 pixels of a view."""
    ones = torch.ones_like(places[..., :1])
    directions: Tensor = torch.cat([places, ones], -1).double() @ torch.linalg.inv(side.intrinsics).T
    return directions


def carry(one: View, two: View, places: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Where ... x 2 pixels of one view at given depths lie in another view, and their depths there."""
    rays = _rays(one, places)
    motion = two.pose @ torch.linalg.inv(one.pose)
    there = (rays * depth.unsqueeze(-1)) @ motion[:3, :3].T + motion[:3, 3]
    projected = there @ two.intrinsics.T
    front = projected[..., 2:].clamp(min=1e-6)
    return projected[..., :2] / front, there[..., 2]


def _seen(one: View, two: View, places: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """`carry`, and whether depth is known and the other view sees the same there, nothing in front of it."""
    carried, expected = carry(one, two, places, depth)
    height, width = two.depth.shape
    own = ((carried >= 0) & (carried <= torch.tensor([width - 1, height - 1]))).all(-1)
    found = _sampled_depth(two.depth, carried)
    alike = (found - expected).abs() <= OCCLUSION * expected
    return carried, (depth > 0) & (expected > 0) & own & (found > 0) & alike


def by_depth(one: View, two: View) -> Correspondence:
    """Dense correspondence by depth, of a batch of 1; unknown where depth is, or where something occludes."""
    grid = pixel_grid(one.depth.shape[0], one.depth.shape[1], one.depth.device).double()
    carried, seen = _seen(one, two, grid, one.depth)
    return _correspondence(carried, seen)


def by_tracks(
    one: View, two: View, first: Tensor, second: Tensor, points: Tensor, normals: Tensor
) -> Correspondence:
    """Correspondence about tracks, of a batch of 1: on a plane through each point.

    Args:
        first, second: M x 2, where the photographs see the points. points: M x 3, in the world.
        normals: M x 3, of these planes; where one is 0, or both cameras cannot see such a plane from one
            side, it faces the middle between them.
    """
    places, targets = (
        (seen - side.to_photo[:2, 2]) @ torch.linalg.inv(side.to_photo[:2, :2]).T
        for seen, side in ((first, one), (second, two))
    )
    own = points @ one.pose[:3, :3].T + one.pose[:3, 3]
    depth = own[:, 2]
    error = targets - carry(one, two, places, depth)[0]
    height, width = one.depth.shape
    within = ((places > -1) & (places < torch.tensor([width, height]))).all(1)
    kept = torch.nonzero(within & (depth > 0) & (error.norm(dim=1) <= TRACK_ERROR))[:, 0]
    grid = pixel_grid(height, width, places.device).double()
    if not len(kept):
        return _correspondence(torch.zeros_like(grid), torch.zeros(height, width, dtype=torch.bool))
    near, track = _discs(places[kept].numpy(), height, width)
    track = kept[track]
    # In the first camera's axes: where the rays of pixels meet the planes.
    planes = (_facing(one, two, points, normals) @ one.pose[:3, :3].T)[track]
    depth_there = (own[track] * planes).sum(-1) / (_rays(one, grid) * planes).sum(-1)
    carried = carry(one, two, grid, depth_there)[0] + error[track]
    inside = sample(two.inside.double()[None, None], carried[None])[0, 0] > 0.99
    known = near & one.inside & inside
    return _correspondence(carried, known)


def _facing(one: View, two: View, points: Tensor, normals: Tensor) -> Tensor:
    """M x 3 normals at points, others in the place of those that both cameras cannot see from one side."""
    to_one, to_two = (
        torch.nn.functional.normalize(-side.pose[:3, 3] @ side.pose[:3, :3] - points, dim=1)
        for side in (one, two)
    )
    cosines = torch.stack([(normals * ray).sum(1) for ray in (to_one, to_two)])
    seen = (cosines.abs().amin(0) >= LEAST_COSINE) & (cosines.prod(0) > 0)
    return torch.where(seen[:, None], normals, to_one + to_two)


def _discs(places: NDArray[np.float64], height: int, width: int) -> tuple[Tensor, Tensor]:
    """H x W bool: whether one of M x 2 places lies within `TRACK_RADIUS`; H x W: the nearest one's number."""
    reach = np.arange(-int(TRACK_RADIUS) - 1, int(TRACK_RADIUS) + 2)
    pixels = np.round(places)[:, None] + np.stack(np.meshgrid(reach, reach), -1).reshape(-1, 2)
    distance = np.linalg.norm(pixels - places[:, None], axis=2)
    x, y = pixels[..., 0], pixels[..., 1]
    kept = (distance <= TRACK_RADIUS) & (x >= 0) & (y >= 0) & (x < width) & (y < height)
    # The nearest is written last.
    order = np.argsort(-distance[kept], kind="stable")
    at = (y * width + x).astype(np.int64)[kept][order]
    nearest = np.full(height * width, -1)
    nearest[at] = np.nonzero(kept)[0][order]
    numbers = torch.from_numpy(nearest).view(height, width)
    return numbers >= 0, numbers.clamp(min=0)


def _correspondence(carried: Tensor, known: Tensor) -> Correspondence:
    positions = torch.nan_to_num(carried, nan=-1e6).clamp(-1e6, 1e6).float()[None]
    return Correspondence(positions, known[None] & within_margin(positions))
