"""SAM-Med2D from its papers, as plain arithmetic over the released weights' names: no modules, heads and windows one by one.

Kirillov et al. 2023, arXiv:2304.02643 (appendix A); Cheng et al. 2023, arXiv:2308.16184 (section 3); Li et al. 2022,
arXiv:2203.16527 (windows, decomposed relative positions). It shares nothing with the port but the names of tensors.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

Weights = Mapping[str, Tensor]
LITTLE = 1e-6
"""Epsilon of the image encoder's and the upscaling's norms; the adapter's and the decoder's is torch's 1e-5."""


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    """x W^T + b, where there is a b."""
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def norm(w: Weights, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    """The last dimension with mean 0 and variance 1, then scaled and shifted."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def norm_of_channels(w: Weights, name: str, x: Tensor) -> Tensor:
    """The same over the channels of maps [image, channel, row, column]."""
    return norm(w, name, x.permute(0, 2, 3, 1), LITTLE).permute(0, 3, 1, 2)


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution function of x."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def attention_in_square(w: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    """Self-attention over all cells of one square [side, side, channel]; a score gets q . R for the row and the column distance."""
    side, width = x.shape[0], x.shape[2]
    depth = width // heads
    q, k, v = linear(w, f"{name}.qkv", x.reshape(side * side, width)).split(width, dim=1)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    down = row.reshape(-1, 1) - row.reshape(1, -1) + side - 1
    across = column.reshape(-1, 1) - column.reshape(1, -1) + side - 1
    seen = []
    for head in range(heads):
        own = slice(head * depth, (head + 1) * depth)
        score = q[:, own] @ k[:, own].T / math.sqrt(depth)
        score = score + (q[:, own] @ w[f"{name}.rel_pos_h"].T).gather(1, down) + (q[:, own] @ w[f"{name}.rel_pos_w"].T).gather(1, across)
        seen.append(torch.softmax(score, dim=1) @ v[:, own])
    return linear(w, f"{name}.proj", torch.cat(seen, dim=1)).reshape(side, side, width)


def attention_in_windows(w: Weights, name: str, x: Tensor, heads: int, side: int) -> Tensor:
    """Attention within windows of a grid [row, column, channel]; windows that stick out see zeros there, as further cells."""
    out = torch.zeros_like(x)
    for top in range(0, x.shape[0], side):
        for left in range(0, x.shape[1], side):
            inside = x[top : top + side, left : left + side]
            window = torch.zeros(side, side, x.shape[2], dtype=x.dtype)
            window[: inside.shape[0], : inside.shape[1]] = inside
            seen = attention_in_square(w, name, window, heads)
            out[top : top + side, left : left + side] = seen[: inside.shape[0], : inside.shape[1]]
    return out


def adapter(w: Weights, name: str, x: Tensor) -> Tensor:
    """Channel attention, then a convolution down and one up, added to the input and normed; x is a grid [row, column, channel]."""
    squeezed = torch.relu(linear(w, f"{name}.channel.0", x.mean(dim=(0, 1))))
    gated = x * torch.sigmoid(linear(w, f"{name}.channel.2", squeezed))
    maps = gated.permute(2, 0, 1).unsqueeze(0)
    down = torch.relu(functional.conv2d(maps, w[f"{name}.spatial.0.weight"], stride=2, padding=1))
    up = torch.relu(functional.conv_transpose2d(down, w[f"{name}.spatial.2.weight"], stride=2, padding=1))
    return norm(w, f"{name}.norm", x + up[0].permute(1, 2, 0))


def encode(w: Weights, image: Tensor, heads: int, window: int, everywhere: tuple[int, ...]) -> Tensor:
    """Features [channel, row, column] of one normalised image [3, size, size]; blocks in `everywhere` attend over the whole grid."""
    patch = w["image_encoder.patch_embed.proj.weight"]
    x = functional.conv2d(image.unsqueeze(0), patch, w["image_encoder.patch_embed.proj.bias"], stride=patch.shape[-1])
    x = x[0].permute(1, 2, 0) + w["image_encoder.pos_embed"][0]
    block = 0
    while f"image_encoder.blocks.{block}.norm1.weight" in w:
        name = f"image_encoder.blocks.{block}"
        side = x.shape[0] if block in everywhere else window
        x = x + attention_in_windows(w, f"{name}.attn", norm(w, f"{name}.norm1", x, LITTLE), heads, side)
        normed = norm(w, f"{name}.norm2", x, LITTLE)
        forward = linear(w, f"{name}.mlp.lin2", gelu(linear(w, f"{name}.mlp.lin1", normed)))
        x = x + forward + adapter(w, f"{name}.Adapter", normed)
        block += 1
    maps = functional.conv2d(x.permute(2, 0, 1).unsqueeze(0), w["image_encoder.neck.0.weight"])
    maps = functional.conv2d(norm_of_channels(w, "image_encoder.neck.1", maps), w["image_encoder.neck.2.weight"], padding=1)
    return norm_of_channels(w, "image_encoder.neck.3", maps)[0]


def place(w: Weights, x: Tensor, y: Tensor) -> Tensor:
    """The embedding of places in [0, 1] x [0, 1]: sines, then cosines, of random frequencies."""
    frequencies = w["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    angle = 2 * math.pi * ((2 * x - 1).unsqueeze(-1) * frequencies[0] + (2 * y - 1).unsqueeze(-1) * frequencies[1])
    return torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)


def point(w: Weights, x: float, y: float, label: int, size: int) -> Tensor:
    """One token of a prompt: label 0 off the target, 1 on it, 2 and 3 the corners of a box, -1 padding, which lies nowhere."""
    if label == -1:
        return w["prompt_encoder.not_a_point_embed.weight"][0]
    at = (torch.tensor(value, dtype=torch.double).add(0.5).div(size) for value in (x, y))
    return place(w, *at).to(w["prompt_encoder.not_a_point_embed.weight"].dtype) + w[f"prompt_encoder.point_embeddings.{label}.weight"][0]


def attend(w: Weights, name: str, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention of tokens [token, channel]."""
    q, k, v = linear(w, f"{name}.q_proj", query), linear(w, f"{name}.k_proj", key), linear(w, f"{name}.v_proj", value)
    depth = q.shape[1] // heads
    parts = [slice(head * depth, (head + 1) * depth) for head in range(heads)]
    seen = [torch.softmax(q[:, own] @ k[:, own].T / math.sqrt(depth), dim=1) @ v[:, own] for own in parts]
    return linear(w, f"{name}.out_proj", torch.cat(seen, dim=1))


def two_way(w: Weights, prompts: Tensor, image: Tensor, cells: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Tokens and image cells after they looked at each other."""
    tokens, layer = prompts, 0
    while (name := f"mask_decoder.transformer.layers.{layer}") + ".norm1.weight" in w:
        if layer == 0:
            tokens = attend(w, f"{name}.self_attn", tokens, tokens, tokens, heads)
        else:
            tokens = tokens + attend(w, f"{name}.self_attn", tokens + prompts, tokens + prompts, tokens, heads)
        tokens = norm(w, f"{name}.norm1", tokens)
        tokens = tokens + attend(w, f"{name}.cross_attn_token_to_image", tokens + prompts, image + cells, image, heads)
        tokens = norm(w, f"{name}.norm2", tokens)
        tokens = norm(w, f"{name}.norm3", tokens + linear(w, f"{name}.mlp.lin2", torch.relu(linear(w, f"{name}.mlp.lin1", tokens))))
        image = image + attend(w, f"{name}.cross_attn_image_to_token", image + cells, tokens + prompts, tokens, heads)
        image = norm(w, f"{name}.norm4", image)
        layer += 1
    name = "mask_decoder.transformer"
    tokens = tokens + attend(w, f"{name}.final_attn_token_to_image", tokens + prompts, image + cells, image, heads)
    return norm(w, f"{name}.norm_final_attn", tokens), image


def layers(w: Weights, name: str, x: Tensor) -> Tensor:
    """Linear layers with ReLU between them."""
    number = 0
    while f"{name}.layers.{number + 1}.weight" in w:
        x = torch.relu(linear(w, f"{name}.layers.{number}", x))
        number += 1
    return linear(w, f"{name}.layers.{number}", x)


def decode(w: Weights, features: Tensor, sparse: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Logits [4 rows, 4 columns] of the single mask of one prompt [token, channel], and the overlap expected of it."""
    channels, side = features.shape[0], features.shape[1]
    centre = ((torch.arange(side, dtype=torch.double) + 0.5) / side).to(features.dtype)
    cells = place(w, centre.expand(side, side), centre.unsqueeze(1).expand(side, side)).reshape(side * side, channels)
    image = (features + w["prompt_encoder.no_mask_embed.weight"][0].reshape(channels, 1, 1)).reshape(channels, side * side).T
    prompts = torch.cat([w["mask_decoder.iou_token.weight"], w["mask_decoder.mask_tokens.weight"], sparse])
    tokens, image = two_way(w, prompts, image, cells, heads)
    name = "mask_decoder.output_upscaling"
    maps = image.T.reshape(1, channels, side, side)
    maps = functional.conv_transpose2d(maps, w[f"{name}.0.weight"], w[f"{name}.0.bias"], stride=2)
    maps = gelu(norm_of_channels(w, f"{name}.1", maps))
    maps = gelu(functional.conv_transpose2d(maps, w[f"{name}.3.weight"], w[f"{name}.3.bias"], stride=2))[0]
    kernel = layers(w, "mask_decoder.output_hypernetworks_mlps.0", tokens[1])
    return (kernel.reshape(-1, 1, 1) * maps).sum(0), layers(w, "mask_decoder.iou_prediction_head", tokens[0])[0]
