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

from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from .checkpoint import FLOAT
from .geometry import STRIDE

WINOGRAD: Final = "winograd"
"""The graph's input that asks for it; false by default."""

FEWEST_CELLS: Final = 1000
"""Smaller maps are convolved as ever: to read the transformed filters takes longer than they save there."""

NARROWEST: Final = 256
"""Channels from which on it pays."""

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

TOGETHER: Final = 512
"""Tiles at a time, about: what they take in memory is then the same however large the map is."""

_SHARED: Final = frozenset({"", WINOGRAD, "fine", "nothing", "one", "axis_0", "axis_1"})
"""Names that are the surrounding graph's; those of the network have a slash."""

_TILES: Final = """
  shape = Shape <start = 2> ({maps})
  height = Gather (shape, nothing)
  width = Gather (shape, one)
  cells = Mul (height, width)
  height_up = Add (height, seven)
  width_up = Add (width, seven)
  tiles_y = Div (height_up, eight)
  tiles_x = Div (width_up, eight)
  rows_y = Mul (tiles_y, two)
  across = Mul (tiles_x, two)
  rows_that_fit = Div (together, across)
  rows_at_least = Max (rows_that_fit, one)
  rows_y_up = Add (rows_y, rows_at_least)
  rows_y_last = Sub (rows_y_up, one)
  groups = Div (rows_y_last, rows_at_least)
  rows_y_and_groups = Add (rows_y, groups)
  rows_y_to_share = Sub (rows_y_and_groups, one)
  rows = Div (rows_y_to_share, groups)
  all_rows = Mul (rows, groups)
  tiles = Mul (rows, across)
  row_of_tap = Mul (tiles, four)
  group_step = Mul (row_of_tap, four)
  answers = Mul (group_step, groups)
  all_rows_listed = Unsqueeze (all_rows, axis_0)
  by_rows = Concat <axis = 0> (thirty_six, all_rows_listed, rest)
"""
"""How many tiles there are: 2 phases x tiles_y rows of 2 phases x tiles_x, in groups of so many rows.
A layer's output has its cells in the order groups x 4 x 4 (inner, of a tile) x rows x across."""

_TAPS: Final = """
  every_{axis} = Range (nothing, {size}, one)
  line_{axis} = Range (nothing, {lines}, one)
  line_phase_{axis} = Div (line_{axis}, tiles_{axis})
  line_tile_{axis} = Mod (line_{axis}, tiles_{axis})
  line_corner_{axis} = Mul (line_tile_{axis}, eight)
  line_first_{axis} = Add (line_corner_{axis}, line_phase_{axis})
  tap_{axis} = Add (steps, line_first_{axis})
  before_{axis} = Less (tap_{axis}, nothing)
  behind_{axis} = GreaterOrEqual (tap_{axis}, {size})
  outside_{axis} = Or (before_{axis}, behind_{axis})
"""
"""Along y or x: all coordinates; those that the tiles read, 6 x lines of tiles; and which lie outside."""

_PLACE: Final = """
  halved_{what} = Div ({what}, two)
  inner_{what} = Mod (halved_{what}, four)
  phase_{what} = Mod ({what}, two)
  tile_{what} = Div ({what}, eight)
  first_{what} = Mul (phase_{what}, tiles_{axis})
  of_tiles_{what} = Add (first_{what}, tile_{what})
"""
"""Where a coordinate is: of a tile, and in which row or column of tiles."""

_PLACE_Y: Final = """
  group_{what} = Div (of_tiles_{what}, rows)
  row_{what} = Mod (of_tiles_{what}, rows)
  of_group_{what} = Mul (group_{what}, group_step)
  of_inner_{what} = Mul (inner_{what}, row_of_tap)
  of_row_{what} = Mul (row_{what}, across)
  of_both_{what} = Add (of_group_{what}, of_inner_{what})
  place_{what} = Add (of_both_{what}, of_row_{what})
"""
_PLACE_X: Final = """
  of_inner_{what} = Mul (inner_{what}, tiles)
  place_{what} = Add (of_inner_{what}, of_tiles_{what})
"""
"""What y and what x add to the number of a cell's row in a layer's output."""

_READ: Final = """
  inside_y_{n} = Where (outside_y, {end}, {y})
  inside_x_{n} = Where (outside_x, {end}, {x})
  along_y_{n} = Unsqueeze (inside_y_{n}, axes_y)
  along_x_{n} = Unsqueeze (inside_x_{n}, axes_x)
  both_{n} = Add (along_y_{n}, along_x_{n})
  clipped_{n} = Min (both_{n}, {end})
  taps_{n} = Reshape (clipped_{n}, by_rows)
"""
"""36 x all rows x across: cells that the tiles read; for what lies outside, the row of zeros at the end."""

_LAYER: Final = """
  rows_{n} = Concat <axis = 0> (maps_{n}, row_of_zeros_{n})
  groups_{n} = Loop <body = group_{n} (int64 number_{n}, bool go_{n})
      => (bool go_on_{n}, float[inner, tiles, C] answer_{n})
    {{
      go_on_{n} = Identity (go_{n})
      start_{n} = Mul (number_{n}, rows)
      stop_{n} = Add (start_{n}, rows)
      starts_{n} = Unsqueeze (start_{n}, axis_0)
      stops_{n} = Unsqueeze (stop_{n}, axis_0)
      here_{n} = Slice (taps_{of}, starts_{n}, stops_{n}, axis_1)
      here_flat_{n} = Reshape (here_{n}, in_36)
      read_{n} = Gather <axis = 0> (rows_{n}, here_flat_{n})
      read_flat_{n} = Reshape (read_{n}, in_36)
      transformed_{n} = MatMul (to_taps, read_flat_{n})
      by_tap_{n} = Reshape (transformed_{n}, by_channels_{n})
      products_{n} = MatMul (by_tap_{n}, filters_{n})
      products_flat_{n} = Reshape (products_{n}, in_36)
      answers_flat_{n} = MatMul (to_answers, products_flat_{n})
      answers_{n} = Reshape (answers_flat_{n}, in_16_{n})
      biased_{n} = Add (answers_{n}, {bias})
      answer_{n} = {activation} (biased_{n})
    }}> (groups, always)
  all_{n} = Reshape (groups_{n}, in_rows_{n})
"""
"""A layer, group by group of tiles."""

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
    convs = _last_block(body)
    stored = {tensor.name: tensor for tensor in body.initializer}
    weights = [stored[conv.input[1].removesuffix(FLOAT)] for conv in convs]
    widths: list[tuple[int, int]] = [tuple(weight.dims[1::-1]) for weight in weights]
    if min(min(pair) for pair in widths) < NARROWEST:
        return False
    maps, dense = convs[0].input[0], convs[2].output[0]
    # Asking for the size of the fine map, and not of its own input, the block waits until the fine head is
    # done with the early maps, the largest, and their memory is free.
    fine = any("fine" in node.output for node in body.node)
    sized = "fine" if fine else f'"{maps}"'

    filters = "".join(_FILTERS.format(n=n, weight=f'"{conv.input[1]}"') for n, conv in enumerate(convs, 1))
    before = _nodes(
        filters
        + f"""
        sized_shape = Shape <start = 2> ({sized})
        size = ReduceProd <keepdims = 0> (sized_shape)
        large = GreaterOrEqual (size, smallest_size)
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
    _rename([*before, choice])
    after = helper.make_node("Transpose", [_own("dense_channels_last")], [dense], perm=[0, 3, 1, 2])
    # The convolutions stay where the runtime knows their weights, but by Winograd's algorithm see one cell.
    convs[0].input[0], convs[2].output[0] = _own("convolved_maps"), _own("convolved")
    last = list(body.node).index(convs[2])
    nodes = [*list(body.node)[: last + 1], choice, after, *list(body.node)[last + 1 :]]
    early, late = _parted(nodes, {_own("convolved_maps")})
    nodes = [*early, *before, *late]
    del body.node[:]
    body.node.extend(nodes)
    body.initializer.extend(
        numpy_helper.from_array(value, _own(name)) for name, value in _constants(widths, fine).items()
    )
    return True


def _last_block(body: GraphProto) -> list[NodeProto]:
    """The last three convolutions before the dense map, found from it: alike weights are stored once."""
    made = {output: node for node in body.node for output in node.output}
    node = made["own_dense"] if "own_dense" in made else made["dense"]
    convs: list[NodeProto] = []
    while len(convs) < 3:
        if node.op_type == "Conv":
            convs.insert(0, node)
        node = made[node.input[0]]
    return convs


def _winograd(convs: list[NodeProto]) -> str:
    """The block as text: of its NCHW input, `by_winograd_channels_last`."""
    maps = f'"{convs[0].input[0]}"'
    text = _TILES.format(maps=maps)
    for axis, size, lines, place in (
        ("y", "height", "all_rows", _PLACE_Y),
        ("x", "width", "across", _PLACE_X),
    ):
        text += _TAPS.format(axis=axis, size=size, lines=lines)
        for what in (f"tap_{axis}", f"every_{axis}"):
            text += _PLACE.format(what=what, axis=axis) + place.format(what=what)
    text += f"""
      cell_y = Mul (tap_y, width)
      {_READ.format(n="map", y="cell_y", x="tap_x", end="cells")}
      {_READ.format(n="answers", y="place_tap_y", x="place_tap_x", end="answers")}
      channels_last = Transpose <perm = [0, 2, 3, 1]> ({maps})
      maps_1 = Reshape (channels_last, in_rows_0)
    """
    for n, conv in enumerate(convs, 1):
        last = n == len(convs)
        text += _LAYER.format(
            n=n,
            of="map" if n == 1 else "answers",
            bias=f'"{conv.input[2]}"',
            activation="Identity" if last else "Relu",
        )
        if not last:
            text += f"maps_{n + 1} = Identity (all_{n}) "
    return (
        text
        + f"""
      column = Unsqueeze (place_every_y, axis_1)
      places = Add (column, place_every_x)
      one_image = Unsqueeze (places, axis_0)
      by_winograd_channels_last = Gather <axis = 0> (all_{len(convs)}, one_image)
    """
    )


def _constants(widths: list[tuple[int, int]], fine: bool) -> dict[str, NDArray[Any]]:
    constants: dict[str, NDArray[Any]] = {
        "always": np.array(True),
        "two": np.array(2),
        "four": np.array(4),
        "seven": np.array(7),
        "eight": np.array(8),
        "together": np.array(TOGETHER),
        "smallest_size": np.array(FEWEST_CELLS * (STRIDE**2 if fine else 1)),
        "largest": np.array(np.iinfo(np.int64).max),
        "pair": np.array([2]),
        "two_zeros": np.array([0, 0]),
        "two_axes": np.array([2, 3]),
        "steps": 2 * (np.arange(6).reshape(6, 1) - 1),
        "axes_y": np.array([1, 3]),
        "axes_x": np.array([0, 2]),
        "thirty_six": np.array([36]),
        "rest": np.array([-1]),
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
            f"in_16_{n}": np.array([16, -1, outputs]),
            f"in_rows_{n}": np.array([-1, outputs]),
        }
    return constants


def _parted(nodes: list[NodeProto], names: set[str]) -> tuple[list[NodeProto], list[NodeProto]]:
    """Nodes that do not depend on these names, and those that do, each in their order."""
    parts: tuple[list[NodeProto], list[NodeProto]] = [], []
    for node in nodes:
        depends = not names.isdisjoint(_read(node))
        parts[depends].append(node)
        if depends:
            names = names.union(node.output)
    return parts


def _read(node: NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _read(inner)


def _own(name: str) -> str:
    """The names of this module among all others of the graph."""
    return name if name in _SHARED or "/" in name else f"{WINOGRAD}/{name}"


def _rename(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        node.input[:] = map(_own, node.input)
        node.output[:] = map(_own, node.output)
        for attribute in node.attribute:
            for value in [*attribute.g.input, *attribute.g.output]:
                value.name = _own(value.name)
            _rename(attribute.g.node)


def _nodes(text: str) -> list[NodeProto]:
    return list(onnx.parser.parse_graph(f"part () => () {{ {text} }}").node)


def _branch(name: str, text: str, output: str) -> GraphProto:
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, "h", "w", "C"])
    return helper.make_graph(_nodes(text), name, [], [value])
