"""The training loop: a budget, a schedule over it, a state that survives kill -9, and a log.

Everything random in step n is drawn from a generator seeded by (seed, n), and the state is replaced
atomically; so a run of a given number of steps that was killed and started again ends with the weights of
an unbroken one.
"""

import csv
import hashlib
import math
import os
import pickle
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any, Final

import torch
from torch import Generator, Tensor, nn

from export.checkpoint import read_checkpoint
from export.trunk import FINE_WIDTH, MEAN_BGR, WIDTHS, D2Net

from .config import Config, Weights, config_from_dict
from .judge import Judgement, judge
from .loss import centred, losses, total
from .narrow import channels, narrow, revive_fine_head, stride_fine_head, widen_fine_head
from .pairs import Pairs, make_pairs
from .photos import Photos
from .scenes import Scene
from .views import scene_pairs

STATE: Final = "state.pth"
START: Final = "start.pth"
LOG: Final = "log.csv"
MOST_SKIPPED: Final = 20
"""Steps in a row that may have no finite gradient before training gives up."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why."""


@dataclass(frozen=True)
class Progress:
    """After one step: how much of the budget is done (0 to 1), and the row of the log."""

    done: float
    row: dict[str, float]
    judged: dict[str, Judgement]


class Trainer:
    """One run, in folder `out`: state.pth to continue from, NAME.pth for `export`, start.pth for
    `training.average`, log.csv.

    Args:
        photos: what to train on; the last `config.holdout` are kept for judging.
        scenes: what else to train on, in `config.scenes` of the steps.
        config: the run. out: its folder; a run found there, of the same configuration but for its budget,
            is continued.
        init: checkpoint to start from (`export.checkpoint.read_checkpoint`), else `net`, else random weights.
        device: where photographs, pairs and network live.

    Raises:
        TrainingError: `out` holds a run of another configuration, or of other photographs, scenes or weights.
    """

    def __init__(
        self,
        photos: Photos,
        config: Config,
        out: Path,
        *,
        scenes: Sequence[Scene] = (),
        init: Path | None = None,
        net: D2Net | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.out, self.device = config, out, torch.device(device)
        torch.backends.cudnn.benchmark = True  # all steps are of one size
        self.scenes = list(scenes)
        self._ahead: tuple[int, Future[Pairs]] | None = None
        self._reader = ThreadPoolExecutor(1, "scenes")
        torch.manual_seed(config.seed)
        if net is None:
            net = _initial_network(init, config, photos)
        start = "" if init is None else hashlib.sha256(init.read_bytes()).hexdigest()
        self._source = {
            "photographs": photos.digest(),
            "scenes": " ".join(scene.digest for scene in scenes),
            "initial weights": start,
        }
        self.net = net.to(self.device, memory_format=torch.channels_last).train().requires_grad_(True)  # type: ignore[call-overload]
        if config.train == "fine":
            self.net.dense_feature_extraction.requires_grad_(False)
        self.average = [parameter.detach().clone() for parameter in self.net.parameters()]
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.net, config), betas=(0.9, 0.98), fused=self.device.type == "cuda"
        )
        kept, self.held_out = photos.split(config.holdout)
        self.photos = kept.to(self.device)
        self.step, self.seconds, self.skipped = 0, 0.0, 0
        if config.compile:
            self.net.dense_feature_extraction.compile()
        out.mkdir(parents=True, exist_ok=True)
        if (out / STATE).is_file():
            self._restore(out / STATE)
        else:
            write_checkpoint(self.checkpoint(), out / START)
        self._log = _Log(out, self.step)

    @property
    def done(self) -> float:
        """Part of the budget that is spent, 0 to 1."""
        if self.config.steps > 0:
            return min(1.0, self.step / self.config.steps)
        return min(1.0, self.seconds / (60 * self.config.minutes))

    def run(self, on_step: Callable[[Progress], None] = lambda _: None) -> Path:
        """Train to the end of the budget; returns the checkpoint's path."""
        saved = judged_at = self.seconds
        clock = time.monotonic()
        while self.done < 1:
            row = self._train_step()
            now = time.monotonic()
            self.seconds, clock = self.seconds + now - clock, now
            judged: dict[str, Judgement] = {}
            last = self.done >= 1
            if last or self.seconds - judged_at >= 60 * self.config.judge_every:
                judged = self._judge()
                clock = time.monotonic()
                judged_at = self.seconds
            row |= {f"{kind}_mma{t}": getattr(j, f"mma{t}") for kind, j in judged.items() for t in (1, 3)}
            self._log.write(row | {"seconds": self.seconds})
            if last or judged or self.seconds - saved >= 60 * self.config.save_every:
                self.save()
                saved = self.seconds
            on_step(Progress(self.done, row, judged))
        self._log.close()
        self._reader.shutdown(cancel_futures=True)
        return self.save()

    def save(self) -> Path:
        """Write the state and the checkpoint, each in one piece or not at all; returns the checkpoint."""
        state = {
            "config": self.config.as_dict(),
            "source": self._source,
            "net": self.net.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
        }
        write_checkpoint(state, self.out / STATE)
        path = self.out / f"{self.config.name}.pth"
        write_checkpoint(self.checkpoint(), path)
        return path

    def checkpoint(self) -> dict[str, Any]:
        """The averaged network as `export` reads it: fp16 'model' and 'd2feat' metadata."""
        names = [name for name, _ in self.net.named_parameters()]
        model = {
            name: value.half().cpu().contiguous() for name, value in zip(names, self.average, strict=True)
        }
        metadata = {
            "name": self.config.name,
            "head": "fine",
            "descriptor_relu": self.net.descriptor_relu,
            "mean_bgr": list(MEAN_BGR),
            "coordinates": "opencv",
            "licence": "Apache-2.0",
            "recipe": {"steps": self.step, "minutes": self.seconds / 60, "device": self.device.type},
            "config": self.config.as_dict(),
        }
        return {"model": model, "d2feat": metadata}

    def _train_step(self) -> dict[str, float]:
        config = self.config
        generator = Generator(self.device).manual_seed(_seed(config, self.step))
        rate = schedule(self.done, config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        terms = losses(self.net, self._draw_pairs(generator), config, generator)
        loss = total(terms, config)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        # Trunk and fine head apart: the first layer, whose inputs are grey levels, has gradients that would
        # drown the head's.
        groups = [group["params"] for group in self.optimizer.param_groups]
        # That of a frozen trunk is on the CPU.
        norms = [nn.utils.clip_grad_norm_(group, config.clip).to(self.device) for group in groups]
        norm = torch.stack(norms).norm()
        # One transfer a step: everything that is logged or decided on.
        names = ["loss", "gradient", *terms]
        row = dict(zip(names, torch.stack([loss, norm, *terms.values()]).detach().tolist(), strict=True))
        if math.isfinite(row["loss"]) and math.isfinite(row["gradient"]):
            self.optimizer.step()
            self._update_average()
            self.skipped = 0
        else:
            self.skipped += 1
            if self.skipped >= MOST_SKIPPED:
                raise TrainingError(
                    f"no finite gradient in {self.skipped} steps, the last of them {self.step}"
                )
        self.step += 1
        return {"step": self.step, "rate": rate, **row}

    def _draw_pairs(self, generator: Generator) -> Pairs:
        config = self.config
        size = (config.size, config.size)
        if not self.scenes or not self._of_scenes(self.step):
            return make_pairs(self.photos, config.batch, size, config.geometry, config.light, generator)
        if self._ahead is None or self._ahead[0] != self.step:
            self._ahead = (self.step, self._read_scenes(self.step))
        pairs = self._ahead[1].result().to(self.device)
        # Files are read while the device works on the steps between.
        following = next(step for step in count(self.step + 1) if self._of_scenes(step))
        self._ahead = (following, self._read_scenes(following))
        return pairs

    def _of_scenes(self, step: int) -> bool:
        return random.Random(f"{self.config.seed} {step}").random() < self.config.scenes

    def _read_scenes(self, step: int) -> Future[Pairs]:
        config = self.config
        generator = Generator().manual_seed(_seed(config, step))
        size = (config.size, config.size)
        return self._reader.submit(
            scene_pairs, self.scenes, config.batch, size, config.geometry, config.light, generator
        )

    def _update_average(self) -> None:
        # Young averages forget faster, or they would be stuck at the initial weights.
        decay = min(self.config.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.net.parameters()), 1 - decay)

    def _judge(self) -> dict[str, Judgement]:
        if not self.config.judge_pairs or not len(self.held_out):
            return {}
        trained = [parameter.detach().clone() for parameter in self.net.parameters()]
        self._load(self.average)
        judged = judge(self.net, self.held_out, self.config.judge_pairs, bfloat16=self.config.bfloat16)
        self._load(trained)
        return judged

    def _load(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.net.parameters(), values, strict=True):
                parameter.copy_(value)

    def _restore(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise TrainingError(f"{path} is damaged ({reason}): remove it to begin anew") from None
        theirs = config_from_dict(state["config"])
        budget = {"steps": self.config.steps, "minutes": self.config.minutes}
        if theirs.override(**budget) != self.config:
            raise TrainingError(f"{path.parent} holds a run of another configuration: choose another folder")
        if other := [key for key, value in self._source.items() if state["source"][key] != value]:
            raise TrainingError(f"{path.parent} holds a run of other {other[0]}: choose another folder")
        self.net.load_state_dict(state["net"])
        self.average = [parameter.to(self.device) for parameter in state["average"]]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.skipped = state["step"], state["seconds"], state["skipped"]


def _seed(config: Config, step: int) -> int:
    return config.seed * 1_000_003 + step


def schedule(done: float, warmup: float) -> float:
    """Part of the peak learning rate: linear warm-up, then a half cosine down to a hundredth."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _initial_network(init: Path | None, config: Config, photos: Photos) -> D2Net:
    if init is None:
        return D2Net(
            config.widths or WIDTHS,
            fine=config.fine or FINE_WIDTH,
            fine_stride=config.fine_stride or 1,
            descriptor_relu=False,
        )
    net = read_checkpoint(init).net
    if net.fine is None:
        raise TrainingError(f"{init} has no fine head to train")
    size = (config.size, config.size)
    pairs = make_pairs(photos, 8, size, config.geometry, config.light, Generator().manual_seed(config.seed))
    images = centred(pairs.first)
    try:
        if config.fine_stride not in (0, net.fine.stride):
            net = stride_fine_head(net)
        *widths, fine = channels(net)
        wanted = config.widths or tuple(widths), config.fine or fine
        if wanted[0] == tuple(widths) and wanted[1] >= fine:
            return revive_fine_head(widen_fine_head(net, wanted[1]), images)
        return narrow(net, *wanted, images)
    except ValueError as error:
        raise TrainingError(f"{init}: {error}") from None


def _parameter_groups(net: D2Net, config: Config) -> list[dict[str, Any]]:
    fine: list[nn.Parameter] = []
    trunk: list[nn.Parameter] = []
    for name, parameter in net.named_parameters():
        (fine if name.startswith("fine.") else trunk).append(parameter)
    shared = {"weight_decay": config.decay, "lr": 0.0}
    return [
        {"params": trunk, "peak": config.trunk_rate, **shared},
        {"params": fine, "peak": config.fine_rate, **shared},
    ]


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Save `content` to a file that takes its place at `path`, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # the latter is torch's of a full disk
        partial.unlink(missing_ok=True)
        reason = str(error).partition("\n")[0]
        raise OSError(f"cannot write {path}: {reason}") from error
    partial.replace(path)


class _Log:
    """log.csv, continued after the last saved step; and TensorBoard's events where it is installed."""

    COLUMNS: Final = (
        *("step", "seconds", "rate", "loss", "gradient"),
        *(field.name for field in fields(Weights)),
        *("light_mma1", "light_mma3", "viewpoint_mma1", "viewpoint_mma3"),
    )

    def __init__(self, out: Path, step: int) -> None:
        path = out / LOG
        rows = [row for row in _rows(path) if int(float(row["step"])) <= step]
        partial = path.with_suffix(".partial")
        with partial.open("w", newline="") as kept:
            writer = csv.DictWriter(kept, self.COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(path)  # a kill leaves the one or the other
        self._file = path.open("a", newline="")
        self._csv = csv.DictWriter(self._file, self.COLUMNS, restval="")
        self._board = _board(out, step)

    def write(self, row: dict[str, float]) -> None:
        self._csv.writerow({key: f"{value:.6g}" for key, value in row.items()})
        self._file.flush()
        if self._board is not None:
            for key, value in row.items():
                self._board.add_scalar(key, value, int(row["step"]))

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _rows(path: Path) -> Iterator[dict[str, str]]:
    if path.is_file():
        with path.open(newline="") as file:
            yield from [row for row in csv.DictReader(file) if row.get("step") and None not in row.values()]


def _board(out: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)
