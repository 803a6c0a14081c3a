"""This project beside eager PyTorch, on one machine in one run: `python train/benches/pytorch.py` (needs torch and cargo).

Each program runs in a process of its own, one after the other, in turns. Prints a table: medians of the steps, and the
largest resident memory of each process. `--sizes 256x16` are the widths and batches of the transformer, with heads of 64; `--compile` adds
`torch.compile`, `--convnet` the network of the preset `convnet-cifar10`, `--cifar10 DIR` an epoch of the MLP, on decoded images in memory.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time

STEPS = [  # The six quintics of the default Muon, in 1/1024 (Cesista, You and Jordan, 2025).
    (3955, -8306, 5008), (3735, -6681, 3463), (3799, -6499, 3211),
    (4019, -6385, 2906), (2677, -3029, 1162), (2172, -1833, 682),
]


STAGES = (64, 128, 256, 256, 256)  # Channels of the convolutional network: each halves the sides, and has one more layer.


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def orthogonalise(torch, m):
    """UVᵀ of a stack [count, rows, columns], by the Gram form that needs the fewest matmuls."""
    tall = m.shape[1] > m.shape[2]
    x = m.mT if tall else m
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-30)
    for a, b, c in STEPS:
        a, b, c = a / 1024, b / 1024, c / 1024
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def soft_cap(torch, w, alpha=0.005):
    for sign in (-1, 1):
        if w.shape[1] > w.shape[2]:
            w = torch.baddbmm(w, w, w.mT @ w, alpha=sign * alpha)
        else:
            w = torch.baddbmm(w, w @ w.mT, w, alpha=sign * alpha)
    return w


class Update:
    """Muon with the soft cap: one stack per shape of matrix, embedding rows one by one."""

    def __init__(self, torch, matrices, tables):
        self.torch, self.tables = torch, tables
        self.groups = {}
        for w in matrices:
            self.groups.setdefault(tuple(w.shape), []).append(w)
        self.momentum = {shape: torch.zeros(len(g), *shape) for shape, g in self.groups.items()}
        self.table_momentum = [torch.zeros_like(t) for t in tables]

    def step(self, rate=0.02, beta=0.95):
        torch = self.torch
        with torch.no_grad():
            for shape, group in self.groups.items():
                momentum = self.momentum[shape]
                momentum.lerp_(torch.stack([w.grad for w in group]), 1 - beta)
                factor = math.sqrt(shape[0] / shape[1])
                stack = torch.stack([w.data for w in group])
                stack = torch.add(stack, orthogonalise(torch, momentum), alpha=-rate * factor)
                stack = soft_cap(torch, stack / factor) * factor
                for w, new in zip(group, stack):
                    w.copy_(new)
            for t, m in zip(self.tables, self.table_momentum):
                m.lerp_(t.grad, 1 - beta)
                norms = m.square().mean(-1, keepdim=True).sqrt()
                t.sub_(m / torch.maximum(norms, norms.max() / 16).add(1e-30), alpha=rate)
                t.div_(t.square().mean(-1, keepdim=True).sqrt().clamp(min=1))


def transformer(torch, dim, batch, steps, compiled, layers=3, tokens=256, vocabulary=65):
    from torch.nn import functional as F

    alpha = 1 / (2 * layers)
    matrix = lambda o, i: torch.nn.Parameter(torch.nn.init.orthogonal_(torch.empty(o, i)))
    blocks = [[matrix(dim, dim) for _ in range(4)] + [matrix(4 * dim, dim), matrix(dim, 4 * dim)] for _ in range(layers)]
    head = matrix(vocabulary, dim)
    table = torch.nn.Parameter(torch.randn(vocabulary, dim))
    width, heads = 64, dim // 64
    angles = torch.outer(torch.arange(tokens).float(), 10000 ** (-torch.arange(0, width, 2) / width))
    cos, sin = angles.cos(), angles.sin()

    def turn(x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def forward(ids):
        x = F.embedding(ids, table)
        for query, key, value, output, up, down in blocks:
            split = lambda w: F.linear(x, w).view(batch, tokens, heads, width).transpose(1, 2)
            q, k, v = turn(split(query)), turn(split(key)), split(value)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / width)
            y = F.linear(y.transpose(1, 2).reshape(batch, tokens, dim), output)
            x = (1 - alpha) * x + (alpha / 3) * y
            y = F.linear(F.gelu(F.linear(x, up)) / 1.1289, down)
            x = (1 - alpha) * x + alpha * y
        return F.linear(x, head)

    forward = torch.compile(forward) if compiled else forward
    weights = [w for block in blocks for w in block] + [head]
    update = Update(torch, weights, [table])
    ids = torch.arange(batch * tokens).mul(2654435761).remainder(65).view(batch, tokens)
    times = []
    for _ in range(steps + 3):
        start = time.perf_counter()
        for w in weights + [table]:
            w.grad = None
        loss = F.cross_entropy(forward(ids).view(-1, vocabulary), ids.view(-1))
        loss.backward()
        norm = sum(w.grad.square().sum() for w in weights + [table]).sqrt().item()
        middle = time.perf_counter()
        update.step()
        times.append((middle - start, time.perf_counter() - middle))
    return times[3:], loss.item()


def convnet(torch, steps, batch=256):
    """The network of the preset `convnet-cifar10`."""
    from torch.nn import functional as F

    matrix = lambda o, i: torch.nn.Parameter(torch.nn.init.orthogonal_(torch.empty(o, i)))
    bias = lambda o: torch.nn.Parameter(torch.zeros(o))
    layers, channels = [], 3
    for width in STAGES:
        layers += [(matrix(width, 4 * channels), bias(width), 2), (matrix(width, width), bias(width), 1)]
        channels = width
    head, head_bias = matrix(10, channels), bias(10)
    moves = [(0, 0), (0, 1), (0, 0), (1, 0), (0, 0), (0, -1), (0, 0), (-1, 0)]

    def forward(x):
        for weight, offset, kernel in layers:
            if kernel == 1:
                groups = zip(x.chunk(8, 1), moves)
                x = torch.cat([g.roll(by, (2, 3)) if any(by) else g for g, by in groups], 1)
            x = F.conv2d(x, weight.view(len(weight), -1, kernel, kernel), offset, stride=kernel)
            u, v = x.chunk(2, 1)
            x = torch.cat([torch.maximum(u, v), torch.minimum(u, v)], 1)
        return F.linear(x.flatten(1), head, head_bias)

    weights, biases = [w for w, _, _ in layers] + [head], [b for _, b, _ in layers] + [head_bias]
    update = Update(torch, weights, [])
    images = torch.rand(batch, 3, 32, 32)
    classes = torch.arange(batch) % 10
    times = []
    for _ in range(steps + 3):
        start = time.perf_counter()
        for w in weights + biases:
            w.grad = None
        loss = F.cross_entropy(forward(images), classes)
        loss.backward()
        norm = sum(w.grad.square().sum() for w in weights + biases).sqrt().item()
        middle = time.perf_counter()
        update.step()
        with torch.no_grad():
            for b in biases:
                b.sub_(b.grad, alpha=0.01)
        times.append((middle - start, time.perf_counter() - middle))
    return times[3:], loss.item()


def mlp(torch, steps):
    """Epochs of 98 batches of 512 CIFAR-10-shaped images, from bytes in memory."""
    from torch.nn import functional as F

    matrix = lambda o, i: torch.nn.Parameter(torch.nn.init.orthogonal_(torch.empty(o, i)))
    weights = [matrix(256, 3072), matrix(256, 256), matrix(10, 256)]
    update = Update(torch, weights, [])
    images = torch.randint(0, 256, (50000, 3072), dtype=torch.uint8)
    labels = torch.randint(0, 10, (50000,))
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        order = torch.randperm(50000)
        for i in range(98):
            chosen = order[i * 512 : (i + 1) * 512]
            x, y = images[chosen].float().div_(127.5).sub_(1), labels[chosen]
            for w in weights:
                w.grad = None
            for w in weights[:-1]:
                x = F.relu(F.linear(x, w))
            loss = F.cross_entropy(F.linear(x, weights[-1]), y)
            loss.backward()
            norm = sum(w.grad.square().sum() for w in weights).sqrt().item()
            update.step()
        times.append((time.perf_counter() - start, 0.0))
    return times, loss.item()


def child(kind, steps):
    import torch

    torch.manual_seed(0)
    kinds = {"mlp": mlp, "convnet": convnet}
    if kind in kinds:
        times, loss = kinds[kind](torch, steps)
    else:
        dim, batch = map(int, kind.removesuffix("compiled").split("x"))
        times, loss = transformer(torch, dim, batch, steps, kind.endswith("compiled"))
    middle = lambda values: sorted(values)[len(values) // 2]
    gradient, update = (middle([t[i] for t in times]) for i in (0, 1))
    print(json.dumps({"gradient": gradient, "update": update, "peak": peak(), "loss": loss, "torch": torch.__version__}))


def run(command):
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15, help="steps measured, after three that are not")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each program; the median is shown")
    parser.add_argument("--sizes", nargs="*", default=["256x16", "256x64"], help="width x batch")
    parser.add_argument("--compile", action="store_true", help="beside torch.compile as well")
    parser.add_argument("--convnet", action="store_true", help="adds the convolutional network")
    parser.add_argument("--cifar10", help="the directory of the images: adds the MLP")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child, args.steps)
    build = ["cargo", "bench", "--workspace", "--bench", "step", "--no-run", "--message-format", "json"]
    lines = subprocess.run(build, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    built = [m for m in map(json.loads, lines) if m.get("executable") and m["target"]["name"] == "step"]
    bench = [built[-1]["executable"], "--bench"]
    print("| | forward + backward | update + constraint | peak memory |\n|---|---|---|---|")
    kinds = args.sizes + ["convnet"] * args.convnet + ["mlp"] * bool(args.cifar10)
    for kind in kinds:
        steps = str(5 if kind == "mlp" else args.steps)
        rivals = ["", "compiled"] if args.compile and kind in args.sizes else [""]
        ours, theirs = [], [[] for _ in rivals]
        for _ in range(args.rounds):
            for rival, runs in zip(rivals, theirs):
                runs.append(run([sys.executable, __file__, "--steps", steps, "--child", kind + rival]))
            data = [args.cifar10] if kind == "mlp" else []
            ours.append(run(bench + ["json", kind, steps] + data))
        middle = lambda runs, key: sorted(r[key] for r in runs)[len(runs) // 2]
        named = {"mlp": "MLP, an epoch", "convnet": "convnet, 256 images"}
        name = named.get(kind, "transformer, width {}, batch {}".format(*(kind.split("x") * 2)[:2]))
        version = f"PyTorch {theirs[0][0]['torch']}"
        for who, runs in [*zip([version, f"{version}, compiled"], theirs), ("this project", ours)]:
            g, u, p = (middle(runs, key) for key in ("gradient", "update", "peak"))
            print(f"| {name}: {who} | {g:.3f} s | {u:.3f} s | {p:.0f} MiB |")
        for rival, runs in zip(rivals, theirs):
            ratio = lambda key: middle(ours, key) / (middle(runs, key) or math.nan)
            what = "ratio to compiled" if rival else "ratio"
            print(f"| {what} | {ratio('gradient'):.2f} | {ratio('update'):.2f} | {ratio('peak'):.2f} |", flush=True)


if __name__ == "__main__":
    main()
