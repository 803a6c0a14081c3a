"""Constants that libraries for Lipschitz networks compute, beside the one that is proven of the same weights.

`python certify/benches/libraries.py --liresnet DIR` needs torch, onnx, onnxscript, deel-torchlip, a clone of LiResNet
(https://github.com/hukkai/liresnet) and a `certify` on the PATH (or `--certify FILE`). Both networks have random weights: LiResNet's stem and
residual convolutions with a linear head, whose constant its own code finds by power iteration, and spectral convolutions
and maps with GroupSort of deel-torchlip, which normalises them so that it states 1. Beside them stands a product of norms by Gram iteration in f32, as many libraries
compute it. All are l2 constants of the whole image to all outputs.

A power iteration comes from below. So the library's number may lie under the truth, and the proven one must not lie under that.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import warnings

import torch
from torch import nn

warnings.filterwarnings("ignore")


class Halves(nn.Module):
    """MaxMin of both halves of the channels."""

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1)


def gram(norms):
    """The product of norms that Gram iteration gives, in f32, of (weight, image side or None, stride) each."""
    product = 1.0
    for weight, side, stride in norms:
        if side is None:
            a = weight.unsqueeze(0).to(torch.complex64)
        else:
            # Circular padding of the image: one matrix a frequency; strides only leave rows out.
            a = torch.fft.fft2(weight, s=(side, side)).permute(2, 3, 0, 1).reshape(-1, *weight.shape[:2])
        a = a.mH if a.shape[1] < a.shape[2] else a
        log = torch.zeros(len(a))
        for _ in range(6):
            size = torch.linalg.matrix_norm(a)
            a = a / size[:, None, None]
            log = 2.0 * (log + size.log())
            a = a.mH @ a
        product *= ((log + torch.linalg.matrix_norm(a).log()) / 2**6).exp().max().item()
    return product


def liresnet(folder, width, depth):
    """LiResNet's own layers with random weights; its constant by ten iterations, as in its training, and by 500, as in its evaluation."""
    sys.path.insert(0, str(folder))
    from models.blocks import LiResConv
    from models.layers import Conv2d, Linear

    torch.manual_seed(0)
    stem = Conv2d(3, width, kernel_size=5, stride=2, input_size=32)
    blocks = LiResConv(width=width, depth=depth, input_size=16, activation=nn.Identity())
    # Far from the identity, where all is easy.
    blocks.weights.data = torch.randn_like(blocks.weights) / (3 * width**0.5)
    head = Linear(width * 16 * 16, 10)
    found = []
    for iterations in (10, 500):
        for module in (stem, blocks, head):
            module.num_lc_iter = iterations
        with torch.no_grad():
            found.append(float(stem.lipschitz() * blocks.lipschitz() * head.lipschitz()))
    kernels = list(blocks.get_weight().detach())
    plain = nn.Sequential(nn.Conv2d(3, width, 5, 2, 2), Halves())
    plain[0].load_state_dict({"weight": stem.weight.data, "bias": stem.bias.data})
    for kernel, bias in zip(kernels, blocks.bias.data):
        layer = nn.Conv2d(width, width, 3, padding=1)
        layer.load_state_dict({"weight": kernel, "bias": bias})
        plain.append(layer).append(Halves())
    last = nn.Linear(width * 16 * 16, 10)
    last.load_state_dict({"weight": head.weight.data, "bias": head.bias.data})
    plain.append(nn.Flatten()).append(last)
    # Zero padding is at most the circular one of the padded image.
    parts = [(stem.weight.data, 36, 2)] + [(k, 18, 1) for k in kernels] + [(head.weight.data, None, 1)]
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        y = nn.Sequential(stem, Halves())(x)
        for kernel, bias in zip(kernels, blocks.bias.data):
            y = Halves()(nn.functional.conv2d(y, kernel, bias, padding=1))
        assert torch.allclose(head(y.flatten(1)), plain(x), atol=1e-5)
    return plain, (3, 32, 32), found, gram(parts)


def groupsort(width):
    """Spectral convolutions with ReLU and spectral maps with GroupSort of deel-torchlip, which states that all of it is 1-Lipschitz."""
    from deel import torchlip

    torch.manual_seed(0)
    convolutions = [
        torchlip.SpectralConv2d(1, width, 3, padding=1),
        torchlip.SpectralConv2d(width, width, 3, padding=1, stride=2),
        torchlip.SpectralConv2d(width, width, 3, padding=1),
    ]
    maps = [torchlip.SpectralLinear(width * 14 * 14, 128), torchlip.SpectralLinear(128, 128), torchlip.SpectralLinear(128, 10)]
    sort = torchlip.GroupSort2()
    model = nn.Sequential()
    for layer in convolutions:
        model.append(layer).append(nn.ReLU())
    model.append(nn.Flatten())
    for layer in maps[:-1]:
        model.append(layer).append(sort)
    model.append(maps[-1]).eval()
    x = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        stated = model(x)
    plain, parts = nn.Sequential(), []
    for layer, (side, stride) in zip(convolutions, ((30, 1), (30, 2), (16, 1))):
        own = layer.vanilla_export()
        plain.append(own).append(nn.ReLU())
        parts.append((own.weight.detach(), side, stride))
    plain.append(nn.Flatten())
    # The library orders neighbours, elements 2i and 2i + 1, the larger one behind. Halves are those behind a permutation.
    order, into = torch.arange(128).reshape(-1, 2).t().flatten(), None
    for i, layer in enumerate(maps):
        own = layer.vanilla_export()
        weight, bias = own.weight.detach().clone(), own.bias.detach().clone()
        parts.append((weight, None, 1))
        weight = weight if into is None else weight[:, into]
        if i + 1 < len(maps):
            into = order.roll(64)
            weight, bias = weight[order], bias[order]
        new = nn.Linear(weight.shape[1], weight.shape[0])
        new.load_state_dict({"weight": weight, "bias": bias})
        plain.append(new)
        if i + 1 < len(maps):
            plain.append(Halves())
    with torch.no_grad():
        off = (plain(x) - stated).abs().max()
        assert off < 1e-5, off
    return plain, (1, 28, 28), [1.0, 1.0], gram(parts)


def steepest(model, shape, steps=400):
    """A true lower bound: the norm of the derivative at the steepest of a few points, by power iteration in f64."""
    model = model.double()
    best = 0.0
    for seed in range(3):
        x = torch.rand(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        v = torch.randn_like(x)
        for _ in range(steps // 4):
            _, jv = torch.func.jvp(model, (x,), (v / v.norm(),))
            best = max(best, jv.norm().item())
            _, pull = torch.func.vjp(model, x)
            v = pull(jv)[0]
    model.float()
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--liresnet", type=pathlib.Path, required=True)
    parser.add_argument("--certify", default="certify")
    args = parser.parse_args()
    print(f"{'network':34} {'library':>10} {'converged':>10} {'Gram, f32':>10} {'proven':>10} {'found':>10} {'seconds':>8}")
    for name, (model, shape, found, product) in {
        "LiResNet, width 32, 4 blocks": liresnet(args.liresnet, 32, 4),
        "LiResNet, width 64, 8 blocks": liresnet(args.liresnet, 64, 8),
        "deel-torchlip, GroupSort, width 32": groupsort(32),
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.onnx"
            torch.onnx.export(model.eval(), (torch.rand(1, *shape),), str(path), dynamo=False)
            start = time.perf_counter()
            said = subprocess.run([args.certify, "bound", str(path), "--json", "--quiet"], capture_output=True, text=True)
            if said.returncode:
                sys.exit(said.stderr)
            proven = json.loads(said.stdout)
            seconds = time.perf_counter() - start
        value = constant(proven)
        lowest = steepest(model, shape)
        assert value >= lowest, f"{name}: {value} is below {lowest}, which was found"
        print(f"{name:34} {found[0]:10.4f} {found[1]:10.4f} {product:10.4f} {value:10.4f} {lowest:10.4f} {seconds:8.1f}")


def constant(certificate):
    """The l2 constant of the whole image to all outputs."""
    return float(certificate["l2"]["value"])


if __name__ == "__main__":
    main()
