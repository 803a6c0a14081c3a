"""Writes networks of your own as checkpoints: the weights of a PyTorch module with its graph in their metadata.

Needs torch and safetensors. `save` is all that your program needs; the rest are three examples of graphs:

    python export.py DIRECTORY
    certify bound DIRECTORY/mlp.safetensors
"""

import json
import os
import sys

import torch
from safetensors.torch import save_file
from torch import nn


def save(path, graph, weights):
    """Writes a checkpoint. `weights` has a tensor for each path of a weight in the graph, all of one float type."""
    note = "graph and weights as its author wrote them with export.py"
    origin = dict(family="graph", dialect="original", notes=[note], unused=[])
    meta = dict(format=1, graph=graph, provenance=dict(version="", origin=origin))
    # Kernels are matrices here.
    flat = lambda w: w.flatten(1) if w.dim() == 4 else w
    weights = {name: flat(w.detach().cpu()).clone().contiguous() for name, w in weights.items()}
    save_file(weights, path, {"lipschitz": json.dumps(meta)})


def linear(name, layer):
    """The node of an `nn.Linear`."""
    return dict(name=name, op="linear", inputs=layer.in_features, outputs=layer.out_features, bias=layer.bias is not None)


def convolution(name, layer, bias=None):
    """The node of an `nn.Conv2d` without dilation, with zeros or the other end around the image."""
    (kernel,), (stride,), (padding,) = (set(pair) for pair in (layer.kernel_size, layer.stride, layer.padding))
    if set(layer.dilation) != {1} or layer.padding_mode not in ("zeros", "circular"):
        raise ValueError(f"{name}: no node computes {layer}")
    return dict(name=name, op="conv2d", inputs=layer.in_channels, outputs=layer.out_channels, kernel=kernel, stride=stride,
                padding=padding, circular=layer.padding_mode == "circular", groups=layer.groups,
                bias=layer.bias is not None if bias is None else bias)


def fold(layer, norm):
    """Weight and bias of a convolution that a batch norm in evaluation follows, in f64."""
    weight, std = layer.weight.double(), (norm.running_var.double() + norm.eps).sqrt()
    scale = norm.weight.double() / std
    bias = 0 if layer.bias is None else layer.bias.double()
    return weight * scale[:, None, None, None], (bias - norm.running_mean.double()) * scale + norm.bias.double()


def activation(function):
    return dict(op="activation", function=function, scale=1.0)


def mlp():
    """Nodes that are called as in the module need no other names for their weights."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    nodes = [linear("0", model[0]), activation("tanh"), linear("2", model[2]), activation("relu"), linear("4", model[4])]
    return model, dict(format=1, input=dict(kind="vector", dim=6), nodes=nodes), model.state_dict()


class Transformer(nn.Module):
    """Two of PyTorch's own blocks, causal, with the norms in front."""

    def __init__(self, vocabulary=7, dim=8, heads=2, hidden=12, context=5):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.positions = nn.Parameter(0.1 * torch.randn(context, dim))
        block = dict(d_model=dim, nhead=heads, dim_feedforward=hidden, dropout=0.0, activation="gelu", batch_first=True)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(**block, norm_first=True) for _ in range(2))
        self.head = nn.Linear(dim, vocabulary)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1]).to(x)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.head(x)


def transformer():
    model = Transformer()
    dim, heads, eps = 8, 2, model.blocks[0].norm1.eps
    attention = dict(name="attention", op="attention", dim=dim, heads=heads, key_value_heads=heads, head_dim=dim // heads,
                     logit_scale=(dim // heads) ** -0.5, output_scale=1.0, causal=True, bias=True, output_bias=True)
    norm = lambda name: dict(name=name, op="layer_norm", dim=dim, eps=eps, bias=True)
    residual = lambda *body: dict(op="residual", skip=1.0, branch=1.0, body=list(body))
    blocks = [dict(name=str(i), op="sequential", body=[
        residual(norm("norm1"), attention),
        residual(norm("norm2"), linear("linear1", block.linear1), activation("gelu_erf"), linear("linear2", block.linear2)),
    ]) for i, block in enumerate(model.blocks)]
    nodes = [dict(name="embedding", op="embedding", vocabulary=7, dim=dim),
             dict(name="positions", op="positions", length=5, dim=dim),
             dict(name="blocks", op="sequential", body=blocks), linear("head", model.head)]
    weights = {"positions.weight": model.positions}
    for name, w in model.state_dict().items():
        # PyTorch keeps queries, keys and values in one matrix.
        if "in_proj_" in name:
            stem, kind = name.split("self_attn.in_proj_")
            weights.update({f"{stem}attention.{part}.{kind}": x for part, x in zip(("query", "key", "value"), w.chunk(3))})
        elif name != "positions":
            weights[name.replace("self_attn.out_proj", "attention.output")] = w
    return model, dict(format=1, input=dict(kind="tokens", context=5), nodes=nodes), weights


class Classifier(nn.Module):
    """Reads images with pixels in [0, 1], and normalises each channel as torchvision's Normalize does."""

    def __init__(self, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)):
        super().__init__()
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)
        self.first, self.second = nn.Linear(3 * 4 * 4, 8), nn.Linear(8, 4)

    def forward(self, pixels):
        x = (pixels - self.mean.to(pixels)[:, None, None]) / self.std.to(pixels)[:, None, None]
        return self.second(torch.relu(self.first(x.flatten(1))))


def image():
    """W((x − mean)/std) + b is (W/std) x + (b − W·mean/std), so the first map takes mean and standard deviation in."""
    model = Classifier()
    nodes = [dict(op="flatten"), linear("first", model.first), activation("relu"), linear("second", model.second)]
    weights = {name: w.double() for name, w in model.state_dict().items()}
    mean, std = (x.double().repeat_interleave(4 * 4) for x in (model.mean, model.std))
    w, b = weights["first.weight"], weights["first.bias"]
    weights.update({"first.weight": w / std, "first.bias": b - w @ (mean / std)})
    return model, dict(format=1, input=dict(kind="pixels", channels=3, height=4, width=4), nodes=nodes), weights


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python export.py DIRECTORY")
    os.makedirs(sys.argv[1], exist_ok=True)
    for example in (mlp, transformer, image):
        _, graph, weights = example()
        save(os.path.join(sys.argv[1], example.__name__ + ".safetensors"), graph, weights)
