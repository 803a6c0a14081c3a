"""Writes small ONNX files as PyTorch's two exporters and others write them, with what onnxruntime computes.

Needs torch, torchvision, transformers, onnx, onnxscript and onnxruntime from PyPI (written with torch 2.15, torchvision
0.29, transformers 5.24, onnx 1.23, onnxscript 0.7 and onnxruntime 1.32), and no network:

    python tests/golden/make_onnx.py tests/golden/onnx [NAME...]

For each model NAME.onnx, and NAME.safetensors with seeded inputs and the outputs of onnxruntime for them. A name ends
in `.script` for the exporter that traces (`dynamo=False`), in `.dynamo` for the other one, and in nothing for a graph
that is made by hand.
"""

import os
import sys
import tempfile
import warnings

import numpy
import onnx
import onnxruntime
import torch
import torchvision
import transformers
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)


def scramble(model, seed=3):
    """Weights and statistics that are no defaults, so that none can be left out unseen."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            size = p[0].numel() if p.dim() > 1 else 4
            p.copy_(torch.randn(p.shape, generator=g) / size**0.5 + (1 if p.dim() == 1 and "weight" in name else 0))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(torch.randn(b.shape, generator=g) / 4)
            if name.endswith("running_var"):
                b.copy_(torch.rand(b.shape, generator=g) + 0.5)
    return model.eval()


class Block(nn.Module):
    """A block of a residual network, as torchvision's."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Resnet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2 = Block(4, 4, 1), Block(4, 6, 2)
        self.average, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 5)

    def forward(self, x):
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.average(self.layer2(self.layer1(x))), 1))


class Activations(nn.Module):
    """One after another, with maps between."""

    def __init__(self):
        super().__init__()
        self.phis = nn.ModuleList([
            nn.ReLU(), nn.LeakyReLU(0.1), nn.ELU(0.7), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Tanh(), nn.Sigmoid(),
            nn.Softplus(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(),
        ])
        self.maps = nn.ModuleList(nn.Linear(4, 4) for _ in range(len(self.phis) + 4))

    def forward(self, x):
        for map, phi in zip(self.maps, self.phis):
            x = x + phi(map(x))
        a, b, c, d = self.maps[len(self.phis):]
        x = torch.relu(a(x)).square() + 0.5 * x
        y = b(x)
        x = x + y * torch.sigmoid(1.702 * y)
        x = x - torch.abs(c(x)) / 3
        return 2.0 * torch.tanh(d(x) / 2.0)


class RmsNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class Gated(nn.Module):
    """Norms of both kinds, written out and not, and a gated layer."""

    def __init__(self):
        super().__init__()
        self.norm, self.rms, self.named = nn.LayerNorm(6, eps=1e-3), RmsNorm(6), nn.RMSNorm(6, eps=1e-2)
        self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8, bias=False), nn.Linear(8, 6)

    def forward(self, x):
        y = self.rms(x)
        x = x + self.down(torch.nn.functional.silu(self.gate(y)) * self.up(y))
        mean = x.mean(-1, keepdim=True)
        x = (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + 1e-4)
        return self.named(self.norm(self.up.weight[:6] @ x.unsqueeze(-1)).squeeze(-1)) if False else self.named(self.norm(x))


class Encoder(nn.Module):
    """PyTorch's own encoder layers, before and after their norms."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.positions = nn.Parameter(torch.zeros(5, 8))
        self.first = nn.TransformerEncoderLayer(8, 2, 12, activation="gelu", batch_first=True, norm_first=True)
        self.second = nn.TransformerEncoderLayer(8, 4, 12, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        return self.head(self.second(self.first(x)).mean(1))


class Only(nn.Module):
    """One output of a model of transformers."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x):
        kwargs = {"use_cache": False} if self.name == "logits" and hasattr(self.model, "transformer") else {}
        return getattr(self.model(x, **kwargs), self.name)


def models():
    """By name: a module, an example of its input, and whether tokens may be fewer."""
    g = torch.Generator().manual_seed(5)
    tokens = lambda vocabulary, length: torch.randint(vocabulary, (3, length), generator=g)
    image = lambda c, side: torch.rand((3, c, side, side), generator=g)
    yield "mlp", nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3)), torch.randn(3, 6, generator=g)
    yield "activations", Activations(), torch.randn(3, 4, generator=g)
    yield "gated", Gated(), torch.randn(3, 6, generator=g)
    yield "lenet", nn.Sequential(
        nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.Sigmoid(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 5)), image(1, 12)
    yield "resnet", Resnet(), image(3, 16)
    yield "encoder", Encoder(), tokens(11, 5)
    yield "vision", torchvision.models.VisionTransformer(8, 4, 2, 2, 8, 12, num_classes=5), image(3, 8)
    small = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **small)
    yield "vit", Only(transformers.ViTForImageClassification(config), "logits"), image(3, 8)
    config = transformers.BertConfig(vocab_size=13, max_position_embeddings=6, num_labels=3, **small)
    yield "bert", Only(transformers.BertForSequenceClassification(config), "logits"), tokens(13, 6)
    config = transformers.GPT2Config(vocab_size=13, n_positions=6, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    yield "gpt2", Only(transformers.GPT2LMHeadModel(config), "logits"), tokens(13, 6)


def run(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())
    fixed = session.get_inputs()[0].shape[0]
    if isinstance(fixed, int) and fixed != x.shape[0]:
        return numpy.concatenate([session.run(None, {name: x[i : i + fixed]})[0] for i in range(0, x.shape[0], fixed)])
    return session.run(None, {name: x})[0]


def keep(out, name, proto, x):
    path = os.path.join(out, name + ".onnx")
    onnx.save(proto, path)
    y = torch.from_numpy(run(path, x.numpy()))
    kind = "tokens" if not x.is_floating_point() else "pixels" if x.dim() == 4 else "vectors"
    save_file({kind: x, "output": y.contiguous()}, os.path.join(out, name + ".safetensors"))
    print(name, os.path.getsize(path), len(proto.graph.node))


def small(proto):
    """Without what exporters note for people, which no reader looks at."""
    del proto.metadata_props[:]
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.graph.value_info[:]
    for tensor in proto.graph.initializer:
        tensor.doc_string = ""
    return proto


def exported(model, x, dynamo, dynamic):
    example = x if dynamic else x[:1]
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "model.onnx")
        tokens = not x.is_floating_point()
        if dynamo:
            shapes = None
            if dynamic:
                shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=x.shape[1])} if tokens else
                          {0: torch.export.Dim("batch")},)
                shapes = ({0: torch.export.Dim.DYNAMIC, **({1: torch.export.Dim.DYNAMIC} if tokens else {})},)
            torch.onnx.export(model, (example,), path, dynamo=True, dynamic_shapes=shapes, verbose=False, external_data=False)
        else:
            axes = {"x": {0: "batch", **({1: "tokens"} if tokens else {})}} if dynamic else None
            torch.onnx.export(model, (example,), path, dynamo=False, input_names=["x"], output_names=["y"], dynamic_axes=axes)
        return small(onnx.load(path))


def main(out, *names):
    os.makedirs(out, exist_ok=True)
    for name, model, x in models():
        scramble(model)
        for dynamo in (False, True):
            for dynamic in (False, True):
                whole = f"{name}.{'dynamo' if dynamo else 'script'}{'.any' if dynamic else ''}"
                if names and whole not in names and name not in names:
                    continue
                try:
                    proto = exported(model, x, dynamo, dynamic)
                    keep(out, whole, proto, x)
                except Exception as e:
                    print("FAILED", whole, type(e), str(e)[:600])


if __name__ == "__main__":
    main(*sys.argv[1:])
