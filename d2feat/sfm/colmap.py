"""pycolmap, or an error that says how to get it; COLMAP's own log is kept to errors."""

from ..errors import D2FeatError

try:
    import pycolmap
except ImportError as error:
    raise D2FeatError(
        f"structure from motion runs on COLMAP, and pycolmap cannot be imported ({error}); "
        "pip install 'd2feat[sfm]'"
    ) from error

pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value

__all__ = ["pycolmap"]
