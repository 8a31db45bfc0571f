# SPDX-License-Identifier: MIT
"""Networks with random weights and what is known of them, worked out by hand. Radii are in input pixels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import nn
from torch.nn import functional as F

from .networks import Chain, Half, Strided, ThreeHalves


@dataclass(frozen=True)
class Known:
    """What is known of a network. `field`: left, right, top, bottom, or None; with fixed statistics: `local`."""

    make: Callable[[], nn.Module]
    field: tuple[int, int, int, int] | None
    phase: int = 1
    scale: Fraction = Fraction(1)
    multiple: int = 1
    trim: int = 0
    local: tuple[int, int, int, int] | None = None
    globals: tuple[str, ...] = ()


def conv(a, b, kernel=3, **options):
    return nn.Conv2d(a, b, kernel, padding=options.pop("padding", kernel // 2), **options)


def chain(*layers):
    return nn.Sequential(*layers)


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Dense(nn.Module):
    """Each convolution sees all before it."""

    def __init__(self, features, growth, layers, slope=0.2):
        super().__init__()
        sides = [features + i * growth for i in range(layers)]
        self.layers = nn.ModuleList(conv(a, growth) for a in sides[:-1])
        self.last, self.slope = conv(sides[-1], features), slope

    def forward(self, x):
        seen = [x]
        for layer in self.layers:
            seen.append(F.leaky_relu(layer(torch.cat(seen, 1)), self.slope))
        return x + 0.2 * self.last(torch.cat(seen, 1))


class UNet(nn.Module):
    """One convolution before going down, one after coming up, one at the bottom.

    At the bottom L = 1. A level around it: outputs i of the level below, enlarged, read from 2 * floor(i / 2) - 2 L to
    2 * floor(i / 2) + 2 L + 1, that is 2 L + 1 either way; a convolution before and one after add 2: L' = 2 L + 3.
    Depths 1 to 4: 5, 13, 29, 61; phase 2, 4, 8, 16."""

    def __init__(self, depth, width=4, channels=3, *, pool=True, gate=False):
        super().__init__()
        sides = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(nn.MaxPool2d(2) if pool else nn.Conv2d(a, a, 2, 2) for a in sides[:-1])
        self.before = nn.ModuleList(conv(a, b) for a, b in itertools.pairwise(sides))
        self.after = nn.ModuleList(conv(b + a, a) for a, b in itertools.pairwise(sides))
        self.head, self.tail = conv(channels, width), nn.Conv2d(width, channels, 1)
        self.gate = Gate(sides[-1]) if gate else nn.Identity()

    def forward(self, x):
        x, kept = torch.relu(self.head(x)), []
        for down, before in zip(self.down, self.before, strict=True):
            kept.append(x)
            x = torch.relu(before(down(x)))
        x = self.gate(x)
        for after in reversed(self.after):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = torch.relu(after(torch.cat([x, kept.pop()], 1)))
        return self.tail(x)


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, width):
        super().__init__()
        self.pool, self.mix = nn.AdaptiveAvgPool2d(1), conv(width, width, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.mix(self.pool(x)))


class Attention(nn.Module):
    """Attention within windows, which are shifted by half a window if asked."""

    def __init__(self, width, window, shift):
        super().__init__()
        self.window, self.shift = window, shift
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, c, height, width = x.shape
        w, s = self.window, self.shift
        y = torch.roll(x, (-s, -s), (2, 3)) if s else x
        y = y.reshape(n, c, height // w, w, width // w, w).permute(0, 2, 4, 3, 5, 1).reshape(-1, w * w, c)
        q, k, v = self.qkv(y).chunk(3, -1)
        scores = 4 * q @ k.transpose(1, 2)
        if s:
            scores = (scores.reshape(n, -1, w * w, w * w) + self.mask(height, width)).flatten(0, 1)
        y = self.out(scores.softmax(-1) @ v)
        y = y.reshape(n, height // w, width // w, w, w, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, height, width)
        return x + (torch.roll(y, (s, s), (2, 3)) if s else y)

    def mask(self, height, width):
        """Keeps apart what was rolled from one end to the other."""
        w, s = self.window, self.shift
        parts = torch.zeros(height, width)
        for i, rows in enumerate((slice(0, -w), slice(-w, -s), slice(-s, None))):
            for j, columns in enumerate((slice(0, -w), slice(-w, -s), slice(-s, None))):
                parts[rows, columns] = 3 * i + j
        parts = parts.reshape(height // w, w, width // w, w).permute(0, 2, 1, 3).reshape(-1, w * w)
        return (parts[:, None] != parts[:, :, None]) * -100.0


class MeanApart(nn.Module):
    """The image's own mean goes round the network."""

    def __init__(self):
        super().__init__()
        self.inner = chain(conv(3, 8), nn.ReLU(), conv(8, 3))

    def forward(self, x):
        mean = x.mean((2, 3), keepdim=True)
        return self.inner(x - mean) + mean


class Coordinates(nn.Module):
    """Sees where a pixel is."""

    def __init__(self):
        super().__init__()
        self.body = conv(4, 3)

    def forward(self, x):
        at = torch.linspace(0, 1, x.shape[3], dtype=x.dtype) + torch.linspace(0, 1, x.shape[2], dtype=x.dtype)[:, None]
        return self.body(torch.cat([x, at.expand(len(x), 1, -1, -1)], 1))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = conv(3, 3)

    def forward(self, x):
        return self.body(x + torch.randn_like(x))


class Spectrum(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = conv(3, 3)

    def forward(self, x):
        spectrum = torch.fft.rfft2(x)
        return self.body(torch.fft.irfft2(spectrum * torch.sigmoid(spectrum.abs()), s=x.shape[2:]))


def dead():
    """No value passes the first activation."""
    model = chain(conv(3, 8), nn.ReLU(), conv(8, 3))
    nn.init.constant_(model[0].bias, -1000.0)
    return model


class RRDB(nn.Module):
    def __init__(self, features, growth):
        super().__init__()
        self.body = chain(*(Dense(features, growth, 5) for _ in range(3)))

    def forward(self, x):
        return x + 0.2 * self.body(x)


class RRDBNet(nn.Module):
    """ESRGAN's network, x4. 15 convolutions a block, 2 around them: 347. Behind the first enlargement one convolution,
    behind the second three. Leftmost, from output 0: 3 at x4 is floor(-3 / 2) = -2 at x2, one more is -3, which is -2
    at x1: 349. Rightmost, from output 3: 6 at x4, 3 and 4 at x2, 2 at x1: 349."""

    def __init__(self, blocks=23, features=64, growth=32):
        super().__init__()
        self.first, self.trunk = conv(3, features), conv(features, features)
        self.body = chain(*(RRDB(features, growth) for _ in range(blocks)))
        self.up1, self.up2, self.high = (conv(features, features) for _ in range(3))
        self.last = conv(features, 3)

    def forward(self, x):
        x = self.first(x)
        x = x + self.trunk(self.body(x))
        for layer in (self.up1, self.up2):
            x = F.leaky_relu(layer(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        return self.last(F.leaky_relu(self.high(x), 0.2))


class SRVGG(nn.Module):
    """Real-ESRGAN's compact network, x4: `layers` + 2 convolutions, and the image enlarged by repetition."""

    def __init__(self, layers=32, width=64):
        super().__init__()
        self.body = chain(conv(3, width), nn.PReLU(width))
        for _ in range(layers):
            self.body.extend([conv(width, width), nn.PReLU(width)])
        self.body.append(conv(width, 48))

    def forward(self, x):
        return F.pixel_shuffle(self.body(x), 4) + F.interpolate(x, scale_factor=4, mode="nearest")


class Conditioned(nn.Module):
    """CSRNet's way: the mean of a strided network's features sets what a pointwise one does."""

    def __init__(self):
        super().__init__()
        self.condition = chain(
            nn.ZeroPad2d(1), conv(3, 8, 7, stride=2, padding=1), nn.ReLU(), conv(8, 8, stride=2), nn.ReLU(), conv(8, 8)
        )
        self.modulate = nn.Linear(8, 16)
        self.head, self.tail = conv(3, 8, 1), conv(8, 3, 1)

    def forward(self, x):
        gain, shift = self.modulate(self.condition(x).mean((2, 3)))[..., None, None].chunk(2, 1)
        return self.tail(F.relu(self.head(x) * (1 + gain) + shift))


class TransposedAttention(nn.Module):
    """Restormer's: between channels, by products over the whole image."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = chain(conv(width, 3 * width, 1), conv(3 * width, 3 * width, groups=3 * width))
        self.out = conv(width, width, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = self.qkv(x).reshape(b, 3, self.heads, c // self.heads, h * w).unbind(1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return x + self.out((scores.softmax(-1) @ v).reshape(b, c, h, w))


class TransposedAttentionNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.tail = conv(3, 8), conv(8, 3)
        self.fine, self.coarse = TransposedAttention(8, 2), TransposedAttention(16, 4)
        self.down = chain(conv(8, 4), nn.PixelUnshuffle(2))
        self.up = chain(conv(16, 32), nn.PixelShuffle(2))

    def forward(self, x):
        fine = self.fine(self.head(x))
        return x + self.tail(fine + self.up(self.coarse(self.down(fine))))


class ResponseNorm(nn.Module):
    """ConvNeXt V2's, channels last."""

    def __init__(self):
        super().__init__()
        self.head, self.tail = conv(3, 8), conv(8, 3)

    def forward(self, x):
        y = self.head(x).permute(0, 2, 3, 1)
        norm = torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True)
        y = y + y * norm / (norm.mean(-1, keepdim=True) + 1e-6)
        return self.tail(y.permute(0, 3, 1, 2))


class ValidGated(nn.Module):
    """Real-CUGAN's way: convolutions without padding, and gates between them."""

    def __init__(self):
        super().__init__()
        self.head = chain(nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.1), nn.Conv2d(8, 8, 3))
        self.fine, self.coarse = Gate(8), Gate(8)
        self.down = chain(nn.Conv2d(8, 8, 2, 2), nn.Conv2d(8, 8, 3))
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.tail = nn.Conv2d(8, 3, 3)

    def forward(self, x):
        fine = self.fine(self.head(x))
        return self.tail(F.pad(fine, (-2, -2, -2, -2)) + self.up(self.coarse(self.down(fine))))


class ManyStatistics(nn.Module):
    """Maximum, minimum, mean, deviation and variance, by operators of several kinds."""

    def __init__(self):
        super().__init__()
        self.head, self.tail, self.most = conv(3, 8), conv(8, 3), nn.AdaptiveMaxPool2d(1)

    def forward(self, x):
        y = self.head(x)
        y = y * torch.sigmoid(self.most(y)) + F.avg_pool2d(y, y.shape[2:]) - y.std((2, 3), keepdim=True)
        return self.tail(y - y.amin((2, 3), keepdim=True) + y.flatten(2).var(-1)[..., None, None])


class GatedBlock(nn.Module):
    """NAFNet's: products of halves for activations, and an attention that multiplies by the mean of everything."""

    def __init__(self, width):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))  # over channels alone
        self.head, self.deep = conv(width, 2 * width, 1), conv(2 * width, 2 * width, groups=2 * width)
        self.pool, self.mix = nn.AdaptiveAvgPool2d(1), conv(width, width, 1)
        self.out, self.wide, self.tail = conv(width, width, 1), conv(width, 2 * width, 1), conv(width, width, 1)

    def forward(self, x):
        one, other = self.deep(self.head(self._normal(0, x))).chunk(2, 1)
        y = one * other
        x = x + self.out(y * self.mix(self.pool(y)))
        one, other = self.wide(self._normal(1, x)).chunk(2, 1)
        return x + self.tail(one * other)

    def _normal(self, which, x):
        return self.norms[which](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NAFNet(nn.Module):
    """Completes sides itself, and crops what it added."""

    def __init__(self, width=4, levels=2):
        super().__init__()
        widths = [width << level for level in range(levels)]
        self.multiple = 2**levels
        self.head, self.tail = conv(3, width), conv(width, 3)
        self.encoder = nn.ModuleList(GatedBlock(one) for one in widths)
        self.down = nn.ModuleList(nn.Conv2d(one, 2 * one, 2, 2) for one in widths)
        self.middle = GatedBlock(width << levels)
        self.up = nn.ModuleList(chain(conv(2 * one, 4 * one, 1), nn.PixelShuffle(2)) for one in reversed(widths))
        self.decoder = nn.ModuleList(GatedBlock(one) for one in reversed(widths))

    def forward(self, x):
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        y, skipped = self.head(x), []
        for block, down in zip(self.encoder, self.down, strict=True):
            skipped.append(block(y))
            y = down(skipped[-1])
        y = self.middle(y)
        for block, up in zip(self.decoder, self.up, strict=True):
            y = block(up(y) + skipped.pop())
        return (x + self.tail(y))[:, :, :height, :width]


def normed_u_net():
    """An instance norm on every level, and a gate at the bottom."""
    inner = chain(Gate(8), nn.InstanceNorm2d(8))
    for _ in range(3):
        inner = chain(nn.Conv2d(8, 8, 2, 2), inner, nn.ConvTranspose2d(8, 8, 2, 2))
        inner = chain(nn.InstanceNorm2d(8), Residual(inner))
    return chain(conv(3, 8), inner, conv(8, 3))


def same(radius):
    return (radius,) * 4


KNOWN = {
    "plain": Known(lambda: Chain(3), same(3)),
    "x4": Known(lambda: Chain(2, scale=4), same(2), scale=Fraction(4)),
    "reflect padding": Known(lambda: Chain(2, mode="reflect"), same(2)),
    "circular padding": Known(lambda: Chain(2, mode="circular"), same(2)),
    # dilations 1 + 2 + 4
    "dilated": Known(
        lambda: chain(conv(3, 8), conv(8, 8, padding=2, dilation=2), nn.GELU(), conv(8, 3, padding=4, dilation=4)),
        same(7),
    ),
    # c = floor(o / s); two coarse convolutions: c -+ 2; the strided one reads s c - 1 .. s c + s, the head 1 more:
    # left s - 1 + 2 s + 2, right s + 1 + 2 s
    "stride 2": Known(lambda: Strided(2), same(7), phase=2, multiple=2),
    "stride 4": Known(lambda: Strided(4), same(13), phase=4, multiple=4),
    # output o reads coarse o - 1 .. o + 1, those 2 (o - 1) - 1 .. 2 (o + 1) + 2; floor(o / s) = 2 o
    "scale 1/2": Known(Half, (3, 4, 3, 4), phase=2, scale=Fraction(1, 2), multiple=2),
    # at x3 output o reads 2 o - 1 .. 2 o + 2. o = 2 c: 6 c' - 1 is pixel 2 c' - 1, one more by mid, one by head: left 3
    # from floor(o / s) = floor(2 o / 3); o = 1: 1 .. 4 is pixels 0 .. 1, from floor(2 / 3) = 0 right 1 + 2
    "scale 3/2": Known(ThreeHalves, same(3), phase=2, scale=Fraction(3, 2), multiple=2),
    # transposed: 2 o reads o - 1, o; 2 o + 1 reads o, o + 1; the convolution 1 more
    "transposed": Known(
        lambda: chain(conv(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1)), same(2), scale=Fraction(2)
    ),
    "depthwise": Known(lambda: chain(conv(3, 8, 1), conv(8, 8, 5, groups=8), nn.SiLU(), conv(8, 3, 1)), same(2)),
    "residual": Known(lambda: Residual(chain(conv(3, 8), nn.PReLU(8), conv(8, 3))), same(2)),
    "dense": Known(lambda: chain(conv(3, 8), Dense(8, 4, 3), conv(8, 3)), same(5)),
    **{
        f"U-Net {depth}, {'pooled' if pool else 'strided'}": Known(
            lambda depth=depth, pool=pool: UNet(depth, pool=pool),
            same(2 ** (depth + 2) - 3),
            phase=2**depth,
            multiple=2**depth,
        )
        for depth in (1, 2, 3, 4)
        for pool in (True, False)
    },
    # c = floor(o / 2) -+ 1: 2 c - 2 .. 2 c + 3
    "unshuffle, shuffle": Known(
        lambda: chain(nn.PixelUnshuffle(2), conv(12, 12), nn.PixelShuffle(2)), same(3), phase=2, multiple=2
    ),
    # 2 c - 1 is pixel c - 1, 2 c + 2 is c + 1; the convolution before 1 more
    "nearest": Known(lambda: chain(conv(3, 8), nn.Upsample(scale_factor=2), conv(8, 3)), same(2), scale=Fraction(2)),
    # 2 c reads c - 1, c; 2 c + 1 reads c, c + 1; so do their neighbours 2 c - 1 and 2 c + 2
    "bilinear": Known(
        lambda: chain(conv(3, 8), nn.Upsample(scale_factor=2, mode="bilinear"), conv(8, 3)),
        same(2),
        scale=Fraction(2),
    ),
    # windows of 4, then shifted by 2: pixels 0 and 1 see -2 .. 1 in the second, -4 .. 3 in the first; 2 and 3 see
    # 0 .. 7: 5 either way, and 1 for the convolution
    "shifted windows": Known(
        lambda: chain(conv(3, 8), Attention(8, 4, 0), Attention(8, 4, 2), conv(8, 3, 1)), same(6), phase=4, multiple=4
    ),
    # rows o - 1 .. o, columns o - 2 .. o
    "one-sided": Known(lambda: chain(nn.ZeroPad2d((2, 0, 1, 0)), nn.Conv2d(3, 3, (2, 3))), (2, 0, 1, 0)),
    "even kernel": Known(lambda: nn.Conv2d(3, 3, 4, padding="same"), (1, 2, 1, 2)),
    "dead activation": Known(dead, same(2)),
    "pooling in place": Known(
        lambda: chain(conv(3, 4), nn.MaxPool2d(3, 1, 1), nn.ReLU(inplace=True), conv(4, 3)), same(3)
    ),
    "valid": Known(lambda: Chain(3, valid=True), same(3), trim=3),
    "batch norm": Known(lambda: chain(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 3)), same(2)),
    "squeeze and excite": Known(
        lambda: chain(conv(3, 8), Gate(8), conv(8, 8), Gate(8), conv(8, 3)),
        None,
        local=same(3),
        globals=("1.pool", "3.pool"),
    ),
    "gated U-Net": Known(lambda: UNet(2, gate=True), None, phase=4, multiple=4, local=same(13), globals=("gate.pool",)),
    "instance norm": Known(
        lambda: chain(conv(3, 8), nn.InstanceNorm2d(8), nn.ReLU(), conv(8, 3)), None, local=same(2), globals=("1",)
    ),
    "group norm": Known(lambda: chain(conv(3, 8), nn.GroupNorm(2, 8), conv(8, 3)), None, local=same(2), globals=("1",)),
    "mean apart": Known(MeanApart, None, local=same(2), globals=("",)),
    # first 2 j - 2 .. 2 j + 4, second 4 j - 4 .. 4 j + 6, third 4 j - 8 .. 4 j + 10; in whole phases 8 and 12
    "conditioned": Known(Conditioned, None, phase=4, local=(8, 12, 8, 12), globals=("",)),
    # c = floor(o / 2) -+ 2, those 2 c - 1 .. 2 c + 2, 2 more before and 1 after: o = 2 c, one to the left: 9
    "transposed attention": Known(
        TransposedAttentionNet, None, phase=2, multiple=2, local=same(9), globals=("fine", "coarse")
    ),
    "response norm": Known(ResponseNorm, None, local=same(2), globals=("",)),
    # loses 2, 2 and 1; tail 1, one coarse pixel and its neighbour 2 + 1, head 2
    "valid, gated": Known(
        ValidGated, None, phase=2, multiple=2, trim=5, local=same(6), globals=("fine.pool", "coarse.pool")
    ),
    "many statistics": Known(ManyStatistics, None, local=same(2), globals=("most", "")),
    # end and last block 2; (o - 2) // 2 - 1 on the next level, half of that - 1 below; back up 2 d - 1, 4 d - 2 - 2:
    # o = 4 k + 3 is left 15
    "NAFNet": Known(
        NAFNet,
        None,
        phase=4,
        local=same(15),
        globals=("encoder.0.pool", "encoder.1.pool", "middle.pool", "decoder.0.pool", "decoder.1.pool"),
    ),
    # cells of 8, and a convolution on either side
    "U-Net of norms": Known(
        normed_u_net,
        None,
        phase=8,
        multiple=8,
        local=same(9),
        globals=(
            "1.0",
            *(f"{'1.1.inner.' * depth}1.0" for depth in (1, 2)),
            *(f"{'1.1.inner.' * 3}1.{one}" for one in ("0.pool", "1")),
        ),
    ),
    "spectrum": Known(Spectrum, None, globals=("",)),
}
