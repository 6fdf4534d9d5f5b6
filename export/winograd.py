"""The last block's convolutions by Winograd's minimal filtering, for processors in single precision.

A tile of 4 x 4 outputs of a 3 x 3 convolution takes 36 multiplications a channel in place of 144: taps and
filters are transformed, multiplied (over the channels a matrix product), and transformed back. ONNX Runtime
multiplies convolutions out; here the algorithm is in the graph, in ordinary operators, with channels last. A
dilation of two makes four interleaved images of the map, the phases, which are tiled apart.

The transforms move memory for every channel, and what they save grows with the channels' square: only wide
layers gain. The graph does it only where the map is large and whoever runs it asks for it. For a GPU nobody
should: single precision is often TF32 there, whose short mantissa the transforms do not bear.

Reference: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, F(4 x 4, 3 x 3).
"""

from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from .checkpoint import NETWORK

WINOGRAD: Final = "winograd"
"""The graph's input that asks for it; false by default."""

FEWEST_CELLS: Final = 1000
"""Smaller maps are convolved as ever: to read the transformed filters takes longer than they save there."""

NARROWEST: Final = 256
"""Channels from which on it pays."""

LAYERS: Final = (17, 19, 21)
"""Of the last block, by their places in the trunk (`export.checkpoint.TRUNK_LAYERS`)."""

TO_TAPS: Final = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
"""B^T, of six taps along an axis."""

TO_FILTERS: Final = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
"""G, of a filter's three weights along an axis."""

TO_ANSWERS: Final = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)
"""A^T, to the four outputs along an axis."""

_TILES: Final = """
  shape = Shape <start = 2> ({maps})
  height = Gather (shape, nothing)
  width = Gather (shape, one)
  cells = Mul (height, width)
  height_up = Add (height, seven)
  width_up = Add (width, seven)
  tiles_y = Div (height_up, eight)
  tiles_x = Div (width_up, eight)
  phase_step_x = Identity (tiles_x)
  tile_step_y = Mul (tiles_x, two)
  phase_step_y = Mul (tile_step_y, tiles_y)
  inner_step_x = Mul (phase_step_y, two)
  inner_step_y = Mul (inner_step_x, four)
  tile_step_x = Identity (one)
  answers = Mul (inner_step_y, four)
"""
"""How many tiles there are, and the steps of the rows of a layer's output: its cells in the order
4 x 4 (inner, of a tile) x 2 (phase_y) x tiles_y x 2 (phase_x) x tiles_x."""

_TAPS: Final = """
  every_{axis} = Range (nothing, {size}, one)
  tile_{axis} = Range (nothing, tiles_{axis}, one)
  corner_{axis} = Mul (tile_{axis}, eight)
  tap_{axis} = Add (taps_and_phases, corner_{axis})
  before_{axis} = Less (tap_{axis}, nothing)
  behind_{axis} = GreaterOrEqual (tap_{axis}, {size})
  outside_{axis} = Or (before_{axis}, behind_{axis})
"""
"""Along y or x: all coordinates; those that the tiles read, 6 x 2 phases x tiles; and which lie outside."""

_ROW: Final = """
  halved_{what} = Div ({what}, two)
  inner_{what} = Mod (halved_{what}, four)
  phase_{what} = Mod ({what}, two)
  tile_{what} = Div ({what}, eight)
  of_inner_{what} = Mul (inner_{what}, inner_step_{axis})
  of_phase_{what} = Mul (phase_{what}, phase_step_{axis})
  of_tile_{what} = Mul (tile_{what}, tile_step_{axis})
  of_both_{what} = Add (of_inner_{what}, of_phase_{what})
  row_{what} = Add (of_both_{what}, of_tile_{what})
"""
"""What a coordinate adds to the number of its row in a layer's output."""

_READ: Final = """
  inside_y_{n} = Where (outside_y, {end}, {y})
  inside_x_{n} = Where (outside_x, {end}, {x})
  along_y_{n} = Unsqueeze (inside_y_{n}, axes_y)
  along_x_{n} = Unsqueeze (inside_x_{n}, axes_x)
  both_{n} = Add (along_y_{n}, along_x_{n})
  clipped_{n} = Min (both_{n}, {end})
  taps_{n} = Reshape (clipped_{n}, in_36)
"""
"""36 x tiles: rows that the tiles read; for what lies outside, the row of zeros at the END."""

_LAYER: Final = """
  rows_{n} = Concat <axis = 0> (maps_{n}, row_of_zeros_{n})
  read_{n} = Gather <axis = 0> (rows_{n}, taps_{of})
  read_flat_{n} = Reshape (read_{n}, in_36)
  transformed_{n} = MatMul (to_taps, read_flat_{n})
  by_tap_{n} = Reshape (transformed_{n}, by_channels_{n})
  products_{n} = MatMul (by_tap_{n}, filters_{n})
  products_flat_{n} = Reshape (products_{n}, in_36)
  answers_flat_{n} = MatMul (to_answers, products_flat_{n})
  answers_{n} = Reshape (answers_flat_{n}, in_rows_{n})
  biased_{n} = Add (answers_{n}, {bias})
"""

_FILTERS: Final = """
  last_{n} = Transpose <perm = [2, 3, 1, 0]> ({weight})
  weights_flat_{n} = Reshape (last_{n}, in_9)
  filters_flat_{n} = MatMul (to_filters, weights_flat_{n})
  filters_{n} = Reshape (filters_flat_{n}, by_both_{n})
"""


def offer_winograd(body: GraphProto) -> bool:
    """Make of the last block a choice between itself and Winograd's algorithm, by the input `WINOGRAD`.

    Args:
        body: of the loop over the levels, with the network in single precision; it is changed.

    Returns:
        Whether it was done: narrow networks stay as they are.
    """
    stored = {tensor.name: tensor for tensor in body.initializer}
    names = [f"{NETWORK}dense_feature_extraction.model.{layer}.weight" for layer in LAYERS]
    widths: list[tuple[int, int]] = [tuple(stored[name].dims[1::-1]) for name in names]
    if min(min(pair) for pair in widths) < NARROWEST:
        return False
    convs = [
        next(node for node in body.node if node.op_type == "Conv" and node.input[1].startswith(name))
        for name in names
    ]
    maps, dense = convs[0].input[0], convs[2].output[0]

    filters = "".join(_FILTERS.format(n=n, weight=f'"{conv.input[1]}"') for n, conv in enumerate(convs, 1))
    before = _nodes(
        filters
        + f"""
        map_shape = Shape <start = 2> ("{maps}")
        map_cells = ReduceProd <keepdims = 0> (map_shape)
        large = GreaterOrEqual (map_cells, fewest_cells)
        by_winograd = And ({WINOGRAD}, large)
        convolved_end = Where (by_winograd, one, largest)
        convolved_ends = Expand (convolved_end, pair)
        convolved_maps = Slice ("{maps}", two_zeros, convolved_ends, two_axes)
        """
    )
    choice = helper.make_node(
        "If",
        ["by_winograd"],
        ["dense_channels_last"],
        then_branch=_branch("winograd", _winograd(convs), "by_winograd_channels_last"),
        else_branch=_branch(
            "convolved",
            'convolved_channels_last = Transpose <perm = [0, 2, 3, 1]> ("convolved")',
            "convolved_channels_last",
        ),
    )
    after = helper.make_node("Transpose", ["dense_channels_last"], [dense], perm=[0, 3, 1, 2])
    # The convolutions stay where the runtime knows their weights, but by Winograd's algorithm see one cell.
    convs[0].input[0], convs[2].output[0] = "convolved_maps", "convolved"
    nodes = list(body.node)
    first, last = nodes.index(convs[0]), nodes.index(convs[2])
    nodes = [*nodes[:first], *before, *nodes[first : last + 1], choice, after, *nodes[last + 1 :]]
    del body.node[:]
    body.node.extend(nodes)
    constants = _constants(widths)
    body.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return True


def _winograd(convs: list[NodeProto]) -> str:
    """The block as text."""
    text = _TILES.format(maps=f'"{convs[0].input[0]}"')
    for axis, size in (("y", "height"), ("x", "width")):
        text += _TAPS.format(axis=axis, size=size)
        for what in (f"tap_{axis}", f"every_{axis}"):
            text += _ROW.format(what=what, axis=axis)
    text += f"""
      line_y = Mul (tap_y, width)
      {_READ.format(n="map", y="line_y", x="tap_x", end="cells")}
      {_READ.format(n="answers", y="row_tap_y", x="row_tap_x", end="answers")}
      channels_last = Transpose <perm = [0, 2, 3, 1]> ("{convs[0].input[0]}")
      maps_1 = Reshape (channels_last, in_rows_0)
      {_LAYER.format(n=1, of="map", bias=f'"{convs[0].input[2]}"')}
      maps_2 = Relu (biased_1)
      {_LAYER.format(n=2, of="answers", bias=f'"{convs[1].input[2]}"')}
      maps_3 = Relu (biased_2)
      {_LAYER.format(n=3, of="answers", bias=f'"{convs[2].input[2]}"')}
      column = Unsqueeze (row_every_y, axis_1)
      places = Add (column, row_every_x)
      one_image = Unsqueeze (places, axis_0)
      by_winograd_channels_last = Gather <axis = 0> (biased_3, one_image)
    """
    return text


def _constants(widths: list[tuple[int, int]]) -> dict[str, NDArray[Any]]:
    taps, phases = np.arange(6).reshape(6, 1, 1), np.arange(2).reshape(1, 2, 1)
    constants: dict[str, NDArray[Any]] = {
        "two": np.array(2),
        "four": np.array(4),
        "seven": np.array(7),
        "eight": np.array(8),
        "fewest_cells": np.array(FEWEST_CELLS),
        "largest": np.array(np.iinfo(np.int64).max),
        "pair": np.array([2]),
        "two_zeros": np.array([0, 0]),
        "two_axes": np.array([2, 3]),
        "taps_and_phases": 2 * (taps - 1) + phases,
        "axes_y": np.array([1, 4, 5]),
        "axes_x": np.array([0, 2, 3]),
        "in_9": np.array([9, -1]),
        "in_36": np.array([36, -1]),
        "in_rows_0": np.array([-1, widths[0][0]]),
        "to_taps": np.kron(TO_TAPS, TO_TAPS).astype(np.float32),
        "to_filters": np.kron(TO_FILTERS, TO_FILTERS).astype(np.float32),
        "to_answers": np.kron(TO_ANSWERS, TO_ANSWERS).astype(np.float32),
    }
    for n, (inputs, outputs) in enumerate(widths, 1):
        constants |= {
            f"row_of_zeros_{n}": np.zeros((1, inputs), np.float32),
            f"by_channels_{n}": np.array([36, -1, inputs]),
            f"by_both_{n}": np.array([36, inputs, outputs]),
            f"in_rows_{n}": np.array([-1, outputs]),
        }
    return constants


def _nodes(text: str) -> list[NodeProto]:
    return list(onnx.parser.parse_graph(f"part () => () {{ {text} }}").node)


def _branch(name: str, text: str, output: str) -> GraphProto:
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, "h", "w", "C"])
    return helper.make_graph(_nodes(text), name, [], [value])
