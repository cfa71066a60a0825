"""Reference networks with latent-diffusion's names, written from the papers' descriptions: MVDream's UNet, Stable
Diffusion's VAE and OpenCLIP's text tower. Plain and slow; what the converted networks are compared with."""

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def time_features(t: Tensor, width: int) -> Tensor:
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int, emb: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, inside), nn.SiLU(), nn.Conv2d(inside, outside, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, outside))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, outside), nn.SiLU(), nn.Identity(), nn.Conv2d(outside, outside, 3, padding=1)
        )
        self.skip_connection = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        out: Tensor = self.skip_connection(x) + self.out_layers(h)
        return out


class Attention(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.reshape(*y.shape[:2], self.heads, -1).transpose(1, 2)

        q, k, v = split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context))
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        out: Tensor = self.to_out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return out


class GatedLinear(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, -1)
        out: Tensor = value * F.gelu(gate)
        return out


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedLinear(width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Block(nn.Module):
    """Self-attention over all views of a group, cross-attention per view, feed-forward."""

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1 = Attention(width, width, heads)
        self.attn2 = Attention(width, context, heads)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, context: Tensor, views: int) -> Tensor:
        joint = self.norm1(x).reshape(len(x) // views, -1, x.shape[-1])
        x = x + self.attn1(joint, joint).reshape(x.shape)
        x = x + self.attn2(self.norm2(x), context)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([Block(width, context, heads)])
        self.proj_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, views: int) -> Tensor:
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        h = self.proj_out(self.transformer_blocks[0](h, context, views))
        out: Tensor = x + h.transpose(1, 2).reshape(x.shape)
        return out


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2))
        return out


class MultiviewUNet(nn.Module):
    """MVDream's UNet. x [B, C, h, w], t [B], context [B, L, D], camera [B, 16], views per group."""

    def __init__(self, channels: list[int], context: int, head_channels: int, latent: int = 4) -> None:
        super().__init__()
        first, emb = channels[0], 4 * channels[0]
        self.width = first
        self.time_embed = nn.Sequential(nn.Linear(first, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.camera_embed = nn.Sequential(nn.Linear(16, emb), nn.SiLU(), nn.Linear(emb, emb))
        last = len(channels) - 1

        def attention(level: int) -> list[nn.Module]:
            width = channels[level]
            return [SpatialTransformer(width, context, width // head_channels)] if level < last else []

        blocks: list[list[nn.Module]] = [[nn.Conv2d(latent, first, 3, padding=1)]]
        skips, width = [first], first
        for level, wanted in enumerate(channels):
            for _ in range(2):
                blocks.append([Residual(width, wanted, emb), *attention(level)])
                width = wanted
                skips.append(width)
            if level < last:
                blocks.append([Downsample(width)])
                skips.append(width)
        self.input_blocks = nn.ModuleList(nn.ModuleList(b) for b in blocks)
        middle = SpatialTransformer(width, context, width // head_channels)
        self.middle_block = nn.ModuleList([Residual(width, width, emb), middle, Residual(width, width, emb)])
        blocks = []
        for level in reversed(range(len(channels))):
            for i in range(3):
                block: list[nn.Module] = [Residual(width + skips.pop(), channels[level], emb), *attention(level)]
                width = channels[level]
                blocks.append([*block, Upsample(width)] if level and i == 2 else block)
        self.output_blocks = nn.ModuleList(nn.ModuleList(b) for b in blocks)
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, latent, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, context: Tensor, camera: Tensor, views: int) -> Tensor:
        emb = self.time_embed(time_features(t, self.width).to(x.dtype)) + self.camera_embed(camera)

        def run(block: nn.Module, h: Tensor) -> Tensor:
            for layer in block.children():
                if isinstance(layer, Residual):
                    h = layer(h, emb)
                elif isinstance(layer, SpatialTransformer):
                    h = layer(h, context, views)
                else:
                    h = layer(h)
            return h

        h, kept = x, []
        for block in self.input_blocks:
            h = run(block, h)
            kept.append(h)
        h = run(self.middle_block, h)
        for block in self.output_blocks:
            h = run(block, torch.cat([h, kept.pop()], 1))
        out: Tensor = self.out(h)
        return out


# ----------------------------------------------------------------------------------------------------------------- VAE


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


class VaeResidual(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(inside), nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2, self.conv2 = norm(outside), nn.Conv2d(outside, outside, 3, padding=1)
        if inside != outside:
            self.nin_shortcut = nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        out: Tensor = h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)
        return out


class VaeAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = norm(width)
        self.q, self.k, self.v = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        weights = (q.transpose(1, 2) @ k / math.sqrt(x.shape[1])).softmax(-1)
        out: Tensor = x + self.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))
        return out


class Part(nn.Module):
    """A named bag of layers."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class VaeDown(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


def vae_middle(width: int) -> Part:
    return Part(block_1=VaeResidual(width, width), attn_1=VaeAttention(width), block_2=VaeResidual(width, width))


def middle(part: Part, h: Tensor) -> Tensor:
    out: Tensor = part.block_2(part.attn_1(part.block_1(h)))
    return out


class Encoder(nn.Module):
    def __init__(self, channels: list[int], latent: int, layers: int) -> None:
        super().__init__()
        self.conv_in, width, levels = nn.Conv2d(3, channels[0], 3, padding=1), channels[0], []
        for level, wanted in enumerate(channels):
            blocks = []
            for _ in range(layers):
                blocks.append(VaeResidual(width, wanted))
                width = wanted
            parts: dict[str, nn.Module] = {"block": nn.ModuleList(blocks)}
            if level < len(channels) - 1:
                parts["downsample"] = VaeDown(width)
            levels.append(Part(**parts))
        self.down = nn.ModuleList(levels)
        self.mid = vae_middle(width)
        self.norm_out, self.conv_out = norm(width), nn.Conv2d(width, 2 * latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            assert isinstance(level, Part)
            for block in level.block:
                h = block(h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)
        out: Tensor = self.conv_out(F.silu(self.norm_out(middle(self.mid, h))))
        return out


class Decoder(nn.Module):
    def __init__(self, channels: list[int], latent: int, layers: int) -> None:
        super().__init__()
        width, levels = channels[-1], []
        self.conv_in = nn.Conv2d(latent, width, 3, padding=1)
        self.mid = vae_middle(width)
        for level in reversed(range(len(channels))):
            blocks = []
            for _ in range(layers + 1):
                blocks.append(VaeResidual(width, channels[level]))
                width = channels[level]
            parts: dict[str, nn.Module] = {"block": nn.ModuleList(blocks)}
            if level:
                parts["upsample"] = Upsample(width)
            levels.append(Part(**parts))
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out, self.conv_out = norm(width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = middle(self.mid, self.conv_in(z))
        for level in reversed(self.up):
            assert isinstance(level, Part)
            for block in level.block:
                h = block(h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out


class Vae(nn.Module):
    def __init__(self, channels: list[int], latent: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(channels, latent, layers), Decoder(channels, latent, layers)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1), nn.Conv2d(latent, latent, 1)

    def mean(self, x: Tensor) -> Tensor:
        out: Tensor = self.quant_conv(self.encoder(x)).chunk(2, 1)[0]
        return out

    def decode(self, z: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.post_quant_conv(z))
        return out


# ---------------------------------------------------------------------------------------------------------------- text


class TextBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = Part(c_fc=nn.Linear(width, 4 * width), c_proj=nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, attn_mask=later, need_weights=False)[0]
        out: Tensor = x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x))))
        return out


class TextTower(nn.Module):
    """OpenCLIP's, whose last layer Stable Diffusion 2 does not use."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.zeros(length, width))
        self.transformer = Part(resblocks=nn.ModuleList(TextBlock(width, heads) for _ in range(layers)))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, width))
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding
        for block in self.transformer.resblocks[:-1]:
            x = block(x)
        out: Tensor = self.ln_final(x)
        return out
