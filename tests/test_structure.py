# SPDX-License-Identifier: MIT
"""The structural pass against answers worked out by hand, and against gradients of models with positive weights."""

import copy
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from halotile.inspection.info import Field
from halotile.inspection.structure import analyse

from .networks import Chain, Half, Strided, ThreeHalves, seeded


class Of(nn.Module):
    """A function as a module, with parts of its own."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def conv(a=3, b=3, k=3, **settings):
    return nn.Conv2d(a, b, k, **({"padding": k // 2} | settings))


def local(model, reach, *, phase=1, scale=1, trim=0, **settings):
    """The model is understood, and local, with this reach on all sides (or left, right, top, bottom)."""
    found = analyse(model, **settings)
    assert not found.unknown and not found.global_operations and not found.coordinate_sensitive and not found.stochastic
    assert found.receptive_field == (Field(*reach) if isinstance(reach, tuple) else Field(*[reach] * 4))
    assert found.phase == (phase if isinstance(phase, tuple) else (phase, phase))
    assert found.scale == Fraction(scale)
    assert found.trim == (None if trim is None else (trim, trim))
    return found


def global_kinds(model, **settings):
    found = analyse(model, **settings)
    assert not found.unknown and found.receptive_field is None, found
    return {(path, kind) for path, _, kind in found.global_operations}


# ---- convolutions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "reach", "phase", "scale"),
    [
        (conv(), 1, 1, 1),
        (conv(k=1), 0, 1, 1),
        (conv(k=7), 3, 1, 1),
        (conv(k=3, dilation=3, padding=3), 3, 1, 1),
        (conv(6, 6, 5, groups=6), 2, 1, 1),
        (nn.Conv2d(3, 3, (1, 5), padding=(0, 2)), (2, 2, 0, 0), 1, 1),
        (conv(k=3, stride=2), 1, 2, "1/2"),
        (conv(k=4, stride=2, padding=1), (1, 2, 1, 2), 2, "1/2"),
        (nn.ConvTranspose2d(3, 3, 2, 2), 0, 1, 2),
        (nn.ConvTranspose2d(3, 3, 4, 2, 1), 1, 1, 2),
        (nn.ConvTranspose2d(3, 3, 3, 2, 1, output_padding=1), (0, 1, 0, 1), 1, 2),
        (nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(3, 3, 2)), (1, 0, 1, 0), 1, 1),
        (nn.Sequential(nn.ReflectionPad2d(2), nn.Conv2d(3, 3, 5)), 2, 1, 1),
        (nn.Sequential(nn.ReplicationPad2d((0, 2, 0, 2)), nn.Conv2d(3, 3, 3)), (0, 2, 0, 2), 1, 1),
        (conv(padding_mode="reflect"), 1, 1, 1),
        (nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.PReLU(8), nn.Dropout(), conv(8, 3)), 2, 1, 1),
        (nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2)), 1, 2, 1),
        (nn.MaxPool2d(3, 1, 1), 1, 1, 1),
        (nn.AvgPool2d(2), (0, 1, 0, 1), 2, "1/2"),
        (nn.Upsample(scale_factor=2), 0, 1, 2),
        (nn.Upsample(scale_factor=2, mode="bilinear"), 1, 1, 2),
        (nn.Upsample(scale_factor=2, mode="bicubic"), 2, 1, 2),
        (nn.Upsample(scale_factor=1.5), 0, 2, "3/2"),
        (nn.Upsample(scale_factor=0.5, mode="bilinear"), (0, 1, 0, 1), 2, "1/2"),
        (nn.Sequential(nn.PixelUnshuffle(2), conv(12, 12), nn.PixelShuffle(2)), 3, 2, 1),
        (nn.Sequential(conv(3, 27), nn.PixelShuffle(3)), 1, 1, 3),
    ],
)
def test_layers(layer, reach, phase, scale):
    channels = next((m.in_channels for m in layer.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))), 3)
    channels = 3 if isinstance(layer, nn.Sequential) else channels
    local(layer, reach, phase=phase, scale=scale, channels=channels)


def test_valid_convolutions_lose_pixels_and_see_as_far_as_padded_ones():
    local(Chain(3, valid=True), 3, trim=3)
    local(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 3, 5)), 1, scale=2, trim=2)


def test_valid_convolutions_with_crops():
    """waifu2x: UpConv7, whose transposed convolution crops, and a valid U-Net that crops what it skips."""
    upconv = nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(6)), nn.ConvTranspose2d(3, 3, 4, 2, 3))
    local(upconv, 7, scale=2, trim=14)

    def unet(m, x):
        x = m.a(x)
        return m.e(F.pad(x, (-4, -4, -4, -4)) + m.d(m.c(m.b(x))))

    valid = {name: nn.Conv2d(3, 3, 3) for name in "ace"}
    model = Of(
        unet, **valid, b=nn.Conv2d(3, 3, 2, 2), d=nn.Sequential(nn.Conv2d(3, 3, 3), nn.ConvTranspose2d(3, 3, 2, 2))
    )
    local(model, 7, phase=2, trim=6)
    left, right = by_gradient(model, 2, trim=6)
    assert (left, right) == (7, 7)


def test_an_even_valid_kernel_has_no_loss_that_is_the_same_at_both_ends():
    found = local(nn.Conv2d(3, 3, 2), (0, 1, 0, 1), trim=None)
    assert any("one end" in note for note in found.notes)


def test_known_networks():
    local(Chain(4), 4)
    local(Strided(2), 7, phase=2)
    local(Strided(4, scale=2), 13, phase=4, scale=2)
    local(Half(), (3, 4, 3, 4), phase=2, scale="1/2")
    local(ThreeHalves(), 3, phase=2, scale="3/2")


def test_residual_and_dense():
    local(Of(lambda m, x: x + 0.2 * m.b(torch.relu(m.a(x))), a=conv(3, 8), b=conv(8, 3)), 2)

    def dense(m, x):
        features = [x]
        for layer in m.layers:
            features.append(F.leaky_relu(layer(torch.cat(features, 1)), 0.2))
        return m.last(torch.cat(features, 1))

    layers = nn.ModuleList(conv(3 + 4 * i, 4) for i in range(4))
    local(Of(dense, layers=layers, last=conv(19, 3, 1)), 4)


# ---- U-Nets ----------------------------------------------------------------------------------------------------------


class UNet(nn.Module):
    def __init__(self, depth, down="pool", up="transposed", width=4):
        super().__init__()
        self.head, self.tail = conv(3, width), conv(width, 3)
        self.body = nn.ModuleList(conv(width, width) for _ in range(depth))
        self.joins = nn.ModuleList(conv(2 * width, width) for _ in range(depth))
        make_down = {"pool": lambda: nn.MaxPool2d(2), "stride": lambda: conv(width, width, 3, stride=2)}[down]
        make_up = {
            "transposed": lambda: nn.ConvTranspose2d(width, width, 2, 2),
            "nearest": lambda: nn.Sequential(nn.Upsample(scale_factor=2), conv(width, width)),
            "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        }[up]
        self.downs = nn.ModuleList(make_down() for _ in range(depth))
        self.ups = nn.ModuleList(make_up() for _ in range(depth))

    def forward(self, x):
        x, skips = torch.relu(self.head(x)), []
        for down, body in zip(self.downs, self.body, strict=True):
            skips.append(x)
            x = torch.relu(body(down(x)))
        for up, join in zip(self.ups, self.joins, strict=True):
            x = torch.relu(join(torch.cat([up(x), skips.pop()], 1)))
        return self.tail(x)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize(("down", "up"), [("pool", "transposed"), ("stride", "nearest"), ("pool", "bilinear")])
def test_unets(depth, down, up):
    found = analyse(UNet(depth, down, up))
    assert found.phase == (2**depth, 2**depth) and found.scale == 1 and not found.unknown
    if (down, up) == ("pool", "transposed"):
        assert found.receptive_field == Field(*[4 * 2**depth - 2] * 4)
    if depth < 3:  # deeper ones take long
        left, right = by_gradient(UNet(depth, down, up), 2**depth, width=48 * depth)
        assert found.receptive_field == Field(left, right, left, right)


def test_a_unet_by_hand():
    # Right of an even pixel: tail and join reach 2, the even pixel of the next coarse one; the convolution there
    # reaches the coarse pixel after it, whose pool ends at 2 + 2 + 1; the head goes one beyond. Odd pixels: leftwards.
    local(UNet(1), 6, phase=2)


# ---- an independent oracle: gradients with positive weights ----------------------------------------------------------


def by_gradient(model, phase, *, scale=1, width=240, trim=0):
    """How far output pixels of the middle see along their row: gradients that are not zero, in a copy of the model with
    positive weights and averages for maxima. (left, right)"""
    model = positive(copy.deepcopy(model).double().eval())
    return seen_by(model, torch.ones(1, 3, 16, width, dtype=torch.float64), phase, scale, trim)


def positive(model):
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.MaxPool2d):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding))
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.abs() + 0.1 if name.endswith("weight") else torch.zeros_like(parameter)
        parameter.data /= max(1, parameter[0].numel())
    return model


def seen_by(model, image, phase, scale=1, trim=0):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for tensors this small, more only wait for each other
    try:
        return _seen_by(model, image, phase, scale, trim)
    finally:
        torch.set_num_threads(threads)


def _seen_by(model, image, phase, scale, trim):
    image, width, scale = image.requires_grad_(), image.shape[3], Fraction(scale)
    output = model(image)
    first = int(width // 2 // phase * phase * scale)
    left, right = 0, 0
    for place in range(first, first + max(int(phase * scale), scale.numerator)):
        (gradient,) = torch.autograd.grad(output[:, :, :, place].sum(), image, retain_graph=True)
        seen = gradient[0].abs().sum((0, 1)).nonzero().flatten().tolist()
        center = int((place + trim) / scale)
        left, right = max(left, center - seen[0]), max(right, seen[-1] - center)
    return left, right


@pytest.mark.parametrize(
    ("make", "scale"),
    [
        (lambda: Chain(4), 1),
        (lambda: Chain(2, scale=2), 2),
        (lambda: Strided(2), 1),
        (lambda: Strided(4, scale=2), 2),
        (Half, Fraction(1, 2)),
        (ThreeHalves, Fraction(3, 2)),
        (lambda: UNet(2, "stride", "nearest"), 1),
        (lambda: UNet(3, "pool", "bilinear"), 1),
        (lambda: UNet(3, "stride", "transposed"), 1),
        (lambda: nn.Sequential(conv(k=3, dilation=2, padding=2), nn.ConvTranspose2d(3, 3, 5, 3, 1), conv(stride=3)), 1),
        (lambda: nn.Sequential(nn.Upsample(scale_factor=3, mode="bicubic"), conv(k=2, stride=2, padding=0)), "3/2"),
        (lambda: nn.Sequential(nn.Upsample(scale_factor=1.5), conv(), nn.AvgPool2d(3)), "1/2"),
        (lambda: nn.Sequential(nn.PixelUnshuffle(4), conv(48, 48), nn.PixelShuffle(2), nn.PixelShuffle(2)), 1),
    ],
)
def test_gradients_agree(make, scale):
    model = seeded(make)
    found = analyse(model)
    assert found.scale == Fraction(scale) and found.phase is not None
    steps = found.phase[0] * found.scale.denominator
    left, right = by_gradient(model, steps, scale=scale)
    assert found.receptive_field == Field(left, right, left, right)


# ---- shapes ----------------------------------------------------------------------------------------------------------


def unshuffle_by_view(x, n):
    b, c, h, w = x.shape
    return x.view(b, c, h // n, n, w // n, n).permute(0, 1, 3, 5, 2, 4).reshape(b, c * n * n, h // n, w // n)


def shuffle_by_view(x, n):
    b, c, h, w = x.shape
    return x.reshape(b, c // n**2, n, n, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // n**2, h * n, w * n)


def test_shuffles_written_as_reshapes():
    local(Of(lambda m, x: shuffle_by_view(m.a(unshuffle_by_view(x, 2)), 2), a=conv(12, 12)), 3, phase=2)
    local(Of(lambda m, x: shuffle_by_view(m.a(x), 2), a=conv(3, 12)), 1, scale=2)
    local(Of(lambda m, x: shuffle_by_view(torch.relu(unshuffle_by_view(x, 4)), 4)), 0)  # the same pixels again


def test_wavelets_by_slices():
    def forward(m, x):
        parts = torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
        parts = m.a(parts)
        out = torch.zeros_like(x)
        for k, part in enumerate(parts.chunk(4, 1)):
            out[:, :, k // 2 :: 2, k % 2 :: 2] = part
        return out

    local(Of(forward, a=conv(12, 12)), 3, phase=2)


def test_padding_to_a_multiple_and_cropping():
    def forward(m, x):
        h, w = x.shape[2:]
        x = F.pad(x, (0, -w % 16, 0, -h % 16), mode="reflect")
        return m.a(x)[:, :, :h, :w]

    found = analyse(Of(forward, a=UNet(2)), size=(60, 60))
    assert found.receptive_field == analyse(UNet(2)).receptive_field and found.phase == (4, 4)


def test_a_crop_that_depends_on_the_size_is_unknown():
    assert analyse(Of(lambda m, x: x[:, :, x.shape[2] // 2 :])).unknown
    assert analyse(Of(lambda m, x: F.interpolate(F.interpolate(x, (32, 32)), x.shape[2:]))).unknown
    assert analyse(Of(lambda m, x: x.flip(3))).unknown
    assert analyse(Of(lambda m, x: x.transpose(2, 3))).unknown
    assert analyse(Of(lambda m, x: x * x[:, :, :1])).unknown


# ---- attention -------------------------------------------------------------------------------------------------------


class SwinBlock(nn.Module):
    """Windowed attention as in SwinIR: roll, partition, attention with a mask, reverse."""

    def __init__(self, window=8, shift=0, width=8, heads=2, fused=False, masked=True):
        super().__init__()
        self.window, self.shift, self.heads, self.fused, self.masked = window, shift, heads, fused, masked
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))
        self.bias = nn.Parameter(torch.randn(heads, window**2, window**2))

    def partition(self, x):
        b, h, w, c = x.shape
        x = x.view(b, h // self.window, self.window, w // self.window, self.window, c)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, self.window**2, c)

    def reverse(self, x, h, w):
        b = int(x.shape[0] / (h * w / self.window**2))
        x = x.view(b, h // self.window, w // self.window, self.window, self.window, -1)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, -1)

    def mask(self, h, w):
        mask, count = torch.zeros(1, h, w, 1), 0
        pieces = (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
        for rows in pieces:
            for columns in pieces:
                mask[:, rows, columns] = count
                count += 1
        mask = self.partition(mask).squeeze(-1)
        mask = mask.unsqueeze(1) - mask.unsqueeze(2)
        return mask.masked_fill(mask != 0, -100.0)

    def attention(self, x, mask):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        else:
            scores = q @ k.transpose(-2, -1) + self.bias.unsqueeze(0)
            if mask is not None:
                scores = scores.view(b // len(mask), len(mask), self.heads, n, n) + mask.unsqueeze(1).unsqueeze(0)
                scores = scores.view(-1, self.heads, n, n)
            x = scores.softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, c))

    def forward(self, x):  # b, h, w, c
        h, w = x.shape[1:3]
        short, x = x, self.norm(x)
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        mask = self.mask(h, w) if self.shift and self.masked else None
        x = self.reverse(self.attention(self.partition(x), mask), h, w)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        x = short + x
        return x + self.mlp(x)


def swin(*blocks):
    def forward(m, x):
        x = m.head(x).permute(0, 2, 3, 1)
        return m.tail(m.blocks(x).permute(0, 3, 1, 2))

    return Of(forward, head=conv(3, 8), tail=conv(8, 3), blocks=nn.Sequential(*blocks))


@pytest.mark.parametrize("fused", [False, True])
def test_windowed_attention(fused):
    # The tail reaches the next window, all 8 rows of it; the head goes one beyond.
    local(swin(SwinBlock(fused=fused)), 9, phase=8)


@pytest.mark.parametrize("masked", [False, True])
def test_shifted_windows(masked):
    # The tail reaches the first row of a shifted window, its last is 7 away, that of the plain window there 4 more; the
    # head goes one beyond.
    found = local(swin(SwinBlock(), SwinBlock(shift=4, masked=masked)), 13, phase=8)
    assert any("roll" in note for note in found.notes)
    assert any("constant differs" in note for note in found.notes) == masked


def test_gradients_agree_for_shifted_windows():
    torch.manual_seed(0)
    model = swin(SwinBlock(), SwinBlock(shift=4)).double()
    found = analyse(model)
    assert seen_by(model, torch.rand(1, 3, 16, 64, dtype=torch.float64), 8) == found.receptive_field[:2]


def test_overlapping_windows():
    """Queries of 4x4 windows, keys of 8x8 around them, by unfold: HAT's overlapping cross-attention."""

    def forward(m, x):
        b, c, h, w = x.shape
        q = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        k = F.unfold(m.a(x), 8, stride=4, padding=2).view(b, c, 64, -1).permute(0, 3, 2, 1).reshape(-1, 64, c)
        y = (q @ k.transpose(1, 2)).softmax(-1) @ k
        return y.view(b, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)

    model = Of(forward, a=conv())
    local(model, 6, phase=4)  # the first of a window sees its last, 2 beyond it, and the convolution's 1
    assert seen_by(model.double(), torch.rand(1, 3, 16, 48, dtype=torch.float64), 4) == (6, 6)


def test_other_windows():
    local(swin(SwinBlock(window=7)), 8, phase=7)
    found = local(swin(SwinBlock(window=4), SwinBlock(window=6)), 1 + 5 + 2 + 1, phase=12)
    assert found.sizes[0] == (240, 240)


def test_attention_over_a_grid_is_unknown():
    def forward(m, x):  # 8 x 8 cells whose size grows with the image: dilated attention of MaxViT
        b, c, h, w = x.shape
        x = x.view(b, c, 8, h // 8, 8, w // 8).permute(0, 3, 5, 2, 4, 1).reshape(-1, 64, c)
        x = (x @ x.transpose(1, 2)).softmax(-1) @ x
        return x.view(b, h // 8, w // 8, 8, 8, c).permute(0, 5, 3, 1, 4, 2).reshape(b, c, h, w)

    found = analyse(Of(forward))
    assert found.receptive_field is None and (found.unknown or found.global_operations)


class Tokens(nn.Module):
    def __init__(self, attention, **parts):
        super().__init__()
        self.attention, self.parts = attention, nn.ModuleDict(parts)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return x + self.attention(self.parts, tokens).transpose(1, 2).reshape(x.shape)


def test_attention_over_everything():
    fused = Tokens(lambda p, t: F.scaled_dot_product_attention(t, t, t))
    plain = Tokens(lambda p, t: (t @ t.transpose(1, 2)).softmax(-1) @ t)
    channels = Tokens(lambda p, t: t @ (t.transpose(1, 2) @ t).softmax(-1))
    module = Tokens(lambda p, t: p["a"](t, t, t)[0], a=nn.MultiheadAttention(4, 2, batch_first=True))
    for model, width in ((fused, 3), (plain, 3), (channels, 3), (module, 4)):
        kinds = global_kinds(model, channels=width)
        assert {kind for _, kind in kinds} == {"attention"}
        assert all(path in ("", "parts.a") for path, _ in kinds)
    local(Tokens(lambda p, t: p["a"](t), a=nn.Linear(3, 3)), 0)


# ---- global operations -----------------------------------------------------------------------------------------------


class SqueezeExcite(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.pool, self.a, self.b = nn.AdaptiveAvgPool2d(1), conv(width, 4, 1), conv(4, width, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.b(torch.relu(self.a(self.pool(x)))))


def test_squeeze_and_excite_is_named():
    model = nn.Sequential(conv(3, 8), SqueezeExcite(), conv(8, 8), SqueezeExcite(), conv(8, 3))
    assert global_kinds(model) == {("1.pool", "squeeze-and-excite"), ("3.pool", "squeeze-and-excite")}
    found = analyse(model)
    assert found.phase == (1, 1) and found.scale == 1 and found.trim == (0, 0)


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        (nn.Sequential(conv(3, 4), nn.InstanceNorm2d(4, affine=True), conv(4, 3)), {("1", "instance norm")}),
        (nn.Sequential(conv(3, 4), nn.GroupNorm(2, 4), conv(4, 3)), {("1", "group norm")}),
        (Of(lambda m, x: x - x.mean((2, 3), keepdim=True)), {("", "global pooling")}),
        (Of(lambda m, x: x + F.adaptive_max_pool2d(x, 1)), {("", "global pooling")}),
        (Of(lambda m, x: x / x.sum(2, keepdim=True)), {("", "reduction")}),
        (Of(lambda m, x: x / x.std()), {("", "reduction")}),
        (Of(lambda m, x: x.cumsum(3)), {("", "reduction")}),
        (Of(lambda m, x: F.conv2d(x, x.mean((2, 3)).view(3, 1, 1, 1), groups=3)), {("", "global pooling")}),
        (Of(lambda m, x: x * torch.view_as_real(torch.fft.fft2(x)).mean(4)), {("", "fft")}),
        (Of(lambda m, x: x + torch.fft.irfft2(torch.fft.rfft2(x) * 2)), {("", "fft")}),
        (Of(lambda m, x: F.layer_norm(x, x.shape[1:])), {("", "reduction")}),
        (Of(lambda m, x: x.softmax(2)), {("", "attention")}),
        (Of(lambda m, x: x + x.amax((2, 3)).view(1, 3, 1, 1).expand_as(x)), {("", "global pooling")}),
    ],
)
def test_global_operations_are_named(model, kinds):
    assert global_kinds(model) == kinds


def test_what_looks_global_and_is_not():
    local(Of(lambda m, x: x - x.mean(1, keepdim=True)), 0)
    local(Of(lambda m, x: (x - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)) * 255), 0)
    local(Of(lambda m, x: m.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), a=nn.LayerNorm(3)), 0)
    local(Of(lambda m, x: x.softmax(1) + x.sort(1).values + x[:, [2, 1, 0]] + x.amax(1, keepdim=True)), 0)
    local(nn.InstanceNorm2d(3, track_running_stats=True), 0)
    b_h2_w2 = Of(lambda m, x: x.view(1, 3, x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5)))
    local(b_h2_w2, (0, 1, 0, 1), phase=2, scale="1/2")
    local(Of(lambda m, x: torch.einsum("bchw,dc->bdhw", x, m.a.weight), a=nn.Linear(3, 3)), 0)


def test_what_does_not_reach_the_result_does_not_count():
    def forward(m, x):
        x.mean(), torch.relu(x)[:, :, ::2]
        return m.a(x)

    local(Of(forward, a=conv()), 1)


# ---- place, chance, the unknown --------------------------------------------------------------------------------------


def with_coordinates(m, x):
    y = torch.arange(x.shape[2], device=x.device).view(1, 1, -1, 1).expand(1, 1, *x.shape[2:]) / x.shape[2]
    return m.a(torch.cat([x, y.to(x)], 1))


def test_place_in_the_image():
    fixed = analyse(Of(lambda m, x: x + m.place, place=nn.Parameter(torch.zeros(1, 3, 64, 64))))
    assert fixed.coordinate_sensitive and "only at 64x64" in fixed.unknown[0][1]
    embedded = Of(lambda m, x: x + F.interpolate(m.place, x.shape[2:]), place=nn.Parameter(torch.randn(1, 3, 8, 8)))
    grid = Of(lambda m, x: x * torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")[0])
    for model in (Of(with_coordinates, a=conv(4, 3)), embedded, grid):
        assert analyse(model).coordinate_sensitive
    found = analyse(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))
    assert found.coordinate_sensitive and found.receptive_field is None
    local(Of(lambda m, x: x * torch.ones(1, 1, *x.shape[2:])), 0)  # the same everywhere


def test_chance():
    found = analyse(Of(lambda m, x: m.a(x + 0.1 * torch.randn_like(x)), a=conv()))
    assert found.stochastic == (("", "aten.randn_like.default"),) and found.receptive_field == Field(1, 1, 1, 1)
    assert analyse(Of(lambda m, x: F.dropout(x, 0.5, True))).stochastic
    assert analyse(Of(lambda m, x: x + torch.rand(1))).stochastic
    local(nn.Sequential(nn.Dropout2d(), nn.Dropout()), 0)


@torch.library.custom_op("halotile_tests::mystery", mutates_args=())
def mystery(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@torch.library.custom_op("halotile_tests::shapeless", mutates_args=())
def shapeless(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@mystery.register_fake
def _(x):
    return torch.empty_like(x)


def test_operators_that_are_not_in_the_table_are_unknown():
    found = analyse(nn.Sequential(conv(), Of(lambda m, x: mystery(x)), conv()))
    assert found.unknown == (("1", "halotile_tests.mystery.default"),)
    assert found.receptive_field is None and found.phase is None and found.scale == 1
    found = analyse(nn.Sequential(conv(), Of(lambda m, x: shapeless(x))))
    assert found.unknown[0][0] == "1" and "shapeless" in found.unknown[0][1] and found.receptive_field is None
    grid = Of(lambda m, x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), align_corners=False))
    assert analyse(grid).unknown


def test_values_that_decide_are_unknown():
    found = analyse(Of(lambda m, x: x if x.mean() > 0 else -x))
    assert found.unknown and found.receptive_field is None and found.scale is None
    assert analyse(Of(lambda m, x: x * float(x.max()))).unknown
    assert analyse(Of(lambda m, x: conv(5, 3)(x))).unknown
    assert analyse(Of(lambda m, x: (x, x))).unknown
    assert analyse(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")).unknown


def test_sizes_that_decide_are_unknown():
    def forward(m, x):
        return m.a(x) if x.shape[2] < 100 else m.b(x) if x.shape[2] < 200 else x

    assert analyse(Of(forward, a=conv(), b=conv(k=5))).unknown
    assert analyse(Of(lambda m, x: x / x.shape[2])).unknown

    def enhanced(m, x):  # ESA: what is pooled without padding is stretched to the image's size
        y = F.max_pool2d(m.b(m.a(x)), 7, 3)
        return x * torch.sigmoid(F.interpolate(m.c(y), x.shape[2:], mode="bilinear", align_corners=False))

    found = analyse(Of(enhanced, a=conv(), b=nn.Conv2d(3, 3, 3, 2), c=conv()))
    assert found.unknown[-1] == ("", "what it does depends on the size of the image")


# ---- modules ---------------------------------------------------------------------------------------------------------


def test_the_module_is_left_as_it_was():
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.cache = conv(), {}
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x):
            self.count += 1
            self.mask = torch.zeros_like(x)
            self.cache["x"] = x
            x = self.a(x)
            x += 1
            return x.clamp_(0, 1)

    model = Careless().train()
    model.a.eval()
    before, state = dict(vars(model)), torch.get_rng_state()
    local(model, 1)
    local(nn.Sequential(model, Of(lambda m, x: x * 2)), 1)
    assert vars(model) == before and model.training and not model.a.training
    assert model.cache == {} and model.count == 0 and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_dtypes(dtype):
    local(UNet(1).to(dtype), analyse(UNet(1)).receptive_field, phase=2)


def test_scripted_and_exported_models():
    want = analyse(UNet(2)).receptive_field
    scripted = torch.jit.trace(UNet(2).eval(), torch.rand(1, 3, 64, 64))
    local(scripted, want, phase=4)
    local(torch.jit.freeze(torch.jit.script(nn.Sequential(conv(), conv()).eval())), 2)
    side = torch.export.Dim.AUTO
    model = nn.Sequential(UNet(2), SqueezeExcite(3)).eval()
    exported = torch.export.export(model, (torch.rand(1, 3, 64, 64),), dynamic_shapes=({2: side, 3: side},))
    assert global_kinds(exported) == {("1.pool", "squeeze-and-excite")}
    fixed = analyse(torch.export.export(UNet(2).eval(), (torch.rand(1, 3, 96, 96),)))
    assert fixed.receptive_field == want and fixed.sizes == ((96, 96),) and "only" in fixed.notes[-1]


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match="module"):
        analyse(lambda x: x)
    with pytest.raises(ValueError, match="channels"):
        analyse(conv(), channels=0)


# ---- networks of full size -------------------------------------------------------------------------------------------


def rrdbnet(blocks=23, width=64, growth=32):
    def dense(m, x):
        features = [x]
        for layer in m.layers[:-1]:
            features.append(F.leaky_relu_(layer(torch.cat(features, 1)), 0.2))
        return x + 0.2 * m.layers[-1](torch.cat(features, 1))

    def block():
        sides = [(width + i * growth, growth if i < 4 else width) for i in range(5)]
        return Of(dense, layers=nn.ModuleList(conv(a, b) for a, b in sides))

    def forward(m, x):
        x = m.head(x)
        x = x + m.after(m.body(x))
        for up in m.ups:
            x = F.leaky_relu_(up(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        return m.tail(x)

    triple = lambda: Of(lambda m, x: x + 0.2 * m.three(x), three=nn.Sequential(*(block() for _ in range(3))))  # noqa: E731
    parts = {"head": conv(3, width), "after": conv(width, width), "tail": nn.Sequential(conv(width, 8), conv(8, 3))}
    body = nn.Sequential(*(triple() for _ in range(blocks)))
    return Of(forward, body=body, ups=nn.ModuleList(conv(width, width) for _ in range(2)), **parts)


def test_rrdbnet():
    # 23 * 3 * 5 convolutions and two more at the image's size; then one pixel of x2; then three of x4, from a corner.
    local(rrdbnet(), 23 * 15 + 2 + 2, scale=4)


def test_srvgg():
    body = [layer for _ in range(16) for layer in (conv(16, 16), nn.PReLU(16))]
    net = nn.Sequential(conv(3, 16), nn.PReLU(16), *body, conv(16, 48), nn.PixelShuffle(4))
    model = Of(lambda m, x: m.net(x) + F.interpolate(x, scale_factor=4, mode="nearest"), net=net)
    local(model, 18, scale=4)
