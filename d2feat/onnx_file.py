"""What an ONNX file needs besides itself, read from its bytes before ONNX Runtime sees them.

A model that a user downloaded is untrusted. A tensor may name another file to be read; a node, an operator
that some library brings or that loads a file of its own (com.microsoft's EPContext does). Ours have neither.

An ONNX file is a protobuf message. The tables below hold the numbers, from onnx.proto, of those fields that
lead to such a tensor or node.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .errors import ModelError

_INSIDE: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute", 7: "domain"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external", 14: "location"},
    "opset": {1: "domain"},
}
_STANDARD: Final = (b"", b"ai.onnx")
_LARGEST: Final = (1 << 31) - 1
"""Bytes; protobuf allows no more."""


def read_model(path: Path) -> bytes:
    """The bytes of a model file, which needs nothing but itself and the operators of the ONNX standard.

    Raises:
        ModelError: it cannot be read, is not a protobuf message, or needs more than that.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ModelError(f"{path} is larger than 2 GiB, which no ONNX file can be")
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    try:
        needs = _foreign(memoryview(content))
    except (IndexError, ValueError) as error:
        raise ModelError(f"{path} is not a model that ONNX Runtime can load: {error}") from None
    if needs:
        raise ModelError(f"{path} is refused: it needs {needs}, which no model of d2feat's does")
    return content


def _foreign(content: memoryview) -> str | None:
    """What the model needs besides itself and the standard's operators, in words; None if nothing."""
    todo = [("model", content)]
    while todo:
        kind, message = todo.pop()
        for number, value in _fields(message):
            inside = _INSIDE[kind].get(number)
            if inside in ("external", "location"):
                if value:
                    return "data from another file"
            elif inside == "training":
                return "to be trained"
            elif inside == "function":
                return "functions of its own"
            elif inside is not None and isinstance(value, int):
                raise ValueError(f"a number where a {inside} belongs")
            elif inside == "domain":
                assert isinstance(value, memoryview)
                if bytes(value) not in _STANDARD:
                    return f"operators of {bytes(value[:80]).decode(errors='replace')!r}"
            elif inside is not None:
                assert isinstance(value, memoryview)
                todo.append((inside, value))
    return None


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of every field of a protobuf message; bytes for all but whole numbers."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        if key >> 32:
            raise ValueError("it is not a protobuf message")
        wire = key & 7
        value: int | memoryview
        if wire == 0:
            value, at = _varint(message, at)
        else:
            if wire == 2:
                size, at = _varint(message, at)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise ValueError("it is not a protobuf message")
            value = message[at : at + size]
            if len(value) != size:
                raise ValueError("it is cut off")
            at += size
        yield key >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Whole number in groups of seven bits, and where it ends."""
    value = message[at]
    at += 1
    if value > 127:
        value &= 127
        for shift in range(7, 70, 7):
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                break
        else:
            raise ValueError("it is not a protobuf message")
    return value, at
