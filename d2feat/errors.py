"""What can go wrong, by kind. Every error of d2feat can be caught as `cv2.error`."""

import cv2


class D2FeatError(cv2.error):
    """Base of d2feat's errors; `code` is OpenCV's where one fits, `msg` and `err` what is wrong."""

    code = cv2.Error.StsError

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        # OpenCV sets these on its class, where those of its own last error stay.
        self.msg = self.err = str(self)
        self.file, self.func, self.line = "", "", 0


class InputError(D2FeatError, ValueError):
    """An argument is unusable: image, mask, keypoints, descriptors or a parameter."""

    code = cv2.Error.StsBadArg


class ModelError(D2FeatError):
    """A model file is missing, damaged, or not one of d2feat's."""


class ProviderError(D2FeatError, RuntimeError):
    """The execution provider asked for cannot be had here."""


class OutOfMemoryError(D2FeatError, MemoryError):
    """An image was too large for the memory there is; the object remains usable."""

    code = cv2.Error.StsNoMem
