"""Writes the golden files of networks whose graphs their authors declare, and of the loader for PyTorch.

Needs torch, numpy and safetensors from PyPI (written with torch 2.15), and no network:

    python tests/golden/make_own.py tests/golden/own

`autoencoder.pt` is a bare state_dict whose order is not that of the alphabet. A directory for each example of `docs/import/export.py`: its graph, its weights in a format of its own, the checkpoint that
`save` writes, and `expected.safetensors` with inputs and what the module itself computes from them in f64. And checkpoints
with every kind of node, each with what `certify/src/cli/network.py` computes in f64.
"""

import json
import os
import sys

import numpy
import torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "docs", "import"))
sys.path.insert(0, os.path.join(HERE, "..", "..", "certify", "src", "cli"))
import export  # noqa: E402
import network  # noqa: E402


def inputs(graph):
    g = torch.Generator().manual_seed(5)
    kind = graph["input"]
    if kind["kind"] == "tokens":
        vocabulary = graph["nodes"][0]["vocabulary"]
        return "tokens", torch.randint(vocabulary, (3, kind["context"]), generator=g)
    if kind["kind"] == "pixels":
        return "pixels", torch.rand((3, kind["channels"], kind["height"], kind["width"]), generator=g)
    return "vectors", torch.randn((3, kind["dim"]), generator=g)


def write(directory, graph, weights, model):
    export.save(os.path.join(directory, "checkpoint.safetensors"), graph, weights)
    name, x = inputs(graph)
    with torch.no_grad():
        y = model.double()(x.double() if x.is_floating_point() else x)
    save_file({name: x, "output": y.double().contiguous()}, os.path.join(directory, "expected.safetensors"))


def examples(out):
    for example in (export.mlp, export.transformer, export.image):
        torch.manual_seed(3)
        model, graph, weights = example()
        model.eval()
        directory = os.path.join(out, example.__name__)
        os.makedirs(directory, exist_ok=True)
        document = graph
        if example is export.mlp:
            torch.save(weights, os.path.join(directory, "weights.pt"))
        elif example is export.transformer:
            # The names of the module, where they are not those of the graph.
            theirs = {name: "positions" if name == "positions.weight" else
                      name.replace("attention.output", "self_attn.out_proj") for name in weights}
            stored = {theirs[name]: w.detach().clone().contiguous() for name, w in weights.items()}
            save_file(stored, os.path.join(directory, "weights.safetensors"))
            document = dict(graph=graph, weights={a: b for a, b in theirs.items() if a != b})
        else:
            numpy.savez(os.path.join(directory, "weights.npz"), **{name: w.numpy() for name, w in weights.items()})
        with open(os.path.join(directory, "graph.json"), "w") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
        write(directory, graph, weights, model)


class Block(torch.nn.Module):
    """A block of a residual network, as torchvision's."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        conv = lambda i, o, k, s: torch.nn.Conv2d(i, o, k, s, k // 2, bias=False)
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), torch.nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3, 1), torch.nn.BatchNorm2d(outputs)
        self.down = None
        if stride > 1:
            self.down = torch.nn.Sequential(conv(inputs, outputs, 1, stride), torch.nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.down is None else self.down(x)))


def lenet():
    nn = torch.nn
    model = nn.Sequential(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
                          nn.Flatten(), nn.Linear(400, 30), nn.ReLU(), nn.Linear(30, 10))
    pool = dict(op="pool", pooling="max", window=2, stride=2)
    relu = export.activation("relu")
    nodes = [export.convolution("0", model[0]), relu, pool, export.convolution("3", model[3]), relu, pool, dict(op="flatten"),
             export.linear("7", model[7]), relu, export.linear("9", model[9])]
    return model, dict(kind="pixels", channels=1, height=28, width=28), nodes, model.state_dict()


def resnet():
    """The shape of ResNet-18 with 2 channels where it has 64, on images of 32 × 32."""
    nn = torch.nn
    widths = [2, 4, 8, 16]
    blocks = [Block(widths[max(i // 2 - 1, 0)] if i % 2 == 0 else widths[i // 2], widths[i // 2], 2 if i in (2, 4, 6) else 1)
              for i in range(8)]
    stem, norm = nn.Conv2d(3, 2, 7, 2, 3, bias=False), nn.BatchNorm2d(2)
    model = nn.Sequential(stem, norm, nn.ReLU(), nn.MaxPool2d(3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.3, 0.3), (module.running_mean, -0.3, 0.3),
                                      (module.running_var, 0.3, 2.0)):
                nn.init.uniform_(tensor, low, high)
    weights = {"head.weight": model[-1].weight, "head.bias": model[-1].bias}

    def folded(prefix, name, layer, norm):
        path = network.join(prefix, name)
        weights[f"{path}.weight"], weights[f"{path}.bias"] = export.fold(layer, norm)
        return export.convolution(name, layer, bias=True)

    relu = export.activation("relu")
    nodes = [folded("", "stem", stem, norm), relu, dict(op="pool", pooling="max", window=3, stride=2, padding=1)]
    for i, block in enumerate(blocks):
        path = f"{i}"
        body = [folded(path, "conv1", block.conv1, block.bn1), relu, folded(path, "conv2", block.conv2, block.bn2)]
        if block.down is None:
            sum_ = dict(name=path, op="residual", skip=1.0, branch=1.0, body=body)
        else:
            branches = [dict(op="sequential", body=body), folded(path, "down", *block.down)]
            sum_ = dict(name=path, op="parallel", branches=branches)
        nodes += [sum_, relu]
    nodes += [dict(op="global_pool", pooling="average"), export.linear("head", model[-1])]
    return model, dict(kind="pixels", channels=3, height=32, width=32), nodes, {name: w.double() for name, w in weights.items()}


def convolutional(out):
    for example in (lenet, resnet):
        torch.manual_seed(6)
        model, kind, nodes, weights = example()
        model.eval()
        directory = os.path.join(out, example.__name__)
        os.makedirs(directory, exist_ok=True)
        graph = dict(format=1, input=kind, nodes=nodes)
        torch.save({name: w.detach().clone() for name, w in weights.items()}, os.path.join(directory, "weights.pt"))
        with open(os.path.join(directory, "graph.json"), "w") as file:
            json.dump(graph, file, indent=1)
            file.write("\n")
        name, x = inputs(graph)
        with torch.no_grad():
            save_file({name: x, "output": model.double()(x.double()).contiguous()}, os.path.join(directory, "expected.safetensors"))


def attention(**more):
    a = dict(name="attention", op="attention", dim=6, heads=4, key_value_heads=4, head_dim=4, logit_scale=0.5,
             output_scale=1.0, causal=True, bias=False, output_bias=False)
    return {**a, **more}


def kinds():
    linear = lambda name, inputs, outputs, bias=True: dict(name=name, op="linear", inputs=inputs, outputs=outputs, bias=bias)
    layers = [
        attention(rotary=dict(base=20.0, pairing="half"), key_value_heads=2, output_scale=0.4, bias=True, output_bias=True),
        attention(rotary=dict(base=20.0, pairing="interleaved"), query_key_norm=0.1, window=2),
        attention(rotary=dict(base=20.0, pairing="half", frequencies=[0.7]), query_key_norm=0.2, query_key_span="heads"),
        attention(causal=False, logit_cap=0.3, position_bias=dict(buckets=4, max_distance=3)),
        attention(position_bias=dict(buckets=4, max_distance=4), window=3, causal=True),
        attention(causal=False, window=2, logit_scale=-1.0),
        attention(query_key_norm=0.1, query_key_kind="layer", query_key_span="each_head", query_key_shift=True,
                  alibi=dict(slopes=[0.5, 0.25, 1.0, -0.3]), position_bias=dict(buckets=4, max_distance=4)),
        attention(query_key_norm=0.1, query_key_shift=True, causal=False, alibi=dict(slopes=[0.5, 0.25, 1.0, 0.1])),
    ]
    blocks = [dict(name=str(i), op="residual", skip=0.7, branch=0.6, body=[
        dict(name="norm", op="rms_norm", dim=6, eps=0.1) if i % 2 else dict(name="norm", op="layer_norm", dim=6, eps=0.1, bias=i == 0),
        layer]) for i, layer in enumerate(layers)]
    constants = dict(leaky_relu=dict(slope=-0.2), elu=dict(alpha=1.5))
    functions = [{f: constants[f]} if f in constants else f for f in network.FUNCTIONS]
    mixed = [dict(name=f"mix{i}", op="residual", skip=0.6, branch=1.0, body=[
        linear("in", 6, 6), dict(op="activation", function=f, scale=(-1) ** i * 0.7)]) for i, f in enumerate(functions)]
    branches = dict(name="branches", op="parallel", branches=[
        dict(name="norm", op="rms_norm", dim=6, eps=0.1, gain=False),
        dict(name="plain", op="layer_norm", dim=6, eps=0.1, gain=False, bias=False),
        dict(name="unit", op="normalise", eps=0.5), linear("map", 6, 6)])
    gated = dict(name="gated", op="gated_mlp", dim=6, hidden=5, function="silu", bias=True)
    tail = [gated, dict(op="scale", factor=-1.3), dict(op="clip", limit=0.9), dict(op="soft_cap", cap=0.8), linear("head", 6, 3, False)]
    embedding = [dict(name="embedding", op="embedding", vocabulary=5, dim=6), dict(name="positions", op="positions", length=7, dim=6)]
    body = [dict(name="blocks", op="sequential", body=blocks), *mixed, branches]
    yield "tokens", dict(kind="tokens", context=7), embedding + body + tail
    yield "last", dict(kind="tokens", context=7), embedding + [branches, dict(op="last_token"), linear("head", 6, 3)]
    looking_back = [dict(name="back", op="offset_attention", inputs=6, head_dim=4, offsets=[0, 1, 3, 9]), dict(op="max_min"),
                    linear("square", 16, 16, False), dict(op="max_min"), linear("head", 16, 3)]
    yield "offsets", dict(kind="tokens", context=7), embedding + looking_back
    yield "documents", dict(kind="tokens", context=7, separator=2), embedding + body + tail
    behind = [dict(name="block", op="residual", skip=0.7, branch=0.6, body=[layers[4]]), linear("head", 6, 3)]
    yield "zeros", dict(kind="tokens", context=7, zero_prefix=3), embedding[:1] + behind
    pixels = dict(kind="pixels", channels=2, height=4, width=6)
    patches = [dict(op="patches", size=2), linear("patch", 8, 6), dict(name="class", op="class_token", dim=6), blocks[5]]
    yield "class", pixels, patches + [dict(op="first_token"), linear("head", 6, 3)]
    yield "first-and-mean", pixels, patches + [dict(op="first_and_mean"), linear("head", 12, 3)]
    yield "mean", pixels, [dict(op="patches", size=2), linear("patch", 8, 6), dict(op="mean_pool"), linear("head", 6, 3)]
    conv = lambda name, inputs, outputs, kernel, **more: dict(name=name, op="conv2d", inputs=inputs, outputs=outputs, kernel=kernel,
                                                              **dict(dict(bias=True), **more))
    pool = lambda pooling, window, stride, padding: dict(op="pool", pooling=pooling, window=window, stride=stride, padding=padding)
    images = [conv("first", 2, 4, 3, padding=1), dict(op="max_min"), dict(op="shift", offsets=[[0, 1], [-1, 0], [2, -2], [0, 9]]),
              pool("max", 3, 1, 1), conv("round", 4, 6, 3, padding=1, circular=True, groups=2, bias=False), pool("l2", 2, 1, 0),
              dict(op="shift", offsets=[[1, 0], [0, -1]], circular=True), conv("stride", 6, 4, 2, stride=2, padding=1)]
    yield "images", pixels, images + [pool("average", 2, 1, 1), dict(op="space_to_depth", size=1), dict(op="flatten"), linear("head", 48, 3)]
    squares = [dict(op="space_to_depth", size=2), conv("map", 8, 5, 1)]
    for pooling in ("average", "max", "l2"):
        yield f"pooling-{pooling}", pixels, squares + [dict(op="global_pool", pooling=pooling), linear("head", 5, 3)]
    yield "flat", pixels, [dict(op="flatten"), linear("head", 48, 3)]


def parameters(nodes, prefix=""):
    """Names and shapes."""
    for n in nodes:
        path = network.join(prefix, n.get("name", ""))
        at = lambda name: network.join(path, name)
        if "body" in n or "branches" in n:
            yield from parameters(n.get("body") or n["branches"], path)
        elif n["op"] == "linear":
            yield at("weight"), (n["outputs"], n["inputs"])
            if n["bias"]:
                yield at("bias"), (n["outputs"],)
        elif n["op"] == "conv2d":
            yield at("weight"), (n["outputs"], n["inputs"] // n.get("groups", 1) * n["kernel"] ** 2)
            if n["bias"]:
                yield at("bias"), (n["outputs"],)
        elif n["op"] in ("embedding", "positions"):
            yield at("weight"), (n.get("vocabulary") or n["length"], n["dim"])
        elif n["op"] in ("rms_norm", "layer_norm", "class_token"):
            if n.get("gain", True):
                yield at("weight"), (n["dim"],)
            if n.get("bias"):
                yield at("bias"), (n["dim"],)
        elif n["op"] == "gated_mlp":
            for name, shape in (("gate", (n["hidden"], n["dim"])), ("up", (n["hidden"], n["dim"])), ("down", (n["dim"], n["hidden"]))):
                yield at(f"{name}.weight"), shape
                if n["bias"]:
                    yield at(f"{name}.bias"), shape[:1]
        elif n["op"] == "offset_attention":
            yield at("value.weight"), (n["head_dim"] * len(n["offsets"]), n["inputs"])
            yield at("shares.weight"), (1, len(n["offsets"]))
        elif n["op"] == "attention":
            for name in ("query", "key", "value"):
                width = n["head_dim"] * n["heads" if name == "query" else "key_value_heads"]
                yield at(f"{name}.weight"), (width, n["dim"])
                if n["bias"]:
                    yield at(f"{name}.bias"), (width,)
                if n.get("query_key_norm") and name != "value":
                    span = n["head_dim"] if n.get("query_key_span", "head") == "head" else width
                    yield at(f"{name}_norm.weight"), (span,)
                    if n.get("query_key_shift"):
                        yield at(f"{name}_norm.bias"), (span,)
            yield at("output.weight"), (n["dim"], n["head_dim"] * n["heads"])
            if n["output_bias"]:
                yield at("output.bias"), (n["dim"],)
            if n.get("position_bias"):
                yield at("position_bias.weight"), (n["position_bias"]["buckets"], n["heads"])


def every_kind(out):
    for name, kind, nodes in kinds():
        graph = dict(format=1, input=kind, nodes=nodes)
        g = torch.Generator().manual_seed(11)
        weights = {}
        for path, shape in parameters(nodes):
            x = torch.randn(shape, generator=g) * (1.5 / shape[-1] ** 0.5 if len(shape) > 1 else 0.4)
            weights[path] = x + 1.0 if "norm" in path and path.endswith("weight") else x
        directory = os.path.join(out, name)
        os.makedirs(directory, exist_ok=True)
        write(directory, graph, weights, network.Network(graph, weights))


def autoencoder(out):
    torch.manual_seed(4)
    layer = lambda inputs, outputs: torch.nn.Sequential(torch.nn.Linear(inputs, outputs))
    model = torch.nn.ModuleDict(dict(encoder=layer(4, 3), decoder=layer(3, 4)))
    torch.save(model.state_dict(), os.path.join(out, "autoencoder.pt"))
    x = torch.randn(3, 4)
    with torch.no_grad():
        y = model["decoder"](torch.relu(model["encoder"](x)))
    save_file({"vectors": x, "output": y}, os.path.join(out, "autoencoder.expected.safetensors"))


if __name__ == "__main__":
    autoencoder(sys.argv[1])
    examples(sys.argv[1])
    convolutional(sys.argv[1])
    every_kind(os.path.join(sys.argv[1], "kinds"))
