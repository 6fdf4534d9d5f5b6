"""One ONNX graph from raw pixels to keypoints and descriptors.

PyTorch exports two parts, the network and the detection of one level; this module writes what lies around
them: pixels to levels, the loop over the pyramid, and the final ranking. The scales of the pyramid are an
input of the graph with a default, so one file does single- and multi-scale extraction.
"""

import contextlib
import io
import logging
import math
import re
import uuid
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor, nn

from .checkpoint import FLOAT, NETWORK, Checkpoint
from .geometry import STRIDE, Coordinates, cell_origin
from .pyramid import FineLevel, PaperLevel
from .trunk import D2Net, preprocess
from .winograd import WINOGRAD, offer_winograd

CONTRACT: Final = "1"
"""Version of the inputs, outputs and metadata described in docs/model-format.md."""

OPSET: Final = 20
IR_VERSION: Final = 10

SMALLEST: Final = 4 * STRIDE
"""Of levels narrower than this, in pixels, the last row or column is repeated: the network needs cells."""

_GRAPH: Final = """
d2net (uint8[H, W, 3] image, double[L] pyramid, int64 max_keypoints, float[M, 3] points)
  => (float[N, 2] keypoints, float[N] scores, float[N] scales, float[N, C] descriptors,
      float[M, C] point_descriptors)
{
  channels_first = Transpose <perm = [2, 0, 1]> (image)
  colours = Cast <to = 1> (channels_first)
  centred = Sub (colours, mean)
  pixels = Unsqueeze (centred, axis_0)
  image_shape = Shape <start = 0, end = 2> (image)
  image_size = Gather (image_shape, reverse)
  image_shape_exact = Cast <to = 11> (image_shape)
  levels = Size (pyramid)
  point_count = Shape <start = 0, end = 1> (points)
  points_by_channels = Concat <axis = 0> (point_count, channels)
  point_descriptors_0 = Expand (zero, points_by_channels)
  SUM_START
  SUM_END all_keypoints, all_scores, all_scales, all_descriptors, point_descriptors = Loop <body =
    level (int64 index, bool go, SUM_IN
           float[n, 2] keypoints_in, float[n] scores_in, float[n] scales_in, float[n, C] descriptors_in,
           float[M, C] point_descriptors_in)
      => (bool go_out, SUM_OUT float[n2, 2] keypoints_out,
          float[n2] scores_out, float[n2] scales_out, float[n2, C] descriptors_out,
          float[M, C] point_descriptors_out)
    {
      go_out = Identity (go)
      rho = Gather (pyramid, index)
      exact = Mul (image_shape_exact, rho)
      whole = Floor (exact)
      whole_int = Cast <to = 7> (whole)
      level_shape = Max (whole_int, one)
      level_size = Gather (level_shape, reverse)
      resized_shape = Concat <axis = 0> (one_by_three, level_shape)
      resized = Resize <mode = "linear", RESIZING> (pixels, , , resized_shape)
      wanting = Sub (smallest, level_shape)
      missing = Max (wanting, nothing)
      pads = Concat <axis = 0> (six_zeros, missing)
      level_image = Pad <mode = "edge"> (resized, pads)
      MAPS = d2feat.network (level_image)
      SUM
      channels_last = Transpose <perm = [0, 2, 3, 1]> (dense)
      rows = Flatten <axis = 2> (channels_last)
      cells = Reshape (rows, h_by_w_by_channels)
      FOUND = d2feat.detect_and_describe (cells)
      keypoints_out = Concat <axis = 0> (keypoints_in, level_keypoints)
      scores_out = Concat <axis = 0> (scores_in, level_scores)
      scales_out = Concat <axis = 0> (scales_in, level_scales)
      descriptors_out = Concat <axis = 0> (descriptors_in, level_descriptors)
      here = Unsqueeze (point_here, axis_1)
      point_descriptors_out = Where (here, level_point_descriptors, point_descriptors_in)
    }> (levels, , SUM_FIRST keypoints_0, scores_0, scales_0, descriptors_0, point_descriptors_0)
  found = Size (all_scores)
  no_limit = Less (max_keypoints, nothing)
  fewer = Min (found, max_keypoints)
  count = Where (no_limit, found, fewer)
  count_1 = Unsqueeze (count, axis_0)
  scores, best = TopK <axis = 0> (all_scores, count_1)
  keypoints = Gather (all_keypoints, best)
  scales = Gather (all_scales, best)
  descriptors = Gather (all_descriptors, best)
}
"""

_BLANK: Final = re.compile("RESIZING|MAPS|FOUND|SUM_START|SUM_END|SUM_IN|SUM_OUT|SUM_FIRST|SUM")
"""What `_FINE` and `_PAPER` fill in `_GRAPH`."""

_LEVEL: Final = (
    "level_keypoints",
    "level_scores",
    "level_scales",
    "level_descriptors",
    "level_point_descriptors",
    "point_here",
)

_FINE: Final = {
    "RESIZING": 'coordinate_transformation_mode = "half_pixel", antialias = 1',
    "MAPS": "dense, fine",
    "FOUND": ", ".join(_LEVEL),
}
"""What the fine head puts into `_GRAPH`: nothing goes from level to level."""

_PAPER: Final = {
    "RESIZING": 'coordinate_transformation_mode = "align_corners"',
    "MAPS": "own_dense",
    "FOUND": "banned_out, " + ", ".join(_LEVEL),
    "SUM_START": "coarser_0 = Expand (zero, coarser_shape)  banned_0 = Expand (zero, banned_shape)",
    "SUM_END": "coarser, banned, ",
    "SUM_IN": "float[1, C, h, w] coarser_in, float[1, 1, h, w] banned_in, ",
    "SUM_OUT": "float[1, C, h2, w2] dense, float[1, 1, h2, w2] banned_out, ",
    "SUM_FIRST": "coarser_0, banned_0, ",
    "SUM": """
      deeper = Greater (index, nothing)
      own_shape = Shape (own_dense)
      dense = If (deeper) <
        then_branch = summed () => (float[1, C, h2, w2] sum) {
          coarser_resized = Resize <mode = "linear", coordinate_transformation_mode = "align_corners">
                                   (coarser_in, , , own_shape)
          sum = Add (own_dense, coarser_resized)
        },
        else_branch = alone () => (float[1, C, h2, w2] same) { same = Identity (own_dense) }
      >""",
}
"""What the paper's head puts into `_GRAPH`: the summed map and the banned cells go from level to level."""


def build_graph(
    checkpoint: Checkpoint,
    coordinates: Coordinates = "opencv",
    *,
    calibration: Iterable[NDArray[np.uint8]] | None = None,
    half: bool = False,
) -> ModelProto:
    """The ONNX model of a checkpoint; its inputs, outputs and metadata are in docs/model-format.md.

    Args:
        checkpoint: network and what is known of it.
        coordinates: "opencv", where the keypoints truly are, or "upstream", the original's mapping.
        calibration: BGR photographs from which to quantise the network to eight bits; None to store the
            weights in half precision and compute in single precision.
        half: compute with them in half precision, too (`D2Net.halve`), for GPUs.
    """
    if half:
        checkpoint.net.halve()
    network, detection = export_network(checkpoint.net), export_detection(checkpoint.net, coordinates)
    _split_last_layer(network)
    if calibration is None:
        network = _halve_weights(network)
    else:
        from .quantize import quantize_network  # needs ONNX Runtime

        network = quantize_network(network, calibration)
    channels = int(checkpoint.metadata["channels"])
    parts = _PAPER if checkpoint.net.fine is None else _FINE
    graph = onnx.parser.parse_graph(_BLANK.sub(lambda blank: parts.get(blank[0], ""), _GRAPH))
    body = next(node for node in graph.node if node.op_type == "Loop").attribute[0].g
    _splice(body, "network", network, NETWORK)
    _splice(body, "detect_and_describe", detection, "head/")
    if calibration is None and not half and offer_winograd(body):
        graph.input.append(helper.make_tensor_value_info(WINOGRAD, onnx.TensorProto.BOOL, []))
        graph.initializer.append(numpy_helper.from_array(np.array(False), WINOGRAD))

    constants: dict[str, np.ndarray] = {
        "mean": np.array(checkpoint.metadata["mean"].split(","), np.float32).reshape(3, 1, 1),
        "zero": np.array(0, np.float32),
        "axis_0": np.array([0], np.int64),
        "axis_1": np.array([1], np.int64),
        "one": np.array(1, np.int64),
        "nothing": np.array(0, np.int64),
        "reverse": np.array([1, 0], np.int64),
        "one_by_three": np.array([1, 3], np.int64),
        "six_zeros": np.zeros(6, np.int64),
        "smallest": np.array(SMALLEST, np.int64),
        "channels": np.array([channels], np.int64),
        "h_by_w_by_channels": np.array([0, -1, channels], np.int64),
        "keypoints_0": np.zeros((0, 2), np.float32),
        "scores_0": np.zeros(0, np.float32),
        "scales_0": np.zeros(0, np.float32),
        "descriptors_0": np.zeros((0, channels), np.float32),
        # Defaults: an initializer with an input's name makes that input optional.
        "pyramid": np.array([1.0], np.float64),
        "max_keypoints": np.array(-1, np.int64),
        "points": np.zeros((0, 3), np.float32),
    }
    if parts is _PAPER:
        constants["coarser_shape"] = np.array([1, channels, 1, 1], np.int64)
        constants["banned_shape"] = np.array([1, 1, 1, 1], np.int64)
    graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="d2feat"
    )
    properties = {
        **checkpoint.metadata,
        "contract": CONTRACT,
        "coordinates": coordinates,
        "cell_origin": str(cell_origin(coordinates)),
        "precision": "int8" if calibration is not None else "fp16" if half else "fp32",
        "scales": "1.0",
    }
    helper.set_model_props(model, properties)
    onnx.checker.check_model(model, full_check=True)
    return model


def export_network(net: D2Net) -> ModelProto:
    """The network alone: `level_image` 1 x 3 x H x W to `dense` and `fine`, or `own_dense` (paper's head)."""
    height, width = torch.export.Dim("height", min=SMALLEST), torch.export.Dim("width", min=SMALLEST)
    outputs = ["own_dense"] if net.fine is None else ["dense", "fine"]
    example = preprocess(torch.zeros(96, 128, 3, dtype=torch.uint8))
    return _export(net, (example,), ["level_image"], outputs, [{2: height, 3: width}])


def export_detection(net: D2Net, coordinates: Coordinates) -> ModelProto:
    """Detection and description of one level, see `FineLevel` and `PaperLevel` for its inputs and outputs."""
    any_size = torch.export.Dim.DYNAMIC
    image = preprocess(torch.randint(0, 256, (96, 128, 3), dtype=torch.uint8))
    with torch.no_grad():
        dense, fine = net(image)
    level_size, image_size = torch.tensor([128, 96]), torch.tensor([128, 96])
    spatial = {2: any_size, 3: any_size}
    # Not `dense`: an eight-bit model converts it anew for all that ask for it, be it for its shape.
    cells = dense[0].permute(1, 2, 0)
    inputs: dict[str, tuple[Tensor, dict[int, object]]] = {"cells": (cells, {0: any_size, 1: any_size})}
    if fine is None:
        module: nn.Module = PaperLevel(coordinates)
        inputs["banned_in"] = torch.zeros(1, 1, 2, 3), spatial
    else:
        module = FineLevel(coordinates)
        inputs |= {"fine": (fine, spatial), "level_image": (image, spatial)}
    inputs |= {
        "index": (torch.tensor(0), {}),
        "pyramid": (torch.ones(2, dtype=torch.float64), {0: any_size}),
        "level_size": (level_size, {}),
        "image_size": (image_size, {}),
        "max_keypoints": (torch.tensor(50), {}),
        "points": (torch.ones(3, 3), {0: any_size}),
    }
    outputs = list(_LEVEL) if fine is not None else ["banned_out", *_LEVEL]
    values, dynamic = zip(*inputs.values(), strict=True)
    return _export(module, values, list(inputs), outputs, dynamic)


def export_static(module: nn.Module, example: Tensor, name: str, outputs: list[str]) -> ModelProto:
    """`module`, of one input, as a graph of fixed sizes."""
    return _export(module, (example,), [name], outputs, None)


def save_model(model: ModelProto, path: str | Path) -> Path:
    """Write `model` to `path`, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of its own: several processes may convert the same model at once.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_bytes(model.SerializeToString())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _export(
    module: nn.Module,
    values: Sequence[torch.Tensor | None],
    inputs: list[str],
    outputs: list[str],
    dynamic_shapes: Sequence[object] | None,
) -> ModelProto:
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(values),
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=None if dynamic_shapes is None else tuple(dynamic_shapes),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress and its notices about packages that are not needed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _halve_weights(model: ModelProto) -> ModelProto:
    """Store convolution weights as float16; the runtime casts them back once, when it loads the model."""
    casts: list[NodeProto] = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or math.prod(tensor.dims) < 256:
            continue
        name = tensor.name
        values = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, name))
        casts.append(helper.make_node("Cast", [name], [name + FLOAT], to=onnx.TensorProto.FLOAT))
    cast = {node.input[0]: node.output[0] for node in casts}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = cast.get(name, name)
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _split_last_layer(network: ModelProto) -> None:
    """Make the fine head's last convolution, to one channel, one of every channel, and then their sum.

    For the runtime computes no fewer than sixteen channels, wanted or not.
    """
    graph = network.graph
    for place, node in enumerate(graph.node):
        if node.op_type == "Conv" and node.input[1] == "fine.c.weight":
            hidden, weight, *bias = node.input
            answers, count, *_ = next(tensor.dims for tensor in graph.initializer if tensor.name == weight)
            if answers > 1:  # for four at a quarter of the pixels it is faster as it is
                return
            graph.initializer.append(numpy_helper.from_array(np.ones((1, count, 1, 1), np.float32), "ones"))
            turned = helper.make_node("Transpose", [weight], ["weights"], "weights", perm=[1, 0, 2, 3])
            each = helper.make_node("Conv", [hidden, "weights"], ["each"], "each", group=count, pads=[1] * 4)
            node.CopyFrom(helper.make_node("Conv", ["each", "ones", *bias], node.output, node.name))
            graph.node.insert(place, each)
            graph.node.insert(place, turned)
            return


def _splice(body: onnx.GraphProto, placeholder: str, part: ModelProto, prefix: str) -> None:
    """Put the nodes of `part` in the place of the node `placeholder`.

    Inputs and outputs of `part` bear the body's names already; all its other names get `prefix`.
    """
    graph = part.graph
    outer = {value.name for value in [*graph.input, *graph.output]}

    def rename(names: Sequence[str]) -> list[str]:
        return [name if not name or name in outer else prefix + name for name in names]

    nodes = []
    for old in graph.node:
        if any(attribute.HasField("g") for attribute in old.attribute):
            raise ValueError(f"cannot splice a node with a subgraph: {old.op_type}")
        node = NodeProto()
        node.CopyFrom(old)
        del node.metadata_props[:]
        node.doc_string = ""
        node.name = prefix + old.name if old.name else ""
        node.input[:] = rename(old.input)
        node.output[:] = rename(old.output)
        nodes.append(node)
    place = next(i for i, node in enumerate(body.node) if node.op_type == placeholder)
    everything = [*body.node[:place], *nodes, *body.node[place + 1 :]]
    del body.node[:]
    body.node.extend(everything)
    for tensor in graph.initializer:
        copy = body.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = prefix + tensor.name
