"""All choices of a training run in one dataclass, which is stored in every checkpoint."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal

LEAST: Final = {
    **dict.fromkeys(("steps", "seed"), -1e12),
    **dict.fromkeys(("batch", "window", "adaptations"), 1),
    "repeatability_window": 2,
    **dict.fromkeys(("geometry.zoom", "geometry.stretch", "geometry.oversample", "light.gamma"), 1),
    "positions": 2,
}
"""Of the numbers that are not just 0 or more."""

MOST: Final = 1e12
"""Of any number; so that a step's seed, too, is one of 64 bits."""


@dataclass(frozen=True)
class Geometry:
    """How the two views of a pair differ in geometry.

    Attributes:
        rotation: standard deviation of the rotation between the views, degrees.
        strong_rotation: bound, degrees, of the uniform rotation of `strong_share` of the pairs.
        strong_share: share of pairs with such a rotation.
        zoom: largest ratio of scales between the views (log-uniform from 1 up, either way).
        perspective: bound of the perspective coefficients times half the view's size.
        stretch: largest ratio of scales along two orthogonal directions.
        shift: bound of the shift between the views' centres, in parts of the view's size.
        coarsest: photograph pixels per view pixel of the coarser view, uniform between these two.
        oversample: samples per view pixel and axis; their mean is the pixel (area filtering).
    """

    rotation: float = 15.0
    strong_rotation: float = 50.0
    strong_share: float = 0.25
    zoom: float = 2.0
    perspective: float = 0.25
    stretch: float = 1.3
    shift: float = 0.12
    coarsest: tuple[float, float] = (0.9, 1.5)
    oversample: int = 2


@dataclass(frozen=True)
class Light:
    """How strongly the two views differ otherwise; every bound is the change at full strength.

    Attributes:
        exposure: stops. gamma: factor, either way. colour: relative change of a channel's gain.
        shade: relative depth of a smooth shadow. blur: Gaussian sigma, px. noise: sigma, grey levels.
        blocks: quantisation step of block noise, grey levels a unit of frequency.
        night: probability of a night-like view (dark, low contrast, tinted, noisy).
        share: probability with which each of these changes is applied to a view.
    """

    exposure: float = 1.0
    gamma: float = 1.8
    colour: float = 0.25
    shade: float = 0.6
    blur: float = 2.0
    noise: float = 12.0
    blocks: float = 12.0
    night: float = 0.08
    share: float = 0.5


@dataclass(frozen=True)
class Weights:
    """Weight of every objective term; a term of weight 0 is not computed.

    See the functions of these names: `objectives`, `policy` (policy) and `labels` (the last three). With
    `train="fine"`, `multilevel` and `policy` need all layers, and without them `evolution`, too, asks for
    repetition alone.
    """

    match: float = 1.0
    triplet: float = 0.0
    repeatability: float = 0.0
    peakiness: float = 0.0
    coincidence: float = 1.0
    reprojection: float = 0.0
    matchability: float = 0.5
    multilevel: float = 0.0
    policy: float = 0.0
    warped_target: float = 0.0
    adaptation: float = 0.0
    evolution: float = 0.0


@dataclass(frozen=True)
class Config:
    """One training run.

    Attributes:
        train: "all", or "fine" for the fine head alone on a frozen trunk (of which only the early layers
            are then computed, several times faster; `match` and `triplet` need "all", and `matchability`
            then asks for repetition alone).
        widths, fine: channels of the trunk's four blocks and of the fine head; () and 0 for those of the
            initial network, which is made narrower (`narrow`) if it is wider than told, its fine head also
            wider.
        fine_stride: 2 to give the initial network's fine head half the resolution (`stride_fine_head`); 0 to
            leave it.
        steps, minutes: the budget; steps if positive, else minutes. The schedule spans it.
        batch: pairs per step. size: side of the square views, px.
        trunk_rate, fine_rate: peak AdamW learning rates. warmup: share of the budget for warming up.
        decay: weight decay. clip: bound of the gradient's norm, of trunk and fine head each.
        average: decay of the parameters' moving average, which is what is judged and kept.
        positions: descriptors drawn per image and direction; half of them at detections.
        temperature: of the match softmax. radius: cells about the true place that are no negatives.
        window: px, of the local windows of coincidence and detections. sharpness: exponent of the score in
            a window's distribution. tolerance: px, sigma by which two peaks may differ in coincidence.
        within: px, how near a detection must be repeated to count as matchable.
        repeatability_window: px, of R2D2's windows.
        adaptations: homographies that `adaptation` averages over.
        scenes: share of the steps whose pairs are drawn from scenes, where there are any, in place of
            photographs.
        holdout: photographs at the end of the collection that are never trained on, but judged by.
        save_every, judge_every: minutes between writing the state, and between judgements.
        judge_pairs: pairs of each kind in a judgement.
        bfloat16, compile: the trunk in bfloat16; the trunk compiled by torch.compile.
        seed: of everything random. name: of the checkpoint.
    """

    train: Literal["all", "fine"] = "all"
    widths: tuple[int, ...] = ()
    fine: int = 0
    fine_stride: int = 0
    steps: int = 0
    minutes: float = 60.0
    batch: int = 8
    size: int = 192
    trunk_rate: float = 3e-5
    fine_rate: float = 1e-3
    warmup: float = 0.03
    decay: float = 1e-4
    clip: float = 5.0
    average: float = 0.99
    positions: int = 192
    temperature: float = 0.07
    radius: float = 1.5
    window: int = 6
    sharpness: float = 4.0
    tolerance: float = 0.7
    within: float = 1.0
    repeatability_window: int = 12
    adaptations: int = 4
    scenes: float = 0.25
    holdout: int = 100
    save_every: float = 3.0
    judge_every: float = 10.0
    judge_pairs: int = 24
    bfloat16: bool = True
    compile: bool = False
    seed: int = 0
    name: str = "d2net"
    weights: Weights = field(default_factory=Weights)
    geometry: Geometry = field(default_factory=Geometry)
    light: Light = field(default_factory=Light)

    def __post_init__(self) -> None:
        if self.train not in ("all", "fine"):
            raise ValueError(f"train is all or fine, not {self.train!r}")
        if not self.name or set(self.name) & set("/\\\0") or self.name.lower() in ("start", "state"):
            raise ValueError(
                f"name must be a file's, other than the run's start and state, not {self.name!r}"
            )
        for path, value in _numbers(self.as_dict()):
            least = LEAST.get(path, 0)
            # NaN compares false.
            if isinstance(value, str) or not least <= value <= MOST:
                raise ValueError(f"{path} must be a number from {least:g} to {MOST:g}, not {value!r}")
        if self.train == "fine" and (self.weights.match or self.weights.triplet):
            raise ValueError("match and triplet need descriptors: set them to 0 with train='fine'")
        if len(self.widths) not in (0, 4) or any(type(w) is not int or w < 1 for w in self.widths):
            raise ValueError(f"widths are four whole numbers, one a block, not {self.widths}")
        coarsest = self.geometry.coarsest
        if len(coarsest) != 2 or not 0 < coarsest[0] <= coarsest[1]:
            raise ValueError(f"geometry.coarsest is two numbers, the smaller first, not {coarsest}")
        if self.fine_stride not in (0, 1, 2):
            raise ValueError(f"fine_stride is 1 or 2, or 0 for that of the network, not {self.fine_stride}")
        if self.size % 16 or self.size < 64:
            raise ValueError(f"size must be a multiple of 16 and at least 64, not {self.size}")
        for name in ("window", "repeatability_window"):
            if (value := getattr(self, name)) > self.size // 2:
                raise ValueError(f"{name} is at most half of size, {self.size // 2}, not {value}")
        if self.positions > (pixels := self.size**2):
            raise ValueError(f"positions are at most the {pixels} pixels of a view, not {self.positions}")
        if not 0 <= self.scenes <= 1:
            raise ValueError(f"scenes is a share of the steps, 0 to 1, not {self.scenes}")
        if self.steps <= 0 and self.minutes <= 0:
            raise ValueError("a run needs steps or minutes")
        if self.batch < 2 and self.weights.match:
            raise ValueError("the match term takes negatives from another image: batch must be at least 2")

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dict, for a checkpoint."""
        return asdict(self)

    def override(self, **changes: Any) -> "Config":
        """A copy with some values changed; `weights__match=0` reaches into a section.

        Raises:
            ValueError: there is no such value, or it is of another type.
        """
        values = self.as_dict()
        for path, value in changes.items():
            *sections, name = path.split("__")
            place = values
            for section in sections:
                inner = place.get(section)
                place = inner if isinstance(inner, dict) else {}
            if name not in place or isinstance(place[name], dict):
                raise ValueError(f"the configuration has no value {path.replace('__', '.')!r}")
            if isinstance(value, list):
                value = tuple(value)
            kind = type(place[name])
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind:
                raise ValueError(f"{path.replace('__', '.')} must be {kind.__name__}, not {value!r}")
            place[name] = value
        return config_from_dict(values)


def config_from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `Config.as_dict`."""
    known = {f.name for f in fields(Config)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"the configuration has no value {unknown[0]!r}")
    geometry = dict(values.get("geometry", {}))
    if "coarsest" in geometry:
        geometry["coarsest"] = tuple(geometry["coarsest"])
    return Config(
        **{k: v for k, v in values.items() if k not in ("widths", "weights", "geometry", "light")},
        widths=tuple(values.get("widths", ())),
        weights=Weights(**values.get("weights", {})),
        geometry=Geometry(**geometry),
        light=Light(**values.get("light", {})),
    )


def _numbers(values: dict[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of all that should be a number in a nested dict; elements one by one."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{section}{name}.")
        elif isinstance(value, tuple):
            yield from ((section + name, element) for element in value)
        elif not isinstance(value, str):
            yield section + name, value
