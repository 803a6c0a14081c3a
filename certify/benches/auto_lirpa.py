"""`certify local` beside auto_LiRPA, on the same networks and inputs, on one machine in one run.

`python certify/benches/auto_lirpa.py` needs torch, onnx, onnxscript, auto_LiRPA (https://github.com/Verified-Intelligence/auto_LiRPA) and a
`certify` on the PATH (or `--certify FILE`). The networks are trained for seconds on made-up classes: a perceptron with ReLU, and vision
transformers with softmax attention, layer norms and ReLU, of one and of three layers. For each of a few inputs both look for the largest ℓ2
radius at which the decision provably stays: auto_LiRPA by bisection, with each of its methods, in f32 without rounding; `certify` in real
arithmetic with rounding. Prints the median radius and the median time for an input, and what a gradient attack finds.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile
import time
import warnings

import torch
from torch import nn

warnings.filterwarnings("ignore")


class Block(nn.Module):
    """Pre-norm attention and MLP, written out so that every library reads the same operations."""

    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.heads, self.dim = heads, dim
        self.one, self.two = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.output = nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        y = self.one(x)
        tokens = x.shape[1]
        shape = (-1, tokens, self.heads, self.dim // self.heads)
        q, k, v = (f(y).reshape(shape).transpose(1, 2) for f in (self.query, self.key, self.value))
        p = torch.softmax(q @ k.transpose(-1, -2) / shape[-1] ** 0.5, dim=-1)
        x = x + self.output((p @ v).transpose(1, 2).reshape(-1, tokens, self.dim))
        return x + self.down(torch.relu(self.up(self.two(x))))


class Vit(nn.Module):
    """Patches of 4 x 4 pixels of an image of 12 x 12, blocks, a norm, the mean, a head."""

    def __init__(self, layers, dim=32, heads=2, classes=10):
        super().__init__()
        self.patches = nn.Conv2d(1, dim, 4, 4)
        self.positions = nn.Parameter(0.1 * torch.randn(9, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, 2 * dim) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def data(count, seed):
    """Images of ten classes: a pattern each, and noise."""
    patterns = torch.rand(10, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(10, (count,), generator=g)
    x = 0.6 * patterns[y] + 0.4 * torch.rand(count, 1, 12, 12, generator=g)
    return x, y


def trained(model, steps=150):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-2)
    for step in range(steps):
        x, y = data(128, 1 + step)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def lirpa(model, x, methods, halvings=14):
    """The best radius of each method, and seconds an input."""
    from auto_LiRPA import BoundedModule, BoundedTensor
    from auto_LiRPA.perturbations import PerturbationLpNorm

    out = {}
    classes = model(x[:1]).shape[1]
    for method in methods:
        radii, seconds = [], []
        try:
            bounded = BoundedModule(model, x[:1], device="cpu", verbose=False)
            for one in x.split(1):
                start, own = time.time(), int(model(one).argmax())
                rivals = [j for j in range(classes) if j != own]
                c = torch.zeros(1, len(rivals), classes)
                c[0, :, own] = 1
                for row, j in enumerate(rivals):
                    c[0, row, j] = -1
                low, high = 0.0, 8.0
                for _ in range(halvings):
                    at = (low * high) ** 0.5 if low > 0 else high / 8
                    near = BoundedTensor(one, PerturbationLpNorm(norm=2, eps=at))
                    try:
                        lower, _ = bounded.compute_bounds(x=(near,), C=c, method=method, bound_upper=False)
                        proven = bool((lower > 0).all())
                    except Exception:  # noqa: BLE001  Bounds too wide for a root or a quotient prove nothing.
                        proven = False
                    if proven:
                        low = at
                    else:
                        high = at
                radii.append(low)
                seconds.append(time.time() - start)
            out[method] = (radii, seconds)
        except Exception as error:  # noqa: BLE001  What it does not support is a result as well.
            out[method] = str(error).strip().splitlines()[-1][:90] if str(error).strip() else type(error).__name__
    return out


def ours(certify, model, x, y, folder):
    """Our radii, seconds an input, and the smallest distance at which the attack changed the decision."""
    folder = pathlib.Path(folder)
    torch.onnx.export(model, (x[:1],), folder / "model.onnx", input_names=["x"], output_names=["y"],
                      dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}}, dynamo=False)
    import numpy

    numpy.savez(folder / "data.npz", x=x.numpy(), y=y.numpy())
    done = subprocess.run(
        [certify, "local", folder / "model.onnx", "--data", folder / "data.npz", "--norm", "l2", "--limit", str(len(x)),
         "--effort", "0", "--json", folder / "local.json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    rows = json.loads((folder / "local.json").read_text())["inputs"]
    return [r["radius"] for r in rows], [r["seconds"] for r in rows], [r["broken"] for r in rows]


def median(numbers):
    numbers = sorted(numbers)
    return numbers[len(numbers) // 2] if numbers else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--certify", default="certify", help="the program")
    parser.add_argument("--inputs", type=int, default=8, help="inputs of each network")
    parser.add_argument("--methods", default="IBP,CROWN-IBP,CROWN,alpha-CROWN", help="of auto_LiRPA")
    args = parser.parse_args()
    torch.manual_seed(0)
    networks = {"perceptron 144-128-128-10": perceptron(), "ViT, 1 layer": Vit(1), "ViT, 3 layers": Vit(3)}
    print("| network | program | radius, median | seconds an input |\n|---|---|---|---|")
    for name, model in networks.items():
        model = trained(model)
        x, y = data(args.inputs, 10_000)
        with tempfile.TemporaryDirectory() as folder:
            radii, seconds, broken = ours(args.certify, model, x, y, folder)
        print(f"| {name} | certify local | {median(radii):.4g} | {median(seconds):.3f} |", flush=True)
        for method, found in lirpa(model, x, args.methods.split(",")).items():
            if isinstance(found, str):
                print(f"| {name} | auto_LiRPA, {method} | – | {found} |", flush=True)
            else:
                print(f"| {name} | auto_LiRPA, {method} | {median(found[0]):.4g} | {median(found[1]):.3f} |", flush=True)
        broken = [b for b in broken if b is not None]
        print(f"| {name} | attack: changed at | {median(broken):.4g} | |", flush=True)


if __name__ == "__main__":
    main()
