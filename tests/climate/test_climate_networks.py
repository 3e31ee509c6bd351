"""The networks: weights and operations as published, sums that skip concatenation, seams that close, any size."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from exafield.climate.convolution import Convolution, enlarged, pooled
from exafield.climate.doubling import Doubling
from exafield.climate.loss import CrossEntropy
from exafield.climate.model import ORIGINAL, DeepLabV3Plus, Tiramisu
from exafield.climate.operations import PUBLISHED, as_published
from exafield.climate.tiramisu import DenseBlock
from exafield.flops import Operations
from exafield.microscopy.model import weights
from exafield.world import World
from ranks import run_ranks

META = torch.device("meta")


def small(kind: str, channels: int = 4, **options: object) -> nn.Module:
    torch.manual_seed(3)
    if kind == "tiramisu":
        return Tiramisu(channels, layers=(1, 2, 3), width=0.25, dropout=0.0, **options)  # type: ignore[arg-type]
    return DeepLabV3Plus(channels, depth=26, width=0.125, **options)  # type: ignore[arg-type]


BOTH = pytest.mark.parametrize("kind", ["tiramisu", "deeplab"])


# ---- as published ----


@pytest.mark.parametrize(("channels", "millions"), [(16, 7.43), (4, 7.41)])
def test_tiramisu_has_the_published_weights(channels: int, millions: float) -> None:
    with META:
        model = Tiramisu(channels)
    # The original code also makes a transition down behind the lowest block, and reads its result nowhere.
    bottom = 48 + 32 * (2 + 2 + 2 + 4 + 5)
    unread = bottom * (bottom + 1)
    assert round((weights(model) + unread) / 1e6, 2) == millions


def test_deeplab_has_the_published_weights() -> None:
    with META:
        model = DeepLabV3Plus()
        assert round(weights(model) / 1e6, 1) == 43.7
        assert round(weights(DeepLabV3Plus(norm=None)) / 1e6, 1) == 43.7
        # The encoders differ by seventeen units of block 3: 1x1 and 3x3 and 1x1 filters and what normalises them.
        unit = 2 * 1024 * 256 + 9 * 256 * 256 + 1024 + 2 * (1024 + 2 * 256)
        assert weights(DeepLabV3Plus(depth=101)) - weights(model) == 17 * unit


def operations(model: nn.Module, channels: int) -> float:
    """Of forward and backward of a full sample [TFLOP]."""
    with Operations() as counted:
        model(torch.empty(1, channels, 768, 1152, device=META)).sum().backward()
    return counted.exact / 1e12


@pytest.mark.parametrize(
    ("make", "channels", "calculated"),
    [
        (lambda: Tiramisu(16), 16, 3.745),
        (lambda: Tiramisu(4), 4, 3.694),
        (lambda: Tiramisu(16, **ORIGINAL), 16, 0.944),  # type: ignore[arg-type]
        (lambda: DeepLabV3Plus(16), 16, 12.980),
    ],
)
def test_operations_of_a_full_sample(make: object, channels: int, calculated: float) -> None:
    with META:
        model = make()  # type: ignore[operator]
    assert operations(model, channels) == pytest.approx(calculated, abs=6e-4)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: DeepLabV3Plus(16), "DeepLabv3+, 16 channels"),
        (lambda: Tiramisu(16, first=64), "Tiramisu, 16 channels"),
        (lambda: Tiramisu(4), "Tiramisu, 4 channels"),
    ],
)
def test_the_published_counts_follow_from_how_they_were_counted(make: object, name: str) -> None:
    with META:
        model = make()  # type: ignore[operator]
    channels = model.channels
    # DeepLabv3+ lacks 0.005: the mean over the field is projected once here, and at each pixel there.
    assert as_published(model, channels) == pytest.approx(PUBLISHED[name], rel=4e-4)


# ---- sums ----


def test_convolution_of_parts_equals_that_of_their_concatenation() -> None:
    torch.manual_seed(0)
    layer = Convolution(7, 5, 3, periodic=True).double()
    parts = [torch.randn(2, n, 6, 8, dtype=torch.float64) for n in (3, 1, 3)]
    torch.testing.assert_close(layer(*parts), layer(torch.cat(parts, 1)))
    with pytest.raises(RuntimeError, match="split"):
        layer(*parts[:2])


@pytest.mark.parametrize("norm", [None, "batch", "half"])
def test_a_dense_block_equals_the_usual_one(norm: str) -> None:
    torch.manual_seed(0)
    block = DenseBlock(3, 4, 2, 3, norm, 0.0, False).double()  # type: ignore[arg-type]
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    usual = copy.deepcopy(block)
    seen = x
    for convolution, layer_norm in zip(usual.convolutions, usual.norms, strict=True):
        seen = torch.cat([seen, layer_norm(convolution(seen)).relu()], 1)
    expected = seen[:, 3:]
    result = block(x)
    torch.testing.assert_close(result, expected)
    mine = torch.autograd.grad(result.sin().sum(), [x, *block.parameters()])
    others = torch.autograd.grad(expected.sin().sum(), [x, *usual.parameters()])
    torch.testing.assert_close(mine, others)


# ---- the seam ----


@pytest.mark.parametrize("rate", [1, 3, 9])  # the last reaches round the globe
def test_a_periodic_convolution_equals_one_of_three_globes(rate: int) -> None:
    torch.manual_seed(0)
    layer = Convolution(2, 3, 3, rate=rate, periodic=True).double()
    x = torch.randn(1, 2, 6, 8, dtype=torch.float64)
    x.requires_grad_()
    wide = functional.conv2d(torch.cat([x] * 5, -1), layer.weight, layer.bias, padding=rate, dilation=rate)
    result = layer(x)
    torch.testing.assert_close(result, wide[..., 16:24])
    mine = torch.autograd.grad(result.sin().sum(), [x, *layer.parameters()])
    others = torch.autograd.grad(wide[..., 16:24].sin().sum(), [x, *layer.parameters()])
    torch.testing.assert_close(mine, others)


def test_taps_that_only_meet_what_is_beyond_the_poles_are_left_out() -> None:
    torch.manual_seed(0)
    layer = Convolution(2, 3, 3, rate=6, periodic=True).double()
    sizes = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.aten.convolution.default:
                sizes.append(tuple(args[1].shape[2:]))
            return func(*args, **(kwargs or {}))

    with Seen():
        layer(torch.randn(1, 2, 6, 8, dtype=torch.float64))
        layer(torch.randn(1, 2, 7, 8, dtype=torch.float64))
    assert sizes == [(1, 3), (3, 3)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("rows", "columns"), [(6, 8), (3, 5), (2, 1)])
@pytest.mark.parametrize("periodic", [False, True])
def test_doubling_is_a_transposed_convolution(
    layout: torch.memory_format, rows: int, columns: int, periodic: bool
) -> None:
    torch.manual_seed(0)
    layer = Doubling(3, 2, periodic=periodic).double().to(memory_format=layout)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, rows, columns, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    around = torch.cat([x, x[..., :1]], -1) if periodic else x
    usual = functional.conv_transpose2d(around, layer.weight, layer.bias, stride=2, padding=1, output_padding=1)
    usual = usual[..., : 2 * columns]
    result = layer(x)
    torch.testing.assert_close(result, usual)
    mine = torch.autograd.grad(result.sin().sum(), [x, *layer.parameters()])
    others = torch.autograd.grad(usual.sin().sum(), [x, *layer.parameters()])
    torch.testing.assert_close(mine, others)


def test_doubling_computes_in_half_precision_where_it_is_asked_to() -> None:
    torch.manual_seed(0)
    layer = Doubling(4, 4, periodic=True)
    x = torch.randn(1, 4, 6, 8, requires_grad=True)
    whole = torch.autograd.grad(layer(x).sum(), [x, layer.weight])
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(x)
    assert result.dtype == torch.bfloat16
    half = torch.autograd.grad(result.float().sum(), [x, layer.weight])
    for mine, other in zip(half, whole, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, other, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("operation", ["doubling", "pooled", "enlarged"])
def test_other_operations_close_too(operation: str) -> None:
    torch.manual_seed(0)
    doubling = Doubling(2, 2, periodic=True).double()
    act = {
        "doubling": doubling,
        "pooled": lambda x: pooled(x, True),
        "enlarged": lambda x: enlarged(x, 4, True),
    }[operation]
    x = torch.randn(1, 2, 6, 8, dtype=torch.float64)
    whole, three = act(x), act(torch.cat([x] * 3, -1))
    width = whole.shape[-1]
    torch.testing.assert_close(whole, three[..., width : 2 * width])
    if operation == "doubling":
        plain = Doubling(2, 2).double()
        plain.load_state_dict(doubling.state_dict())
        inner = plain(x)
        assert inner.shape == whole.shape
        # Alike but at the seam: only the last column takes something from beyond.
        torch.testing.assert_close(inner[..., :-1], whole[..., :-1])


@BOTH
def test_a_turned_globe_has_turned_masks(kind: str) -> None:
    model = small(kind, periodic=True).double().eval()
    x = torch.randn(1, 4, 16, 32, dtype=torch.float64)
    step = 16  # of any stride inside
    torch.testing.assert_close(model(x.roll(step, -1)), model(x).roll(step, -1))
    regional = small(kind).double().eval()
    assert (regional(x.roll(step, -1)) - regional(x).roll(step, -1)).abs().max() > 1e-3


# ---- any size ----


@BOTH
@pytest.mark.parametrize("periodic", [False, True])
def test_any_size(kind: str, periodic: bool) -> None:
    model = small(kind, periodic=periodic).eval()
    for rows, columns in ((16, 24), (19, 26), (21, 30)):
        assert model(torch.randn(2, 4, rows, columns)).shape == (2, 3, rows, columns)


def test_padding_mirrors_and_turns() -> None:
    """What a network sees that passes its input through."""
    seen: list[Tensor] = []
    model = small("tiramisu", periodic=True)
    model.logits = lambda x: seen.append(x) or x  # type: ignore[assignment,func-returns-value,method-assign]
    x = torch.arange(6.0 * 10).view(1, 1, 6, 10).expand(1, 4, 6, 10).clone()
    torch.testing.assert_close(model(x), x)
    [padded] = seen
    assert padded.shape == (1, 4, 8, 20)
    assert padded[0, 0, :, 5].tolist() == x[0, 0, [1, 0, 1, 2, 3, 4, 5, 4], 0].tolist()
    assert padded[0, 0, 1].tolist() == x[0, 0, 0].roll(5).tolist() * 2
    assert padded[0, 0, 1, 5:15].tolist() == x[0, 0, 0].tolist()


def test_refusals() -> None:
    model = small("deeplab")
    with pytest.raises(ValueError, match=r"expected fields .* 4 channels"):
        model(torch.randn(1, 5, 16, 16))
    with pytest.raises(ValueError, match="3 x 9 pixels are too small"):
        model(torch.randn(1, 4, 3, 9))
    for wrong in ({"depth": 34}, {"output_stride": 4}, {"decoder": "nearest"}, {"norm": "layer"}, {"width": 0.0}):
        # Types are checked in tests, before the network itself looks at its arguments.
        with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
            DeepLabV3Plus(4, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kernel odd"):
        Tiramisu(4, kernel=4)
    with pytest.raises(ValueError, match="two classes"):
        Tiramisu(4, classes=1)


# ---- training ----


@pytest.mark.parametrize(
    "model",
    [
        lambda: small("tiramisu"),
        lambda: small("tiramisu", norm="batch"),
        lambda: small("deeplab"),
        lambda: small("deeplab", norm=None, decoder="deconv", output_stride=16),
        lambda: small("deeplab", norm="half", linear=True),
        lambda: small("deeplab", decoder="bilinear", periodic=True),
    ],
    ids=["tiramisu", "tiramisu batch norm", "deeplab", "deconv, no norm, stride 16", "published", "bilinear"],
)
def test_a_single_sample_is_learnt(model: object) -> None:
    network = model().train()  # type: ignore[operator]
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 24, 32, generator=g)
    labels = (x[:, 0] > 0.5).long() + (x[:, 0] > 1.5).long()
    loss = CrossEntropy()
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    values = []
    for _ in range(25):
        optimiser.zero_grad()
        value = loss(network(x), labels)
        value.backward()
        values.append(float(value.detach()))
        optimiser.step()
    assert all(p.grad is not None for p in network.parameters())
    assert values[-1] < 0.7 * values[0]


@BOTH
def test_weights_follow_from_the_seed(kind: str) -> None:
    one, other = small(kind), small(kind)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("norm", ["batch", None])
def test_fresh_networks_keep_the_size_of_values(norm: str) -> None:
    torch.manual_seed(0)
    deep = DeepLabV3Plus(4, depth=101, width=0.125, norm=norm).train()  # type: ignore[arg-type]
    flat = Tiramisu(4, width=0.25, dropout=0.0, norm=norm)  # type: ignore[arg-type]
    for model in (deep, flat):
        with torch.no_grad():
            assert 0.1 < float(model(torch.randn(1, 4, 48, 64)).std()) < 10


@BOTH
def test_layouts_and_precisions_agree(kind: str) -> None:
    model = small(kind).eval()
    x = torch.randn(2, 4, 16, 24)
    plain = model(x)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.contiguous(memory_format=torch.channels_last)), plain, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model(x)
    assert narrow.dtype == torch.bfloat16
    # bf16 has 8 bits; sums of many layers lose a few of them.
    assert (narrow.float() - plain).std() < 0.05 * plain.std()
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        CrossEntropy()(model(x), torch.zeros(2, 16, 24, dtype=torch.long)).backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def compiled(world: World) -> None:
    # The second stage of the compiler takes long on many layers, so that only the smaller network sees it.
    for kind, backend in (("tiramisu", "aot_eager"), ("deeplab", "eager")):
        model = small(kind, periodic=True)
        x = torch.randn(1, 4, 16, 24)
        captured = torch.compile(copy.deepcopy(model), backend=backend, fullgraph=True)
        mine, others = captured(x), model(x)
        torch.testing.assert_close(mine, others)
        mine.square().mean().backward()
        others.square().mean().backward()
        for a, b in zip(captured.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_what_the_compiler_captures_gives_the_same() -> None:
    # In a process of its own: types are not checked there, which no compiler sees through.
    run_ranks(1, compiled, timeout=300)


def test_dropout_is_off_in_evaluation() -> None:
    model = Tiramisu(4, layers=(1, 2), width=0.25, dropout=0.5)
    x = torch.randn(1, 4, 16, 16)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
