"""Where a cell of the dense map lies in the image, and how pyramid levels map onto each other.

Pixel centres are integers, as in OpenCV. Two stride-2 poolings make cell i of the stride-4 grid cover
pixels 4i .. 4i+3, centre 4i + 1.5; the stride-1 average pooling moves the centre half a cell further,
to 4i + 3.5. The original implementation overlooks that last half cell and says 4i + 1.5.
"""

from typing import Final, Literal, get_args

Coordinates = Literal["opencv", "upstream"]
COORDINATES: Final[tuple[str, ...]] = get_args(Coordinates)

STRIDE: Final = 4


def cell_origin(coordinates: Coordinates) -> float:
    """Pixel coordinate of the centre of cell 0: 3.5 where it truly is, 1.5 where upstream puts it."""
    if coordinates not in COORDINATES:
        raise ValueError(f"coordinates must be one of {', '.join(COORDINATES)}, not {coordinates!r}")
    return 3.5 if coordinates == "opencv" else 1.5
