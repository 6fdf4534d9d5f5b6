"""Read a D2-Net checkpoint, ours, an official one or an exported model, and refuse anything else by name."""

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from torch import Tensor

from .trunk import FINE_WIDTH, MEAN_BGR, D2Net

NETWORK: Final = "network/"
"""What the names of the network's weights begin with in an exported model."""

FLOAT: Final = "/float"
"""What the name of a weight that is stored in half precision ends with where it is computed with."""

TRUNK_LAYERS: Final = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)
"""Places of the convolutions in VGG16's list of layers; the N of an official state dict's keys."""


class CheckpointError(ValueError):
    """The file is not a D2-Net checkpoint; the message says in what it differs."""


@dataclass(frozen=True)
class Checkpoint:
    """A network with its weights, and what the checkpoint says of itself.

    Attributes:
        net: the network, in evaluation mode, float32.
        metadata: strings for the model file: name, version, head, descriptor_relu, mean, licence, channels,
            sha256.
    """

    net: D2Net
    metadata: dict[str, str]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read an official D2-Net file (``d2_tf.pth`` and its like), one of our own, or an exported model.

    Nothing in the file is executed: it is unpickled with ``weights_only=True``.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is something else, or its tensors have other names or shapes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    state, said = _read_model(path) if path.suffix == ".onnx" else _read_pickle(path)
    try:
        net = _network(state, said)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not a D2-Net checkpoint: {error}") from None
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Checkpoint(net, _metadata(path, net, said, sha256))


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        # Training scripts store their arguments beside the weights; a Namespace holds data only.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file makes of the unpickler can be any
        raise CheckpointError(f"{path} is not a file of plain tensors that torch.save wrote") from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no state dict under 'model', as D2-Net checkpoints do")
    return state, content.get("d2feat", {})


def _read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        model = onnx.load(path)
    except DecodeError as error:
        raise CheckpointError(f"{path} is not an ONNX file") from error
    said: dict[str, Any] = {entry.key: entry.value for entry in model.metadata_props}
    if said.get("contract") == "frames":
        raise CheckpointError(f"{path} is a model of frames: take the model that it was made of")
    if said.get("precision") != "fp32":
        raise CheckpointError(f"{path} is not a model of ours in single precision: it has no weights to read")
    said["descriptor_relu"] = said["descriptor_relu"] == "true"
    return {key: torch.from_numpy(value) for key, value in network_weights(model).items()}, said


def network_weights(model: ModelProto) -> dict[str, NDArray[np.float32]]:
    """The state dict inside a model in single precision that `export.graph.build_graph` made."""
    body = next(node for node in model.graph.node if node.op_type == "Loop").attribute[0].g
    return {
        tensor.name.removeprefix(NETWORK): numpy_helper.to_array(tensor).astype(np.float32)
        for tensor in body.initializer
        if tensor.name.startswith((NETWORK + "dense_feature_extraction.", NETWORK + "fine."))
    }


def _network(state: dict[str, Tensor], said: dict[str, Any]) -> D2Net:
    first = [state.get(f"dense_feature_extraction.model.{n}.weight") for n in (0, 5, 10, 17)]
    missing = [
        n for n, weight in zip((0, 5, 10, 17), first, strict=True) if weight is None or weight.ndim != 4
    ]
    if missing:
        raise CheckpointError(f"no convolution at dense_feature_extraction.model.{missing[0]}.weight")
    widths = [weight.shape[0] for weight in first if weight is not None]
    fine = FINE_WIDTH if any(key.startswith("fine.") for key in state) else 0
    if "fine.a.bias" in state:
        fine = len(state["fine.a.bias"].reshape(-1))
    fine_stride = 2 if "fine.c.bias" in state and state["fine.c.bias"].numel() == 4 else 1
    head = said.get("head", "fine" if fine else "paper")
    if head not in ("fine", "paper") or (head == "fine") != bool(fine):
        raise CheckpointError(f"it says head {head!r} and has {'a' if fine else 'no'} fine head")
    relu = bool(said.get("descriptor_relu", not said))
    net = D2Net(widths, fine=fine, fine_stride=fine_stride, descriptor_relu=relu)
    if net.fine is not None and not any(key.startswith("fine.d.") for key in state):
        # Up to version 3 the fine head read two maps: of the third it makes nothing.
        state = {
            **state,
            **{f"fine.d.{key}": torch.zeros_like(v) for key, v in net.fine.d.state_dict().items()},
        }
    expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    absent, foreign = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if absent:
        raise CheckpointError(f"{absent[0]} is missing")
    if foreign:
        raise CheckpointError(f"unknown tensor {foreign[0]}")
    for key, shape in expected.items():
        if tuple(state[key].shape) != shape:
            raise CheckpointError(f"{key} has shape {tuple(state[key].shape)}, not {shape}")
        if not bool(torch.isfinite(state[key]).all()):
            raise CheckpointError(f"{key} has values that are not finite")
    net.load_state_dict({key: value.float() for key, value in state.items()})
    return net.eval().requires_grad_(False)


def _metadata(path: Path, net: D2Net, said: dict[str, Any], sha256: str) -> dict[str, str]:
    mean = tuple(said.get("mean_bgr", MEAN_BGR))
    if mean != MEAN_BGR:
        raise CheckpointError(f"{path} was trained with mean {mean}; this network subtracts {MEAN_BGR}")
    return {
        "name": str(said.get("name", path.stem)),
        "version": str(said.get("version", "1")),
        "licence": str(
            said.get("licence", "unknown: official D2-Net weights, see github.com/mihaidusmanu/d2-net")
        ),
        "head": "paper" if net.fine is None else "fine",
        "descriptor_relu": str(net.descriptor_relu).lower(),
        "channels": str(net.dense_feature_extraction.model[TRUNK_LAYERS[-1]].out_channels),
        "mean": ",".join(map(str, MEAN_BGR)),
        "weights_sha256": str(said.get("weights_sha256", sha256)),  # of a model: what it was made of
    }
