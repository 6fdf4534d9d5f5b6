"""A narrow network made out of a wide one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from export.checkpoint import read_checkpoint
from export.trunk import D2Net
from training.average import average
from training.config import Config
from training.narrow import channels, narrow, revive_fine_head, stride_fine_head, widen_fine_head
from training.photos import stack
from training.trainer import Trainer, TrainingError

WIDE, FINE = (8, 12, 16, 24), 6


def wide_net(stride: int = 1) -> D2Net:
    torch.manual_seed(0)
    return D2Net(WIDE, fine=FINE, fine_stride=stride, descriptor_relu=False).eval().requires_grad_(False)


def images() -> torch.Tensor:
    return 50 * torch.randn((2, 3, 48, 64), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("stride", [1, 2])
def test_nothing_changes_when_all_channels_are_kept(stride: int) -> None:
    net = wide_net(stride)
    dense, fine = net(images())
    same_dense, same_fine = narrow(net, WIDE, FINE, images())(images())
    torch.testing.assert_close(same_dense, dense, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(same_fine, fine, rtol=1e-3, atol=1e-5)


def test_channels_without_influence_are_the_ones_that_go() -> None:
    """Half of the channels of every inner layer are dead: taking only the others loses nothing."""
    net = wide_net()
    trunk = net.dense_feature_extraction.model
    with torch.no_grad():
        for place, after in (
            (0, 2),
            (2, 5),
            (5, 7),
            (7, 10),
            (10, 12),
            (12, 14),
            (14, 17),
            (17, 19),
            (19, 21),
        ):
            trunk[after].weight[:, ::2] = 0
            trunk[place].bias.zero_()
        net.fine.a.weight[:, ::2] = 0
        net.fine.b.weight[:, ::2] = 0
        net.fine.d.weight[:, ::2] = 0
        net.fine.c.weight[:, ::2] = 0
    small = narrow(net, (4, 6, 8, 24), 3, images())
    assert channels(small) == (4, 6, 8, 24, 3)
    dense, fine = net(images())
    small_dense, small_fine = small(images())
    torch.testing.assert_close(small_fine, fine, rtol=1e-3, atol=1e-5)
    assert float((small_dense - dense).abs().max()) < 0.05 * float(dense.std())


def test_every_layer_keeps_its_level() -> None:
    net = wide_net()
    small = narrow(net, (4, 4, 8, 12), 2, images())
    assert small(images())[0].std() == pytest.approx(net(images())[0].std(), rel=0.5)


def test_only_wider_networks_with_a_fine_head_become_narrow() -> None:
    with pytest.raises(ValueError, match=r"not all within the network's \(8, 12, 16, 24, 6\)"):
        narrow(wide_net(), (16, 12, 16, 24), FINE, images())
    with pytest.raises(ValueError, match="fine head"):
        narrow(D2Net(WIDE), (4, 4, 4, 4), 1, images())


@pytest.mark.parametrize("stride", [1, 2])
def test_a_wider_fine_head_does_the_same_and_can_learn_more(stride: int) -> None:
    net = wide_net(stride)
    wider = widen_fine_head(net, 16)
    assert channels(wider) == (*WIDE, 16)
    for new, old in zip(wider(images()), net(images()), strict=True):
        torch.testing.assert_close(new, old)
    wider.requires_grad_(True)(images())[1].sum().backward()
    assert wider.fine.c.weight.grad[:, FINE:].abs().min() > 0
    with pytest.raises(ValueError, match="cannot be made one of 4"):
        widen_fine_head(net, 4)
    with pytest.raises(ValueError, match="cannot be made"):
        widen_fine_head(D2Net(WIDE), 4)


def test_half_the_resolution_begins_with_the_same_where_pixels_are_alike() -> None:
    """In blocks of 2 x 2, as far as a layer sees no other block."""
    net = wide_net()
    alone = net.fine.a.weight[:, :, 1:2, 1:2].clone()
    net.fine.a.weight.zero_()
    net.fine.a.weight[:, :, 1:2, 1:2] = alone
    net.fine.b.weight.zero_()
    net.fine.d.weight.zero_()
    strided = stride_fine_head(net).fine
    full = torch.randn(1, WIDE[0], 12, 16).repeat_interleave(2, 2).repeat_interleave(2, 3)
    half, quarter = torch.randn(1, WIDE[1], 12, 16), torch.randn(1, WIDE[2], 6, 8)
    torch.testing.assert_close(strided(full, half, quarter), net.fine(full, half, quarter))
    with pytest.raises(ValueError, match="stride 1"):
        stride_fine_head(stride_fine_head(net))
    with pytest.raises(ValueError, match="stride 1"):
        stride_fine_head(D2Net(WIDE))


def test_dead_channels_of_the_fine_head_begin_anew_and_the_others_stay() -> None:
    net = wide_net()
    net.fine.a.bias[[1, 4]] = -1e6
    revived = revive_fine_head(net, images())
    for new, old in zip(revived(images()), net(images()), strict=True):
        torch.testing.assert_close(new, old)
    maps = revived.dense_feature_extraction(images())
    assert revived.fine.hidden(*maps[1:]).amax((0, 2, 3)).min() > 0
    for kept in (0, 2, 3, 5):
        assert torch.equal(revived.fine.a.weight[kept], net.fine.a.weight[kept])
    revived.requires_grad_(True)(images())[1].sum().backward()
    assert revived.fine.c.weight.grad.abs().amax((0, 2, 3)).min() > 0


def test_dead_channels_are_not_what_a_narrow_fine_head_keeps() -> None:
    """However much the next layer would make of them."""
    net = wide_net()
    net.fine.a.bias[[1, 4]] = -1e6
    net.fine.c.weight[:, [1, 4]] = 100
    small = narrow(net, WIDE, 4, images())
    torch.testing.assert_close(small(images())[1], net(images())[1], rtol=1e-3, atol=1e-5)


def test_a_light_model_is_trained_from_a_wide_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photos = stack([rng.integers(0, 256, (96, 96, 3), np.uint8) for _ in range(10)], (96, 96))
    checkpoint = tmp_path / "wide.pth"
    torch.save({"model": wide_net().state_dict(), "d2feat": {"descriptor_relu": False}}, checkpoint)
    config = Config(
        widths=(4, 4, 8, 8), fine=2, steps=1, batch=2, size=64, positions=8, holdout=0, judge_pairs=0
    )
    trained = Trainer(photos, config, tmp_path / "run", init=checkpoint).run()
    assert channels(read_checkpoint(trained).net) == (4, 4, 8, 8, 2)
    widened = config.override(widths=[], fine=9)
    run = Trainer(photos, widened, tmp_path / "widened", init=checkpoint)
    assert channels(run.net) == (*WIDE, 9)
    torch.testing.assert_close(
        read_checkpoint(tmp_path / "widened" / "start.pth").net.fine.c.weight,
        run.net.fine.c.weight.detach(),
        rtol=1e-3,
        atol=1e-4,
    )
    strided = Trainer(photos, config.override(fine_stride=2), tmp_path / "strided", init=checkpoint).run()
    assert read_checkpoint(strided).net.fine.stride == 2
    with pytest.raises(TrainingError, match="stride 1"):
        Trainer(photos, config.override(fine_stride=1), tmp_path / "back", init=strided)
    wider = config.override(widths=[64, 128, 256, 512])
    with pytest.raises(TrainingError, match="not all within"):
        Trainer(photos, wider, tmp_path / "other", init=checkpoint)


def test_average_lies_between_the_two_networks(tmp_path: Path) -> None:
    paths = []
    for value in (1.0, 3.0):
        net = wide_net()
        torch.nn.init.constant_(net.dense_feature_extraction.model[0].weight, value)
        paths.append(tmp_path / f"{value}.pth")
        torch.save({"model": net.state_dict(), "d2feat": {"name": "x", "head": "fine"}}, paths[-1])
    average(*paths, tmp_path / "mean.pth", 0.25)
    found = read_checkpoint(tmp_path / "mean.pth").net
    assert set(found.dense_feature_extraction.model[0].weight.unique().tolist()) == {1.5}
    assert torch.equal(found.fine.c.bias, wide_net().fine.c.bias.half().float())
    with pytest.raises(ValueError, match="share"):
        average(*paths, tmp_path / "mean.pth", 1.5)
    torch.save({"model": D2Net((8, 12, 16, 16), fine=FINE).state_dict()}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="widths"):
        average(paths[0], tmp_path / "other.pth", tmp_path / "mean.pth")
