"""What the network's multiplications alone would take at this machine's peak rate of matrix products."""

import math
import re
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from d2feat.processor import usable_processors
from export.quantize import GROUP

SIDE: Final = 2048
RUNS: Final = 10

_STRIDES: Final = {"0": 1, "2": 1, "5": 2, "7": 2, "10": 4, "12": 4, "14": 4, "17": 4, "19": 4, "21": 4}
_FINE_STRIDES: Final = {"b": 2, "d": 4}


def floor_seconds(model: Path, width: int, height: int, scales: tuple[float, ...]) -> float:
    """Time of the multiplications of all levels, each at the peak rate of its precision."""
    pixels = width * height * sum(scale**2 for scale in scales)
    return sum(
        multiplications * pixels / (int8_rate() if is_int8 else fp32_rate())
        for multiplications, is_int8 in _layers(model)
    )


@cache
def fp32_rate() -> float:
    """Multiplications a second of the best of several large matrix products in single precision.

    NumPy's or ONNX Runtime's: whichever knows this processor better.
    """
    a = np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(np.float32)
    product = _product("MatMul", a, TensorProto.FLOAT, TensorProto.FLOAT)
    return max(_rate(lambda: a @ a), _rate(lambda: product(a)))


@cache
def int8_rate() -> float:
    """The same of bytes, as ONNX Runtime multiplies them."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (SIDE, SIDE), np.int8)
    product = _product("MatMulInteger", weights, TensorProto.UINT8, TensorProto.INT32)
    a = rng.integers(0, 256, (SIDE, SIDE), np.uint8)
    return _rate(lambda: product(a))


def _product(operator: str, weights: NDArray[Any], before: int, after: int) -> Callable[[NDArray[Any]], Any]:
    """ONNX Runtime's product of a matrix with `weights`, of elements `before` and `after` it."""
    node = helper.make_node(operator, ["a", "b"], ["c"])
    values = [
        helper.make_tensor_value_info(name, kind, [SIDE, SIDE])
        for name, kind in [("a", before), ("c", after)]
    ]
    graph = helper.make_graph(
        [node], "product", values[:1], values[1:], [numpy_helper.from_array(weights, "b")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_processors()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda a: session.run(None, {"a": a})


def _rate(product: Callable[[], Any]) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return float(SIDE**3 / min(times))


@cache
def _layers(model: Path) -> tuple[tuple[float, bool], ...]:
    return tuple(_read_layers(model))


def _read_layers(model: Path) -> Iterator[tuple[float, bool]]:
    """Of every convolution of a level: multiplications a pixel, and whether they are of bytes."""
    graph = onnx.load(model).graph
    body = next(node for node in graph.node if node.op_type == "Loop").attribute[0].g
    answers = next((t.dims[0] for t in body.initializer if t.name.endswith("fine.c.weight")), 1)
    hidden = math.isqrt(answers)  # the stride of the fine head
    for tensor in body.initializer:
        if tensor.name.endswith("grouped_quantized"):  # the first layer; zeros in the groups do not count
            yield 27.0 * tensor.dims[0] / GROUP, True
        name = re.search(r"(?:model\.(\d+)|fine\.([abcd]))\.weight", tensor.name)
        if name is None or len(tensor.dims) != 4:
            continue
        stride = _STRIDES[name[1]] if name[1] else _FINE_STRIDES.get(name[2], hidden)
        is_int8 = tensor.data_type in (TensorProto.INT8, TensorProto.UINT8)
        yield float(np.prod(tensor.dims)) / stride**2, is_int8
