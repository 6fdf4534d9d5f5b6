"""The network in eight bits, for processors with a fast int8 dot product (VNNI and its like).

Static quantisation in ONNX's QDQ form: weights int8 per channel, activations uint8, ranges from photographs.
A range holds all but `BEYOND` percent of the values by magnitude, and ends at the last that occurs: the
largest are many times the usual ones, and the 255th part of them is a step that moves keypoints
(docs/training.md).
The fine head's last layer and detection stay in floating point: they are cheap, and positions hang on them.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from .trunk import MEAN_BGR

FIRST_LAYER: Final = "dense_feature_extraction.model.0.weight"

BEYOND: Final = 0.001
"""Percent of the values, those of largest magnitude, that are cut."""

GROUP: Final = 4
"""Pixels side by side that the first layer computes as one."""

FLOAT_LAYERS: Final = (FIRST_LAYER, "fine.c.weight", "weights", "ones")
"""Weights of the convolutions that are not quantised: a first layer that is not grouped, and the fine head's
last, whole or split."""

GREY_LEVELS: Final = {"scale": np.array(1, np.float32), "zero_point": np.array(0, np.uint8)}
"""Eight bits hold the image as it is."""


def quantize_network(network: ModelProto, photographs: Iterable[NDArray[np.uint8]]) -> ModelProto:
    """Quantise the network that `export.graph.export_network` made, calibrated on BGR photographs."""
    network = _pool_by_convolution(network)
    ranges = {}
    if any(tensor.name.startswith("fine.") for tensor in network.graph.initializer):
        # Only with the fine head is the width a multiple of four.
        network = _upsample_channels_last(_group_pixels(network))
        ranges = {"groups_first": [GREY_LEVELS]}
    excluded = [
        node.name for node in network.graph.node if node.op_type == "Conv" and node.input[1] in FLOAT_LAYERS
    ]
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises a preprocessing that the exporter has done already
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            onnx.save(network, source)
            quantize_static(
                source,
                target,
                _Photographs(photographs),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Relu", "MaxPool", "Reshape", "Transpose"],
                nodes_to_exclude=excluded,
                calibrate_method=CalibrationMethod.Percentile,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={
                    "TensorQuantOverrides": ranges,
                    "CalibPercentile": 100 - BEYOND,
                    "CalibStridedMinMax": 1,  # one by one: they differ in size, and together take much memory
                },
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


def _group_pixels(network: ModelProto) -> ModelProto:
    """A copy whose first layer computes four pixels side by side as channels of one; H and W in whole fours.

    Three channels leave a processor's eight-bit product mostly idle, so the runtime was faster in floating
    point, and then spent twice that time on the way back to eight bits. Of four pixels there are twelve.

    The mean is in the bias, so that the layer's input are the image's grey levels, which eight bits hold as
    they are; with the weights as rounded, or flat areas would shift.
    """
    copied = ModelProto()
    copied.CopyFrom(network)
    graph = copied.graph
    conv = next(node for node in graph.node if node.op_type == "Conv" and node.input[1] == FIRST_LAYER)
    relu = next(node for node in graph.node if conv.output[0] in node.input)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weight, bias = stored[conv.input[1]].astype(np.float64), stored[conv.input[2]].astype(np.float64)
    outputs = len(weight)
    step = np.abs(weight).max((1, 2, 3), keepdims=True) / 127
    rounded = np.round(weight / step) * step
    bias = bias - (rounded * np.array(MEAN_BGR).reshape(3, 1, 1)).sum((1, 2, 3))
    # Pixel q of group x reads pixels 4 x + q - 1 to + 1; groups of the padded input begin one to the left.
    grouped = np.zeros((GROUP, outputs, GROUP, 3, 3, 2))
    for q in range(GROUP):
        for column in range(3):
            group, p = divmod(q + column, GROUP)
            grouped[q, :, p, :, :, group] = rounded[:, :, :, column]
    constants: dict[str, NDArray[Any]] = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, GROUP - 1], np.int64),
        "mean": np.array(MEAN_BGR, np.float32).reshape(1, 3, 1, 1),
        "to_groups": np.array([1, 0, -1, GROUP * 3], np.int64),
        "to_pixels": np.array([1, 0, -1, outputs], np.int64),
        "grouped": grouped.reshape(GROUP * outputs, GROUP * 3, 3, 2).astype(np.float32),
        "biases": np.tile(bias, GROUP).astype(np.float32),
    }
    nodes = onnx.parser.parse_graph(f"""
      grouped (float[1, 3, H, W] {conv.input[0]}) => (float[1, C, H, W] {relu.output[0]})
      {{
        padded = Pad ({conv.input[0]}, pads)
        grey = Add (padded, mean)
        rows = Transpose <perm = [0, 2, 3, 1]> (grey)
        groups = Reshape (rows, to_groups)
        groups_first = Transpose <perm = [0, 3, 1, 2]> (groups)
        convolved = Conv (groups_first, grouped, biases)
        positive = Relu (convolved)
        positive_rows = Transpose <perm = [0, 2, 3, 1]> (positive)
        pixels = Reshape (positive_rows, to_pixels)
        {relu.output[0]} = Transpose <perm = [0, 3, 1, 2]> (pixels)
      }}""").node
    _replace(graph, [conv, relu], nodes)
    unused = [tensor for tensor in graph.initializer if tensor.name in conv.input]
    for tensor in unused:
        graph.initializer.remove(tensor)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return copied


def _upsample_channels_last(network: ModelProto) -> ModelProto:
    """A copy whose fine head adds its maps with channels last: so the runtime resizes four times as fast.

    The reshapes change nothing, but keep the runtime from moving the transposes out again.
    """
    copied = ModelProto()
    copied.CopyFrom(network)
    graph = copied.graph
    resizes = [node for node in graph.node if node.op_type == "Resize"]  # one or, to full resolution, two

    def reader(node: NodeProto) -> NodeProto:
        found: NodeProto = next(other for other in graph.node if node.output[0] in other.input)
        return found

    def other_summand(add: NodeProto, node: NodeProto) -> str:
        return next(str(name) for name in add.input if name != node.output[0])

    add_half = reader(resizes[0])
    coarse = resizes[1] if len(resizes) == 2 else add_half
    add_full = reader(coarse)
    relu = reader(add_full)
    quarter = resizes[0].input[0]
    half, full = other_summand(add_half, resizes[0]), other_summand(add_full, coarse)
    resized = 'Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (half_sum, , twice)'
    half_up = resized if len(resizes) == 2 else "Identity (half_sum)"
    nodes = onnx.parser.parse_graph(f"""
      hidden (float[1, C, q, r] {quarter}, float[1, C, h, w] {half}, float[1, C, H, W] {full})
        => (float[1, C, H, W] {relu.output[0]})
      {{
        quarter_rows = Transpose <perm = [0, 2, 3, 1]> ({quarter})
        quarter_held = Reshape (quarter_rows, held)
        quarter_up = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel">
                            (quarter_held, , twice)
        half_rows = Transpose <perm = [0, 2, 3, 1]> ({half})
        half_held = Reshape (half_rows, held)
        half_sum = Add (half_held, quarter_up)
        half_up = {half_up}
        full_rows = Transpose <perm = [0, 2, 3, 1]> ({full})
        full_held = Reshape (full_rows, held)
        sum = Add (full_held, half_up)
        positive_sum = Relu (sum)
        hidden = Reshape (positive_sum, held)
        {relu.output[0]} = Transpose <perm = [0, 3, 1, 2]> (hidden)
      }}""").node
    _replace(graph, [*resizes, add_half, add_full, relu], nodes)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    conv = next(node for node in graph.node if full in node.output)
    width = stored[conv.input[1]].dims[0]
    for factors in {resize.input[2] for resize in resizes}:
        graph.initializer.remove(stored[factors])
    graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 2, 1], np.float32), "twice"))
    graph.initializer.append(numpy_helper.from_array(np.array([1, 0, -1, width], np.int64), "held"))
    return copied


def _replace(graph: GraphProto, old: Sequence[NodeProto], new: Iterable[NodeProto]) -> None:
    """Put the nodes `new` where the last of the nodes `old` was."""
    nodes = list(graph.node)
    place = nodes.index(old[-1])
    kept = [[node for node in part if node not in old] for part in (nodes[:place], nodes[place:])]
    del graph.node[:]
    graph.node.extend([*kept[0], *new, *kept[1]])


class _Photographs(CalibrationDataReader):  # type: ignore[misc]
    """Photographs as the network takes them, one after the other."""

    def __init__(self, photographs: Iterable[NDArray[np.uint8]]) -> None:
        self._images = list(photographs)
        self._range = iter(self._images)

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._range = iter(self._images[start_index:end_index])

    def get_next(self) -> dict[str, Any] | None:
        image = next(self._range, None)
        if image is None:
            return None
        centred = image.astype(np.float32) - np.array(MEAN_BGR, np.float32)
        return {"level_image": np.ascontiguousarray(centred.transpose(2, 0, 1)[None])}
