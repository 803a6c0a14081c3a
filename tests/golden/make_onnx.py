"""Writes small ONNX files as PyTorch's two exporters and others write them, with what onnxruntime computes.

Needs torch, torchvision, transformers, onnx, onnxscript and onnxruntime from PyPI (written with torch 2.15, torchvision
0.29, transformers 5.24, onnx 1.23, onnxscript 0.7 and onnxruntime 1.32), and no network:

    python tests/golden/make_onnx.py tests/golden/onnx [NAME...]

For each model NAME.onnx, and NAME.safetensors with seeded inputs and the outputs of onnxruntime for them. A name ends
in `.script` for the exporter that traces (`dynamo=False`), in `.dynamo` for the other one, `.any` behind these where the
numbers of examples and of tokens are left open, and in nothing for a graph that is made by hand.

    python tests/golden/make_onnx.py DIR big

writes networks of real sizes with random weights instead, from 45 to 500 MB; `LIPSCHITZ_ONNX=DIR cargo test --test onnx outputs`
compares them.

NAME.mutations.json holds changes to the file NAME.onnx, and what onnxruntime makes of each. A change is a list of `[from,
to, bytes]` in hexadecimal: these bytes in place of those. The outcome is the norm of the output and the sums over its
elements i = 0, 1, … of output[i] · cos(k·i + k) for k = 1…6.
"""

import copy
import json
import os
import random
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
            x = 0.4 * (x + phi(map(x)))
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
        self.norm, self.rms = nn.LayerNorm(6, eps=1e-3), RmsNorm(6)
        self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8, bias=False), nn.Linear(8, 6)

    def forward(self, x):
        y = self.rms(x)
        x = x + self.down(torch.nn.functional.silu(self.gate(y)) * self.up(y))
        mean = x.mean(-1, keepdim=True)
        x = (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + 1e-4)
        return torch.nn.functional.normalize(self.norm(x), dim=-1, eps=1e-6)


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
        # With a mask, no code looks for several texts in one row, which the exporter that traces does not know.
        kwargs = {"use_cache": False, "attention_mask": torch.ones_like(x)} if hasattr(self.model, "transformer") else {}
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
    yield "vision", torchvision.models.VisionTransformer(8, 4, 1, 2, 8, 12, num_classes=5), image(3, 8)
    small = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **small)
    yield "vit", Only(transformers.ViTForImageClassification(config), "logits"), image(3, 8)
    config = transformers.BertConfig(vocab_size=13, max_position_embeddings=6, num_labels=3, **small)
    yield "bert", Only(transformers.BertForSequenceClassification(config), "logits"), tokens(13, 6)
    config = transformers.GPT2Config(vocab_size=13, n_positions=6, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    yield "gpt2", Only(transformers.GPT2LMHeadModel(config), "logits"), tokens(13, 6)


def big():
    """Networks of real sizes, of which each exporter writes one."""
    g = torch.Generator().manual_seed(5)
    yield "resnet18.script.any", torchvision.models.resnet18(), torch.rand((2, 3, 224, 224), generator=g)
    yield "resnet18.dynamo", torchvision.models.resnet18(), torch.rand((1, 3, 224, 224), generator=g)
    yield "vit_b_16.dynamo.any", torchvision.models.vit_b_16(), torch.rand((2, 3, 224, 224), generator=g)
    config = transformers.BertConfig(num_labels=2)
    yield "bert_base.script", Only(transformers.BertForSequenceClassification(config), "logits"), torch.randint(30000, (1, 64), generator=g)
    config = transformers.GPT2Config()
    yield "gpt2.dynamo.any", Only(transformers.GPT2LMHeadModel(config), "logits"), torch.randint(50000, (2, 48), generator=g)
    yield "gpt2.script", Only(transformers.GPT2LMHeadModel(config), "logits"), torch.randint(50000, (1, 48), generator=g)


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


def by_hand():
    """Graphs as other tools write them: each a list of nodes, tensors, the input's sizes, an input, and the version."""
    g = numpy.random.default_rng(11)
    weight = lambda *shape: (g.standard_normal(shape) / numpy.prod(shape[1:]) ** 0.5).astype(numpy.float32)
    node = helper.make_node
    # As the verification of networks has them: an input that is normalised first, and a row of pixels.
    yield "vnn", 9, ["batch", 1, 4, 4], g.random((3, 1, 4, 4)), [
        node("Sub", ["x", "mean"], ["a"]), node("Div", ["a", "std"], ["b"]), node("Flatten", ["b"], ["c"]),
        node("MatMul", ["c", "w1"], ["d"]), node("Add", ["b1", "d"], ["e"]), node("Relu", ["e"], ["f"]),
        node("Gemm", ["f", "w2", "b2"], ["g"], alpha=0.5, beta=2.0), node("BatchNormalization", ["g", "s", "o", "m", "v"], ["h"]),
        node("Relu", ["h"], ["i"]), node("Gemm", ["i", "w3", "b3"], ["y"], transB=1),
    ], dict(mean=numpy.float32([0.1307]), std=numpy.float32([[[[0.3081]]]]), w1=weight(16, 8), b1=weight(8), w2=weight(8, 6),
            b2=weight(1, 6), s=weight(6), o=weight(6), m=weight(6), v=weight(6) ** 2 + 0.5, w3=weight(4, 6), b3=weight(4))
    yield "vnn_conv", 13, ["batch", 3, 8, 8], g.random((3, 3, 8, 8)), [
        node("Sub", ["x", "mean"], ["a"]), node("Div", ["a", "std"], ["b"]),
        node("Conv", ["b", "k1"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("BatchNormalization", ["c", "s", "o", "m", "v"], ["d"], epsilon=0.01), node("Relu", ["d"], ["e"]),
        node("Conv", ["e", "k2", "kb2"], ["f"], group=2), node("Add", ["f", "kb3"], ["h"]),
        node("LeakyRelu", ["h"], ["i"], alpha=0.2), node("Reshape", ["i", "flat"], ["j"]), node("Gemm", ["j", "w", "wb"], ["y"]),
    ], dict(mean=weight(1, 3, 1, 1), std=numpy.abs(weight(3, 1, 1)) + 0.2, k1=weight(4, 3, 3, 3), s=weight(4), o=weight(4), m=weight(4),
            v=weight(4) ** 2 + 0.5, k2=weight(6, 2, 3, 3), kb2=weight(6), kb3=weight(6, 1, 1), flat=numpy.int64([-1, 24]), w=weight(24, 5),
            wb=weight(5))
    yield "acas", 11, [1, 1, 1, 5], g.standard_normal((3, 1, 1, 5)), [
        node("Sub", ["x", "mean"], ["a"]), node("Flatten", ["a"], ["b"], axis=1), node("MatMul", ["b", "w1"], ["c"]),
        node("Add", ["c", "b1"], ["d"]), node("Clip", ["d", "zero"], ["e"]), node("MatMul", ["e", "w2"], ["f"]),
        node("Sub", ["f", "b2"], ["g"]), node("Mul", ["g", "half"], ["y"]),
    ], dict(mean=weight(1, 1, 1, 5), w1=weight(5, 7), b1=weight(7), zero=numpy.float32(0), w2=weight(7, 3), b2=weight(3),
            half=numpy.float32(0.5))
    # Before opset 13, axes are options; the kernels of two branches, and a skip.
    yield "old", 11, ["batch", 2, 4, 4], g.random((3, 2, 4, 4)), [
        node("Conv", ["x", "k1"], ["a"], pads=[1, 1, 1, 1]), node("Conv", ["x", "k2"], ["b"]), node("Sub", ["a", "b"], ["c"]),
        node("Sum", ["c", "x"], ["d"]), node("AveragePool", ["d"], ["e"], kernel_shape=[2, 2], strides=[2, 2]),
        node("MaxPool", ["e"], ["f"], kernel_shape=[2, 2]), node("Squeeze", ["f"], ["h"], axes=[2, 3]), node("Unsqueeze", ["h"], ["i"], axes=[1]),
        node("Slice", ["i", "i0", "i9", "i2"], ["j"]), node("Squeeze", ["j"], ["k"], axes=[1]), node("Clip", ["k", "low", "high"], ["l"]),
        node("Dropout", ["l"], ["m"]), node("Gemm", ["m", "w"], ["y"]),
    ], dict(k1=weight(2, 2, 3, 3), k2=weight(2, 2, 1, 1), i0=numpy.int64([0]), i9=numpy.int64([9]), i2=numpy.int64([2]),
            low=numpy.float32(-0.5), high=numpy.float32(0.5), w=weight(2, 3))
    # The operator that is all of attention, with heads that share keys and values.
    attended = lambda **options: [
        node("Gather", ["table", "x"], ["a"]), node("Add", ["a", "places"], ["b"]), node("RMSNormalization", ["b", "gain"], ["c"], epsilon=0.01),
        *(node("MatMul", ["c", f"w{n}"], [n]) for n in "qkv"),
        node("Attention", ["q", "k", "v"], ["o"], q_num_heads=4, kv_num_heads=2, **options),
        node("MatMul", ["o", "wo"], ["p"]), node("Add", ["p", "wob"], ["r"]), node("ReduceMean", ["r", "one"], ["s"], keepdims=0),
        node("MatMul", ["s", "w"], ["y"]),
    ]
    tensors = lambda: dict(table=weight(7, 8), places=weight(5, 8), gain=weight(8), wq=weight(8, 8), wk=weight(8, 4), wv=weight(8, 4), wo=weight(8, 8),
                           one=numpy.int64([1]), w=weight(8, 3))
    yield "fused", 23, ["batch", 5], g.integers(7, size=(3, 5)), attended(is_causal=1, scale=0.3, softcap=2.0), tensors()
    yield "fused_all", 23, ["batch", 5], g.integers(7, size=(3, 5)), attended(), tensors()


def made(opset, sizes, x, nodes, tensors, way=0):
    whole = x.dtype.kind == "i"
    graph = helper.make_graph(
        nodes, "graph", [helper.make_tensor_value_info("x", TensorProto.INT64 if whole else TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(numpy.asarray(t), name) for name, t in tensors.items()])
    if way == 1:
        # Numbers one by one, tensors among the inputs as well.
        for tensor in graph.initializer:
            array = numpy_helper.to_array(tensor)
            tensor.ClearField("raw_data")
            (tensor.int64_data if array.dtype == numpy.int64 else tensor.float_data).extend(array.ravel().tolist())
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if way == 1 else 10)


def outcome(proto, x):
    """What onnxruntime makes of a graph as it stands, or none. Some graphs make it abort, so it runs in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            os.write(writer, json.dumps(digest(proto, x)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    os.waitpid(child, 0)
    return json.loads(text or "null")


def digest(proto, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
        step = session.get_inputs()[0].shape[0]
        step = step if isinstance(step, int) else x.shape[0]
        name = session.get_inputs()[0].name
        y = numpy.concatenate([session.run(None, {name: x[i : i + step]})[0] for i in range(0, x.shape[0], step)])
    except Exception:
        return None
    y = y.astype(numpy.float64).ravel()
    if not numpy.isfinite(y).all() or numpy.abs(y).max() > 1e30:
        return None
    i = numpy.arange(y.size)
    return [float(f"{v:.8g}") for v in [numpy.linalg.norm(y), *((y * numpy.cos(k * i + k)).sum() for k in range(1, 7))]]


OTHER = {"Relu": ["Sigmoid", "Tanh", "Abs", "Neg", "Exp"], "Add": ["Sub", "Mul", "Div", "Max"], "Sub": ["Add", "Mul"], "Mul": ["Add", "Div"],
         "Div": ["Mul", "Sub"], "Tanh": ["Sigmoid", "Relu", "Sin"], "Sigmoid": ["Tanh", "Softplus"], "Erf": ["Tanh"], "Softmax": ["LogSoftmax", "Hardmax"],
         "MaxPool": ["LpPool"], "AveragePool": ["LpPool"], "ReduceMean": ["ReduceSum", "ReduceMax", "ReduceL2"], "Sqrt": ["Abs", "Exp"],
         "Reciprocal": ["Sqrt", "Neg"], "Gelu": ["Relu", "HardSwish"], "Pow": ["Mul"], "ReduceL2": ["ReduceL1", "ReduceMean"],
         "GlobalAveragePool": ["GlobalMaxPool"], "LeakyRelu": ["Elu"], "Clip": ["Max"]}


def changes(proto, dice):
    """Graphs that differ from one in one place."""
    def changed(change):
        other = copy.deepcopy(proto)
        change(other.graph)
        return other

    graph = proto.graph
    for n, node in enumerate(graph.node):
        for a, attribute in enumerate(node.attribute):
            values = []
            kind = attribute.type
            if kind == onnx.AttributeProto.FLOAT:
                values = [("f", v) for v in (attribute.f * 2, attribute.f + 0.1, -attribute.f)]
            elif kind == onnx.AttributeProto.INT:
                values = [("i", v) for v in (attribute.i + 1, attribute.i - 1, 0)]
            elif kind == onnx.AttributeProto.STRING:
                values = [("s", v) for v in (b"tanh", b"none", b"SAME_UPPER", b"VALID")]
            elif kind == onnx.AttributeProto.INTS:
                old = list(attribute.ints)
                values = [("ints", v) for v in (old[::-1], [v + 1 for v in old], old[1:] + old[:1], [old[0] + 1, *old[1:]])]
            for field, value in values:
                def set_(g, n=n, a=a, field=field, value=value):
                    at = g.node[n].attribute[a]
                    if field == "ints":
                        del at.ints[:]
                        at.ints.extend(value)
                    else:
                        setattr(at, field, value)
                yield changed(set_)
            yield changed(lambda g, n=n, a=a: g.node[n].attribute.pop(a))
        for other in OTHER.get(node.op_type, []):
            yield changed(lambda g, n=n, other=other: setattr(g.node[n], "op_type", other))
        if len(node.input) > 1:
            def swap(g, n=n):
                g.node[n].input[0], g.node[n].input[1] = g.node[n].input[1], g.node[n].input[0]
            yield changed(swap)
        # Another value in place of one.
        before = [o for other in graph.node[:n] for o in other.output] + ["x"]
        for i in range(len(node.input)):
            for name in dice.sample(before, min(3, len(before))) + dice.sample([t.name for t in graph.initializer], min(2, len(graph.initializer))):
                yield changed(lambda g, n=n, i=i, name=name: g.node[n].input.__setitem__(i, name))
    for t, tensor in enumerate(graph.initializer):
        array = numpy_helper.to_array(tensor)
        others = [array * 2, array + 1, array * 0, array[::-1] if array.ndim else array if array.dtype == bool else -array]
        if array.ndim >= 2:
            odd = array.copy()
            odd.ravel()[-1] = -10000
            others += [odd, numpy.flip(array, -1), numpy.swapaxes(array, -1, -2)]
        for other in others:
            other = numpy.ascontiguousarray(other.astype(array.dtype)).reshape(other.shape)
            if other.nbytes <= 512:
                yield changed(lambda g, t=t, other=other: g.initializer[t].CopyFrom(numpy_helper.from_array(other, g.initializer[t].name)))


def edits(old, new):
    """Few places where bytes differ."""
    out = []

    def differ(a0, a1, b0, b1):
        while a0 < a1 and b0 < b1 and old[a0] == new[b0]:
            a0, b0 = a0 + 1, b0 + 1
        while a0 < a1 and b0 < b1 and old[a1 - 1] == new[b1 - 1]:
            a1, b1 = a1 - 1, b1 - 1
        if a0 < a1 or b0 < b1:
            out.append([a0, a1, new[b0:b1].hex()])

    # The length of the graph stands before it.
    head = next(i for i in range(len(old)) if old[i] != new[i])
    after = head + 8
    shift = len(new) - len(old)
    if old[head:after] != new[head : after] and old[after : after + 8] == new[after : after + 8]:
        differ(0, after, 0, after)
        differ(after, len(old), after, len(new))
    else:
        differ(0, len(old), 0, len(new))
    assert patched(old, out) == new, shift
    return out


def patched(old, all):
    for a, b, text in reversed(all):
        old = old[:a] + bytes.fromhex(text) + old[b:]
    return old


def mutate(out, name, proto, x, most=45):
    dice = random.Random(7)
    old = proto.SerializeToString()
    cases = []
    every = list(changes(proto, dice))
    dice.shuffle(every)
    for changed in every:
        if len(cases) == most:
            break
        found = outcome(changed, x.numpy())
        new = changed.SerializeToString()
        if found is not None and new != old:
            cases.append([edits(old, new), found])
    with open(os.path.join(out, name + ".mutations.json"), "w") as file:
        json.dump(cases, file, separators=(",", ":"))
    print(name, len(cases), "mutations", os.path.getsize(file.name))


# What is kept of what each exporter writes, and which of them are changed.
KEPT = ["mlp.script", "mlp.dynamo.any", "activations.script", "activations.dynamo", "gated.script.any", "gated.dynamo", "lenet.script", "lenet.dynamo.any",
        "resnet.script.any", "resnet.dynamo", "encoder.dynamo.any", "vision.script", "vision.dynamo.any", "vit.script",
        "vit.dynamo", "bert.script", "bert.dynamo.any", "gpt2.script", "gpt2.dynamo", "gpt2.dynamo.any"]
CHANGED = ["mlp.script", "gated.dynamo", "resnet.script.any", "vit.dynamo", "gpt2.dynamo", "vnn", "vnn_conv", "old", "fused"]


def main(out, *names):
    os.makedirs(out, exist_ok=True)
    if "big" in names:
        for whole, model, x in big():
            if len(names) > 1 and whole not in names:
                continue
            scramble(model)
            keep(out, whole, exported(model, x, "dynamo" in whole, "any" in whole), x)
        return
    everything = "everything" in names
    for name, model, x in models():
        scramble(model)
        for dynamo in (False, True):
            for dynamic in (False, True):
                whole = f"{name}.{'dynamo' if dynamo else 'script'}{'.any' if dynamic else ''}"
                if not everything and (whole not in KEPT or (names and whole not in names)):
                    continue
                try:
                    proto = exported(model, x, dynamo, dynamic)
                    keep(out, whole, proto, x)
                    if whole in CHANGED:
                        mutate(out, whole, proto, x)
                except Exception as e:
                    print("FAILED", whole, type(e), str(e)[:300])
    for way, (name, opset, sizes, x, nodes, tensors) in enumerate(by_hand()):
        if "fused" in name:
            tensors["wob"] = tensors["gain"] * 0.5
        x = x if x.dtype.kind == "i" else x.astype(numpy.float32)
        proto = made(opset, sizes, x, nodes, tensors, way)
        keep(out, name, proto, torch.from_numpy(x))
        if name in CHANGED:
            mutate(out, name, proto, torch.from_numpy(x))


if __name__ == "__main__":
    main(*sys.argv[1:])
