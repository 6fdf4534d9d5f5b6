"""The network in eight bits, for processors with a fast int8 dot product (VNNI and its like).

Static quantisation in ONNX's QDQ form: weights int8 per channel, activations uint8, ranges from photographs.
The first layer, the fine head's last and detection stay in floating point: they are cheap, and positions hang
on them.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from .trunk import MEAN_BGR

FLOAT_LAYERS: Final = ("dense_feature_extraction.model.0.weight", "weights", "ones")
"""Weights of the convolutions that are not quantised; the last two are the fine head's last layer, split."""


def quantize_network(network: ModelProto, photographs: Iterable[NDArray[np.uint8]]) -> ModelProto:
    """Quantise the network that `export.graph.export_network` made, calibrated on BGR photographs."""
    network = _pool_by_convolution(network)
    excluded = [
        node.name for node in network.graph.node if node.op_type == "Conv" and node.input[1] in FLOAT_LAYERS
    ]
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises a preprocessing that the exporter has done already
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            onnx.save(network, source)
            quantize_static(
                source,
                target,
                _Photographs(photographs),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Relu", "MaxPool"],
                nodes_to_exclude=excluded,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            return onnx.load(target)
    finally:
        logger.setLevel(level)


def _pool_by_convolution(network: ModelProto) -> ModelProto:
    """A copy whose average pooling is a convolution of each channel, at which the runtime is far faster."""
    copied = ModelProto()
    copied.CopyFrom(network)
    weights = {tensor.name: tensor for tensor in copied.graph.initializer}
    for node in copied.graph.node:
        if node.op_type != "AveragePool":
            continue
        reader = next(other for other in copied.graph.node if node.output[0] in other.input)
        channels = weights[reader.input[1]].dims[1]
        name = node.output[0] + ".weight"
        copied.graph.initializer.append(
            numpy_helper.from_array(np.full((channels, 1, 2, 2), 0.25, np.float32), name)
        )
        node.CopyFrom(helper.make_node("Conv", [node.input[0], name], node.output, node.name, group=channels))
    return copied


class _Photographs(CalibrationDataReader):  # type: ignore[misc]
    """Photographs as the network takes them, one after the other."""

    def __init__(self, photographs: Iterable[NDArray[np.uint8]]) -> None:
        self._images: Iterator[NDArray[np.uint8]] = iter(photographs)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self._images, None)
        if image is None:
            return None
        centred = image.astype(np.float32) - np.array(MEAN_BGR, np.float32)
        return {"level_image": np.ascontiguousarray(centred.transpose(2, 0, 1)[None])}
