"""Runs a network in PyTorch.

Needs torch alone. In a program:

    model = load("model.safetensors")        # a torch.nn.Module whose state_dict has the file's names
    logits = model(tokens)                   # or pixels, or vectors, as its graph says

On the command line, as `certify run` does it, from `tokens`, `pixels` or `vectors` to `output`:

    python network.py model.safetensors input.safetensors output.safetensors

A node, an option or a function that is not known is an error: passed over, it would be another network.
"""

import ctypes
import json
import math
import sys

import torch
from torch.nn import functional as F

# The network that this file is of; without one, it is that of the checkpoint.
GRAPH = None

FUNCTIONS = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "abs": torch.abs,
    "gelu_erf": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu2": lambda x: torch.relu(x).square(),
    "leaky_relu": lambda x, slope: torch.where(x > 0, x, slope * x),
    "elu": lambda x, alpha: torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0))),
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "mish": F.mish,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "hard_swish": F.hardswish,
    "hard_sigmoid": F.hardsigmoid,
}


def activation(function, x):
    """A function is its name, or its name with its constants."""
    name, constants = (function, {}) if isinstance(function, str) else next(iter(function.items()))
    return FUNCTIONS[name](x, **constants)


def load(path, dtype=None):
    """The network with the weights of a file: in f32, in f64 where the file is, or in another type."""
    metadata, weights = read(path)
    meta = json.loads(metadata["lipschitz"])
    if meta["format"] != 1 or meta["graph"]["format"] != 1:
        raise ValueError(f"{path}: a format that this program does not know")
    if GRAPH is not None and meta["graph"] != GRAPH:
        raise ValueError(f"{path}: the weights of another network")
    double = any(weight.dtype == torch.float64 for weight in weights.values())
    return Network(meta["graph"], weights).to(dtype or (torch.float64 if double else torch.float32))


# Types of safetensors files. Ids of tokens are far below 2^31, where both kinds of integers are the same.
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
         "I64": torch.int64, "I32": torch.int32, "U32": torch.int32, "I16": torch.int16, "U8": torch.uint8}


def read(path):
    """The metadata and the tensors of a safetensors file: the length of a header, the header, the numbers."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        numbers = bytearray(file.read())
    metadata, tensors = header.pop("__metadata__", None) or {}, {}
    for name, entry in header.items():
        (begin, end), dtype = entry["data_offsets"], TYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(f"{path}: {name} is of type {entry['dtype']}; {', '.join(TYPES)} are known")
        own = bytearray(numbers[begin:end])
        flat = torch.frombuffer(own, dtype=dtype) if own else torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(entry["shape"])
    return metadata, tensors


def write(path, name, tensor):
    """A safetensors file with one tensor."""
    tensor = tensor.detach().cpu().contiguous()
    dtype = next(key for key, value in TYPES.items() if value == tensor.dtype)
    size = tensor.numel() * tensor.element_size()
    header = json.dumps({name: dict(dtype=dtype, shape=list(tensor.shape), data_offsets=[0, size])}).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + ctypes.string_at(tensor.data_ptr(), size))


class Network(torch.nn.Module):
    """A graph with its weights."""

    def __init__(self, graph, weights):
        super().__init__()
        known(graph, "graph", "format", "input", "nodes")
        known(graph["input"], "input", "kind", "context", "separator", "zero_prefix", "channels",
              "height", "width", "dim")
        self.graph = graph
        check(graph["nodes"])
        for path, weight in weights.items():
            *parts, name = path.split(".")
            at = self
            for part in parts:
                # Not add_module, which refuses names that a module has of its own, such as "float".
                at = at._modules.setdefault(part, torch.nn.Module())
            at._parameters[name] = torch.nn.Parameter(weight, requires_grad=weight.is_floating_point())

    def fits(self, x):
        """Refuses an input that is none of the graph's, on which it would be another function."""
        given = self.graph["input"]
        if given["kind"] == "tokens":
            wanted, fits = f"whole numbers [batch, 1 to {given['context']} tokens]", not x.is_floating_point()
            fits = fits and x.dim() == 2 and 1 <= x.shape[1] <= given["context"]
        else:
            image = given["kind"] == "pixels"
            sizes = [given[key] for key in (["channels", "height", "width"] if image else ["dim"])]
            wanted, fits = f"[batch, {', '.join(map(str, sizes))}]", list(x.shape[1:]) == sizes
        if not fits:
            raise ValueError(f"the input is {x.dtype} {list(x.shape)}; the network reads {wanted}")

    def forward(self, x):
        self.fits(x)
        weights = dict(self.named_parameters())
        hidden = None
        separator = self.graph["input"].get("separator")
        if self.graph["input"]["kind"] == "tokens":
            x = x.long()
            if separator is not None:
                # A separator begins a document, and attention stays within one.
                document = (x == separator).cumsum(1)
                hidden = (document[:, :, None] != document[:, None, :])[:, None]
        else:
            own = [weight.dtype for weight in weights.values() if weight.is_floating_point()]
            x = x.to(own[0] if own else torch.float32)
        nodes, zeros = self.graph["nodes"], self.graph["input"].get("zero_prefix") or 0
        if not zeros:
            return sequence(nodes, "", x, weights, hidden)
        # Zeros in front of the embedding vectors, and the output without them.
        x = F.pad(sequence(nodes[:1], "", x, weights, hidden), (0, 0, zeros, 0))
        x = sequence(nodes[1:], "", x, weights, hidden)
        return x[:, zeros:] if x.dim() == 3 else x


def known(fields, what, *names):
    """Refuses a key that means nothing here."""
    odd = [key for key, value in fields.items() if key not in names and value is not None]
    if odd:
        raise ValueError(f"{what}: {', '.join(odd)} is not known")


def check(nodes):
    for node in nodes:
        if node["op"] not in NODES:
            raise ValueError(f"node {node.get('name', '')}: {node['op']} is not known")
        known(node, f"{node['op']} {node.get('name', '')}", "name", "op", *NODES[node["op"]][0])
        check(node.get("body", []) + node.get("branches", []))


def join(prefix, name):
    return f"{prefix}.{name}" if prefix and name else prefix or name


def sequence(nodes, prefix, x, weights, hidden):
    for node in nodes:
        path = join(prefix, node.get("name", ""))
        x = NODES[node["op"]][1](node, path, x, weights, hidden)
    return x


def residual(node, path, x, weights, hidden):
    return node["skip"] * x + node["branch"] * sequence(node["body"], path, x, weights, hidden)


def affine(path, x, weights, bias):
    return F.linear(x, weights[join(path, "weight")], weights[join(path, "bias")] if bias else None)


def parallel(node, path, x, weights, hidden):
    return sum(sequence([branch], path, x, weights, hidden) for branch in node["branches"])


def normed(x, kind, eps):
    if kind not in ("rms", "layer"):
        raise ValueError(f"a norm of kind {kind} is not known")
    x = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def norm(kind):
    def run(node, path, x, weights, hidden):
        y = normed(x, kind, node["eps"])
        y = y * weights[join(path, "weight")] if node.get("gain", True) else y
        return y + weights[join(path, "bias")] if node.get("bias") else y
    return run


def normalise(node, path, x, weights, hidden):
    return x / x.square().sum(-1, keepdim=True).maximum(x.new_tensor(node["eps"] * node["eps"])).sqrt()


def offset_attention(node, path, x, weights, hidden):
    y = F.linear(x, weights[join(path, "value.weight")]).split(node["head_dim"], -1)
    shares = weights[join(path, "shares.weight")][0]
    back = lambda y, offset: F.pad(y, (0, 0, min(offset, y.shape[1]), 0))[:, : y.shape[1]]
    return torch.cat([w * back(y, offset) for w, y, offset in zip(shares, y, node["offsets"], strict=True)], -1)


def clip(node, path, x, weights, hidden):
    limit = min(node["limit"], torch.finfo(x.dtype).max)
    return x.clamp(-limit, limit)


def max_min(node, path, x, weights, hidden):
    side = 1 if x.dim() == 4 else -1
    u, v = x.chunk(2, side)
    return torch.cat([torch.maximum(u, v), torch.minimum(u, v)], side)


def conv2d(node, path, x, weights, hidden):
    k, groups, padding = node["kernel"], node.get("groups", 1), node.get("padding", 0)
    weight = weights[join(path, "weight")]
    weight = weight.reshape(node["outputs"], node["inputs"] // groups, k, k)
    bias = weights[join(path, "bias")] if node["bias"] else None
    if node.get("circular"):
        x, padding = F.pad(x, (padding,) * 4, mode="circular"), 0
    return F.conv2d(x, weight, bias, node.get("stride", 1), padding, 1, groups)


def shift(node, path, x, weights, hidden):
    def moved(x, side, by):
        if node.get("circular"):
            return torch.roll(x, by, side)
        n = x.shape[side]
        by = max(-n, min(n, by))
        kept = x.narrow(side, max(0, -by), n - abs(by))
        pad = [0, 0, 0, 0]
        pad[(3 - side) * 2 + (0 if by > 0 else 1)] = abs(by)
        return F.pad(kept, pad)
    groups = x.chunk(len(node["offsets"]), 1)
    return torch.cat([moved(moved(g, 2, d), 3, r) for g, (d, r) in zip(groups, node["offsets"], strict=True)], 1)


def pooled(pooling, x, window, stride, padding):
    if pooling == "max":
        return F.max_pool2d(x, window, stride, padding)
    if pooling == "average":
        return F.avg_pool2d(x, window, stride, padding)
    if pooling == "l2":
        # No root of a zero, which has no gradient.
        squares = F.avg_pool2d(x.square(), window, stride, padding, divisor_override=1)
        return torch.where(squares > 0, squares, 1).sqrt() * (squares > 0)
    raise ValueError(f"the pooling {pooling} is not known")


def pool(node, path, x, weights, hidden):
    return pooled(node["pooling"], x, node["window"], node["stride"], node.get("padding", 0))


def global_pool(node, path, x, weights, hidden):
    return pooled(node["pooling"], x, x.shape[2:], 1, 0).flatten(1)


def gated_mlp(node, path, x, weights, hidden):
    gate, up = (affine(join(path, name), x, weights, node.get("bias", False)) for name in ("gate", "up"))
    y = activation(node["function"], gate) * up
    return affine(join(path, "down"), y, weights, node.get("bias", False))


def class_token(node, path, x, weights, hidden):
    return torch.cat([weights[join(path, "weight")].expand(x.shape[0], 1, -1), x], 1)


def patches(node, path, x, weights, hidden):
    b, c, h, w = x.shape
    s = node["size"]
    squares = x.reshape(b, c, h // s, s, w // s, s).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(b, (h // s) * (w // s), c * s * s)


def rotate(x, rotary):
    """x is [batch, tokens, heads, head_dim]."""
    known(rotary, "rotary", "base", "pairing", "frequencies")
    width, given = x.shape[-1], rotary.get("frequencies")
    frequencies = given or [rotary["base"] ** (-2 * i / width) for i in range(width // 2)]
    half = len(frequencies)
    angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * torch.tensor(frequencies, dtype=torch.float64)
    cos, sin = (f(angles)[:, None].to(x) for f in (torch.cos, torch.sin))
    turned, rest = x[..., : 2 * half], x[..., 2 * half:]
    if rotary["pairing"] == "half":
        a, b = turned[..., :half], turned[..., half:]
        turned = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    elif rotary["pairing"] == "interleaved":
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        raise ValueError(f"rotary: the pairing {rotary['pairing']} is not known")
    return torch.cat([turned, rest], -1)


def position_bias(table, bias, causal, tokens):
    """A number for each head and bucket of distances: [heads, queries, keys]."""
    known(bias, "position_bias", "buckets", "max_distance")
    at = torch.arange(tokens, device=table.device)
    offset = at[None, :] - at[:, None]
    side = bias["buckets"] if causal else bias["buckets"] // 2
    near = side // 2
    distance = (-offset).clamp(min=0) if causal else offset.abs()
    # In f32, as the loader of the checkpoint rounds.
    share = torch.log(distance.clamp(min=1).float() / near) / math.log(bias["max_distance"] / near)
    far = (near + (share * (side - near)).long()).clamp(max=side - 1)
    bucket = torch.where(distance < near, distance, far)
    if not causal:
        bucket = bucket + side * (offset > 0)
    return table[bucket].permute(2, 0, 1)


def attention(node, path, x, weights, hidden):
    a = node
    batch, tokens, _ = x.shape
    heads, shared, eps = a["heads"], a["key_value_heads"], a.get("query_key_norm")

    def project(name, heads):
        y = affine(join(path, name), x, weights, a["bias"])
        split = (batch, tokens, heads, a["head_dim"])
        if eps is not None and name != "value":
            span = a.get("query_key_span") or "head"
            if span not in ("head", "each_head", "heads"):
                raise ValueError(f"{path}: the span {span} is not known")
            y = normed(y if span == "heads" else y.reshape(split), a.get("query_key_kind") or "rms", eps)
            # Gains of the whole width, one head after the other, or of the width of a head for all.
            own = lambda w: w.reshape(heads, -1) if span == "each_head" else w
            y = y * own(weights[join(path, f"{name}_norm.weight")])
            if a.get("query_key_shift"):
                y = y + own(weights[join(path, f"{name}_norm.bias")])
        y = y.reshape(split)
        if a.get("rotary") and name != "value":
            y = rotate(y, a["rotary"])
        return y.transpose(1, 2).repeat_interleave(a["heads"] // heads, 1)

    q, k, v = project("query", heads), project("key", shared), project("value", shared)
    logits = a["logit_scale"] * (q @ k.transpose(2, 3))
    if a.get("logit_cap") is not None:
        logits = a["logit_cap"] * torch.tanh(logits / a["logit_cap"])
    if a.get("position_bias"):
        logits = logits + position_bias(weights[join(path, "position_bias.weight")], a["position_bias"], a["causal"], tokens)
    at = torch.arange(tokens, device=x.device)
    ahead = at[None, :] - at[:, None]
    if a.get("alibi"):
        known(a["alibi"], "alibi", "slopes")
        slopes = torch.tensor(a["alibi"]["slopes"], dtype=torch.float64, device=x.device)
        logits = logits - (slopes[:, None, None] * ahead.abs()).to(logits)
    unseen = ahead > 0 if a["causal"] else torch.zeros_like(ahead, dtype=torch.bool)
    if a.get("window") is not None:
        unseen = unseen | (ahead.abs() >= a["window"])
    if hidden is not None:
        unseen = unseen | hidden
    mixed = logits.masked_fill(unseen, -math.inf).softmax(-1) @ v
    mixed = mixed.transpose(1, 2).reshape(batch, tokens, heads * a["head_dim"])
    return a["output_scale"] * affine(join(path, "output"), mixed, weights, a["output_bias"])


# Each kind of node: its fields, and what it computes.
NODES = {
    "sequential": (["body"], lambda n, p, x, w, h: sequence(n["body"], p, x, w, h)),
    "parallel": (["branches"], parallel),
    "residual": (["skip", "branch", "body"], residual),
    "linear": (["inputs", "outputs", "bias"], lambda n, p, x, w, h: affine(p, x, w, n["bias"])),
    "embedding": (["vocabulary", "dim"], lambda n, p, x, w, h: F.embedding(x, w[join(p, "weight")])),
    "positions": (["length", "dim"], lambda n, p, x, w, h: x + w[join(p, "weight")][: x.shape[1]]),
    "activation": (["function", "scale"], lambda n, p, x, w, h: n["scale"] * activation(n["function"], x)),
    "scale": (["factor"], lambda n, p, x, w, h: n["factor"] * x),
    "soft_cap": (["cap"], lambda n, p, x, w, h: n["cap"] * torch.tanh(x / n["cap"])),
    "clip": (["limit"], clip),
    "attention": (
        ["dim", "heads", "key_value_heads", "head_dim", "logit_scale", "output_scale", "causal", "rotary", "bias",
         "output_bias", "query_key_norm", "query_key_span", "query_key_kind", "query_key_shift", "logit_cap", "window",
         "position_bias", "alibi"], attention),
    "offset_attention": (["inputs", "head_dim", "offsets"], offset_attention),
    "max_min": ([], max_min),
    "conv2d": (["inputs", "outputs", "kernel", "stride", "padding", "circular", "groups", "bias"], conv2d),
    "shift": (["offsets", "circular"], shift),
    "space_to_depth": (["size"], lambda n, p, x, w, h: F.pixel_unshuffle(x, n["size"])),
    "pool": (["pooling", "window", "stride", "padding"], pool),
    "global_pool": (["pooling"], global_pool),
    "rms_norm": (["dim", "eps", "gain"], norm("rms")),
    "layer_norm": (["dim", "eps", "bias", "gain"], norm("layer")),
    "normalise": (["eps"], normalise),
    "gated_mlp": (["dim", "hidden", "function", "bias"], gated_mlp),
    "class_token": (["dim"], class_token),
    "first_token": ([], lambda n, p, x, w, h: x[:, 0]),
    "last_token": ([], lambda n, p, x, w, h: x[:, -1]),
    "first_and_mean": ([], lambda n, p, x, w, h: torch.cat([x[:, 0], x[:, 1:].mean(1)], 1)),
    "flatten": ([], lambda n, p, x, w, h: x.flatten(1)),
    "patches": (["size"], patches),
    "mean_pool": ([], lambda n, p, x, w, h: x.mean(1)),
}


if __name__ == "__main__":
    model_path, input_path, output_path = sys.argv[1:]
    inputs = read(input_path)[1]
    given = [name for name in ("tokens", "pixels", "vectors") if name in inputs]
    if len(given) != 1:
        raise SystemExit(f"{input_path}: holds {', '.join(inputs) or 'nothing'}; wanted: tokens, pixels or vectors")
    x = inputs[given[0]]
    if not torch.isfinite(x).all():
        raise SystemExit(f"{input_path}: {given[0]} has numbers that are not finite")
    with torch.no_grad():
        write(output_path, "output", load(model_path)(x))
