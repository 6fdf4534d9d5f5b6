"""D2-Net (Dusmanu et al., CVPR 2019) as a drop-in `cv2.Feature2D`.

>>> import cv2, d2feat
>>> d2 = d2feat.create(nfeatures=2048)                    # was: cv2.SIFT_create(nfeatures=2048)
>>> keypoints, descriptors = d2.detectAndCompute(image)   # doctest: +SKIP
>>> matches = d2feat.match(descriptors, descriptors2)     # doctest: +SKIP

The folder reads in the direction the data flows: `images` (what callers pass), `model` (the ONNX graph),
`providers`, `runtime`, `runs` and `session` (what runs it), `features` and `keypoints` (arrays and
`cv2.KeyPoint` objects), `bindings` and `feature2d` (OpenCV's interface around it all), `rotations`, `tiles`,
`affine`, `stream` and `frames` (one image as several, and several images), `matching`, `refinement`.
"""

try:
    import cv2 as _cv2  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"d2feat needs OpenCV, which cannot be imported ({error}); install a flavour: "
        "pip install 'd2feat[opencv]', or opencv-python-headless on a server"
    ) from None

from .affine import AffineFeature
from .errors import D2FeatError, InputError, ModelError, OutOfMemoryError, ProviderError
from .feature2d import MULTISCALE, D2Feature, create
from .features import Features
from .frames import FrameExtractor, create_frames
from .image_features import to_image_features
from .legacy import install, installed, uninstall
from .matching import match
from .model import available_models
from .native import create_native
from .refinement import refine

__version__ = "0.1.0"

__all__ = [
    "MULTISCALE",
    "AffineFeature",
    "D2FeatError",
    "D2Feature",
    "Features",
    "FrameExtractor",
    "InputError",
    "ModelError",
    "OutOfMemoryError",
    "ProviderError",
    "available_models",
    "create",
    "create_frames",
    "create_native",
    "install",
    "installed",
    "match",
    "refine",
    "to_image_features",
    "uninstall",
]
