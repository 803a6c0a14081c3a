"""A `torch.nn.Module` of known kinds as a graph with arrays.

A layer that is not known is refused by its name: passed over, the certificate would be about another
function. A batch norm in evaluation mode is folded into the map before it. A convolution or an average
that no node computes, such as a dilated one, is written as its matrix, since it is a linear map of the
whole image.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from typing import Any, Optional, Sequence

import numpy
import torch
from torch import nn

from ._lipschitz import Error

# Numbers in a matrix that a convolution is written as.
LARGEST = 1 << 27


def translate(
    module: nn.Module, input_shape: Optional[Sequence[int]], context: Optional[int]
) -> tuple[str, list[tuple[str, Any]]]:
    """The graph as JSON and the weights by name."""
    layers = list(_flat(module, ""))
    if not layers:
        raise Error("the module has no layers")
    for path, layer in layers:
        if type(layer) not in _KINDS:
            raise _unknown(path, layer)
    walk = _Walk(layers[0], input_shape, context)
    with torch.no_grad():
        for path, layer in layers:
            walk.add(path, layer)
    graph = {"format": 1, "input": walk.input, "nodes": walk.nodes}
    # One type for all: that of the module, or double precision where something was computed.
    given = {w.dtype for w in walk.weights.values()}
    to = torch.float64 if walk.computed or len(given) > 1 else None
    arrays = []
    for name, weight in walk.weights.items():
        weight = weight.detach().cpu().to(to or weight.dtype)
        weight = weight.float() if weight.dtype == torch.bfloat16 else weight
        arrays.append((name, numpy.ascontiguousarray(weight.numpy())))
    return json.dumps(graph), arrays


def unchanged(model: nn.Module) -> None:
    """Refuses a module that may compute something else than its classes do of its weights."""
    everywhere = nn.modules.module
    if any(getattr(everywhere, name, None) for name in ("_global_forward_hooks", "_global_forward_pre_hooks")):
        raise Error("torch has forward hooks for all modules, which may change what they compute; remove them")
    for path, module in model.named_modules():
        path = path or "the module"
        if module.training:
            raise Error(f"{path} is in training mode; call .eval() first, so that it is one function")
        # Those of the class that are hidden by one of the object, such as a `forward`.
        own = [name for name in vars(module) if callable(getattr(type(module), name, None))]
        if module._forward_hooks or module._forward_pre_hooks or own:
            raise Error(f"{path}, a {_kind(module)}: has hooks or a forward of its own, which may change what it computes")
        # A class that somebody else has changed.
        for name in ("forward", "__call__"):
            kind = next(kind for kind in type(module).__mro__ if name in vars(kind))
            if _library(vars(kind)[name]) != _library(kind):
                theirs = getattr(vars(kind)[name], "__module__", "elsewhere")
                raise Error(f"{path}, a {_kind(module)}: its class has a {name} from {theirs}, which may compute something else")


# How far outputs may be off, relative to the largest, by the type that a module computes in.
_OFF = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


def same_outputs(model: nn.Module, network: Any) -> None:
    """Refuses a module whose outputs for an input are not those of the network that it was read as: whatever it is
    that makes it compute something else."""
    graph = json.loads(network.graph())
    weights = [p for p in model.parameters() if p.is_floating_point()]
    dtype, device = (weights[0].dtype, weights[0].device) if weights else (torch.float32, torch.device("cpu"))
    draw = torch.Generator().manual_seed(1)
    spec = graph["input"]
    if spec["kind"] == "tokens":
        vocabulary = graph["nodes"][0]["vocabulary"]
        config = getattr(model, "config", None)
        # What is read as a mark of where a text ends is no text.
        marks = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "sep", "cls")}
        usual = [i for i in range(min(vocabulary, 4096)) if i not in marks] or [0]
        at = torch.randint(len(usual), (min(spec["context"], 12),), generator=draw)
        x = torch.tensor([[usual[i] for i in at.tolist()]])
    else:
        shape = (spec["dim"],) if spec["kind"] == "vector" else (spec["channels"], spec["height"], spec["width"])
        x = torch.rand(1, *shape, generator=draw).to(dtype)
    values, shape = network.run(x.double().numpy() if x.is_floating_point() else x.numpy())
    ours = torch.tensor(values, dtype=torch.float64).reshape(shape)
    with torch.no_grad():
        made = list(_tensors(model(x.to(device))))
    alike = [y.detach().double().cpu() for y in made if y.numel() == ours.numel() and y.is_floating_point()]
    if not alike:
        raise Error(f"the model makes no tensor of {tuple(shape)}, which is what was read of it; give a graph, certify(model, graph)")
    alike = [y for y in alike if torch.isfinite(y).all()]
    # Beyond the largest numbers of its type nothing can be compared.
    if not alike or not torch.isfinite(ours).all():
        raise Error("the model's output for an input is not finite, so it cannot be compared with what was read of it; take a wider type, such as model.float()")
    off = min(float((y.reshape(ours.shape) - ours).abs().max() / y.abs().max().clamp(min=1e-300)) for y in alike)
    if off > _OFF.get(dtype, 1e-3):
        raise Error(f"the model computes something else than what was read of it: its output is off by {off:.2g} of its largest; give a graph, certify(model, graph)")


def _tensors(made: Any) -> Any:
    """All tensors of what a module returns."""
    if isinstance(made, torch.Tensor):
        yield made
    elif isinstance(made, dict):
        for value in made.values():
            yield from _tensors(value)
    elif isinstance(made, (list, tuple)):
        for value in made:
            yield from _tensors(value)


def _library(of: Any) -> str:
    """The library that a class or a function is from; PyTorch's modules are called by PyTorch."""
    library = str(getattr(of, "__module__", "")).split(".")[0]
    return "torch" if library == "transformers" else library


def as_configured(model: nn.Module) -> None:
    """Refuses a model, as of Hugging Face, whose modules are not those that the library makes of its config,
    which is what is read."""
    for path, module in model.named_modules():
        kind = type(module)
        # As the library has it under its name.
        own = getattr(sys.modules.get(kind.__module__), kind.__qualname__.split(".")[0], None)
        if kind.__module__.split(".")[0] not in ("torch", "transformers") or (own is not kind and "." not in kind.__qualname__):
            raise Error(f"{path or 'the model'}, a {_kind(module)}, is of {type(module).__module__} and not of the library")
    _known_attention(model)
    with torch.random.fork_rng(devices=[]):
        fresh = _without_weights(model)
    theirs = dict(fresh.named_modules())
    for path, module in model.named_modules():
        other = theirs.pop(path, None)
        if other is None or type(other) is not type(module):
            raise Error(f"{path}, a {_kind(module)}, is not what the model's config says")
        constants = _constants(module), _constants(other)
        # What somebody has added is nothing that the library's code asks for.
        for name in sorted(constants[1]):
            if constants[0].get(name, fresh) != constants[1][name]:
                raise Error(f"{path or 'the model'}.{name} is not what the model's config says")
        for name in module._non_persistent_buffers_set | other._non_persistent_buffers_set:
            if not _equal(module._buffers.get(name), other._buffers.get(name)):
                kept = module._buffers.get(name)
                rounded = kept is not None and other._buffers.get(name) is not None and kept.dtype != other._buffers[name].dtype
                remedy = "; .half() and .to() round it: load the model in its type, from_pretrained(..., dtype=...)" if rounded else ""
                raise Error(f"{path or 'the model'}.{name}, which is not saved with the weights, is not what the model's config says{remedy}")
    for path in theirs:
        raise Error(f"the model has no {path}, which its config says")


def _known_attention(model: nn.Module) -> None:
    """Refuses attention by a function that is registered from outside the library."""
    known = getattr(sys.modules.get("transformers.modeling_utils"), "ALL_ATTENTION_FUNCTIONS", {})
    for path, module in model.named_modules():
        name = getattr(getattr(module, "config", None), "_attn_implementation", None)
        function = known.get(name) if name in known else None
        ours = name in (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
        if not ours or (function is not None and not str(function.__module__).startswith("transformers.")):
            raise Error(f"{path or 'the model'} computes attention by `{name}`, which is not the library's; set model.set_attn_implementation('eager')")


def _without_weights(model: nn.Module) -> nn.Module:
    """A model of the same config, whose weights take no memory and whose other numbers are what they are."""
    register, usual = nn.Module.register_parameter, torch.get_default_dtype()

    def nowhere(module: nn.Module, name: str, parameter: Any) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    nn.Module.register_parameter = nowhere  # type: ignore[method-assign]
    # As the library does for a model that is loaded in 16 bits.
    torch.set_default_dtype(getattr(model, "dtype", usual))
    try:
        return type(model)(copy.deepcopy(model.config))
    # Some read weights while they are made.
    except (NotImplementedError, RuntimeError):
        nn.Module.register_parameter = register  # type: ignore[method-assign]
        return type(model)(copy.deepcopy(model.config))
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
        torch.set_default_dtype(usual)


def _equal(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.cpu(), b.cpu())


# What changes gradients, or memory of earlier calls, alone.
_IDLE = ("training", "gradient_checkpointing", "name_or_path", "warnings_issued", "max_seq_len_cached", "vocab_size", "num_embeddings", "out_features")


def _constants(module: nn.Module) -> dict[str, Any]:
    """What a module computes with beside weights: numbers, texts, lists of them, functions."""
    return {
        name: _comparable(value)
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _IDLE and not isinstance(value, (nn.Module, torch.Tensor)) and _is_constant(value)
    }


def _is_constant(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_constant(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype)) or callable(value)


def _comparable(value: Any) -> Any:
    """Of functions that are made anew each time, what they are of."""
    if isinstance(value, (list, tuple)):
        return [_comparable(item) for item in value]
    if callable(value) and not isinstance(value, type):
        function = getattr(value, "func", value)
        given = repr((getattr(value, "args", ()), getattr(value, "keywords", {})))
        return getattr(function, "__module__", None), getattr(function, "__qualname__", type(function).__qualname__), given
    return value


def _flat(module: nn.Module, path: str) -> Any:
    """The layers in their order, with their paths."""
    if type(module) is nn.Sequential:
        # Not `named_children`, which has a layer that comes twice once.
        for name, layer in module._modules.items():
            yield from _flat(layer, f"{path}.{name}" if path else name)
    else:
        yield path, module


class _Walk:
    def __init__(self, first: Any, input_shape: Optional[Sequence[int]], context: Optional[int]):
        path, layer = first
        self.nodes: list[dict[str, Any]] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.computed = False
        # The channels and sides of an image, and whether the graph has it as one vector already.
        self.image: Optional[tuple[int, ...]] = None
        self.flat = True
        if isinstance(layer, nn.Embedding):
            if context is None:
                raise Error("a model of tokens needs their largest number: certify(model, context=...)")
            self.input: dict[str, Any] = {"kind": "tokens", "context": int(context)}
        elif isinstance(layer, nn.Linear) and input_shape is None:
            self.input = {"kind": "vector", "dim": layer.in_features}
        elif input_shape is None:
            raise Error(
                f"the first layer, a {_kind(layer)}, does not say what it reads: certify(model, input_shape=...)"
            )
        elif len(input_shape) == 3:
            c, h, w = (int(n) for n in input_shape)
            self.input = {"kind": "pixels", "channels": c, "height": h, "width": w}
            self.image, self.flat = (c, h, w), False
        elif len(input_shape) == 1:
            self.input = {"kind": "vector", "dim": int(input_shape[0])}
        else:
            raise Error("input_shape: give (dim,) or (channels, height, width)")

    def node(self, op: str, **fields: Any) -> None:
        self.nodes.append({"op": op, **fields})

    def name(self, path: str) -> str:
        """A name of one segment that no node has yet."""
        name, used = path.replace(".", "_") or "layer", {node.get("name") for node in self.nodes}
        while name in used:
            name += "_"
        return name

    def flatten(self) -> None:
        if not self.flat:
            self.node("flatten")
            self.flat = True

    def matrix(self, path: str, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> None:
        """A linear map with its weights."""
        name = self.name(path)
        outputs, inputs = weight.shape
        self.node("linear", name=name, inputs=inputs, outputs=outputs, bias=bias is not None)
        self.weights[f"{name}.weight"] = weight
        if bias is not None:
            self.weights[f"{name}.bias"] = bias

    def add(self, path: str, layer: nn.Module) -> None:
        # A class of its own may compute something else.
        _KINDS[type(layer)](self, path, layer)


def _unknown(path: str, layer: nn.Module) -> Error:
    known = ", ".join(sorted(kind.__name__ for kind in _KINDS))
    remedy = "give a graph of what it computes, certify(model, graph)"
    if hasattr(layer, "parametrizations"):
        remedy = "take its parametrizations off, torch.nn.utils.parametrize.remove_parametrizations"
    return Error(f"{path or 'the module'}, a {_kind(layer)}, is not known: {remedy}. Known are {known}")


def _kind(layer: nn.Module) -> str:
    return type(layer).__name__


def _linear(walk: _Walk, path: str, layer: nn.Linear) -> None:
    if walk.image is not None:
        raise Error(f"{path}, a Linear: reads the last axis of an image; put an nn.Flatten before it")
    walk.matrix(path, layer.weight, layer.bias)


def _flatten(walk: _Walk, path: str, layer: nn.Flatten) -> None:
    if (layer.start_dim, layer.end_dim) != (1, -1):
        raise Error(f"{path}, a Flatten: of other axes than (1, -1) is not known")
    if walk.input["kind"] == "tokens":
        raise Error(f"{path}, a Flatten: of tokens is not known")
    walk.flatten()
    walk.image = None


def _image(walk: _Walk, path: str, layer: nn.Module) -> tuple[int, ...]:
    """The image that a layer reads."""
    if walk.image is None:
        raise Error(f"{path}, a {_kind(layer)}: wants an image; certify(model, input_shape=(channels, height, width))")
    return walk.image


def _one(sizes: Any) -> Optional[int]:
    """A size that is the same down and to the right, or none."""
    both = tuple(sizes) if isinstance(sizes, (tuple, list)) else (sizes, sizes)
    return int(both[0]) if both[0] == both[1] else None


def _window(walk: _Walk, path: str, layer: nn.Module, inputs: int, outputs: int, size: Any, stride: Any, padding: Any) -> Optional[dict[str, int]]:
    """Size, step and padding of a window that a node can have; the image becomes what it makes."""
    image = _image(walk, path, layer)
    if image[0] != inputs:
        raise Error(f"{path}, a {_kind(layer)}: reads {inputs} channels, and there are {image[0]}")
    size, stride, padding = _one(size), _one(stride), _one(padding)
    if walk.flat or None in (size, stride, padding) or min(image[1:]) + 2 * padding < size:
        return None
    after = [side + 2 * padding - size for side in image[1:]]
    # Where the last window is not whole, the two ways to round differ.
    if getattr(layer, "ceil_mode", False) and any(rest % stride for rest in after):
        return None
    walk.image = (outputs, *(rest // stride + 1 for rest in after))
    return {"size": size, "stride": stride, "padding": padding}


def _convolution(walk: _Walk, path: str, layer: nn.Conv2d) -> None:
    padding: Any = layer.padding
    if padding == "valid":
        padding = 0
    elif padding == "same":
        odd = all(size % 2 for size in layer.kernel_size)
        padding = tuple(size // 2 for size in layer.kernel_size) if odd else (0, 1)
    fresh = nn.Conv2d(1, 1, layer.kernel_size, layer.stride, layer.padding, layer.dilation, padding_mode=layer.padding_mode, device="meta")
    # What a border that is not of zeros is computed by.
    if list(fresh._reversed_padding_repeated_twice) != list(layer._reversed_padding_repeated_twice):
        raise Error(f"{path}, a Conv2d: has another padding than it was made with")
    plain = _one(layer.dilation) == 1 and layer.padding_mode in ("zeros", "circular")
    # With dilation, no window is of one piece.
    size = layer.kernel_size if plain else (0, 1)
    window = _window(walk, path, layer, layer.in_channels, layer.out_channels, size, layer.stride, padding)
    if window is None:
        return _no_node(walk, path, layer, True)
    name = walk.name(path)
    walk.node(
        "conv2d", name=name, inputs=layer.in_channels, outputs=layer.out_channels, kernel=window["size"], stride=window["stride"],
        padding=window["padding"], circular=layer.padding_mode == "circular", groups=layer.groups, bias=layer.bias is not None,
    )
    walk.weights[f"{name}.weight"] = layer.weight.flatten(1)
    if layer.bias is not None:
        walk.weights[f"{name}.bias"] = layer.bias


def _pool(pooling: str) -> Any:
    def add(walk: _Walk, path: str, layer: Any) -> None:
        channels = _image(walk, path, layer)[0]
        padding = getattr(layer, "padding", 0)
        plain = _one(getattr(layer, "dilation", 1)) == 1 and not getattr(layer, "return_indices", False)
        plain &= getattr(layer, "divisor_override", None) is None
        # Pixels around the image count as zeros of an average.
        plain &= _one(padding) == 0 or getattr(layer, "count_include_pad", True)
        plain &= getattr(layer, "norm_type", 2) == 2
        size = layer.kernel_size if plain else (0, 1)
        stride = layer.kernel_size if layer.stride is None else layer.stride
        window = _window(walk, path, layer, channels, channels, size, stride, padding)
        if window is not None:
            walk.node("pool", pooling=pooling, window=window["size"], stride=window["stride"], padding=window["padding"])
        else:
            _no_node(walk, path, layer, pooling == "average")

    return add


def _adaptive_pool(pooling: str) -> Any:
    def add(walk: _Walk, path: str, layer: Any) -> None:
        channels, *sides = _image(walk, path, layer)
        wanted = layer.output_size if isinstance(layer.output_size, (tuple, list)) else (layer.output_size,) * 2
        wanted = [side if n is None else n for n, side in zip(wanted, sides)]
        whole = all(side % n == 0 for n, side in zip(wanted, sides)) and not getattr(layer, "return_indices", False)
        size = [side // n for n, side in zip(wanted, sides)] if whole else (0, 1)
        window = _window(walk, path, layer, channels, channels, size, size, 0)
        if window is not None:
            walk.node("pool", pooling=pooling, window=window["size"], stride=window["size"])
        elif whole and wanted == [1, 1] and not walk.flat:
            walk.node("global_pool", pooling=pooling)
            walk.image, walk.flat = (channels, 1, 1), True
        else:
            _no_node(walk, path, layer, pooling == "average")

    return add


def _no_node(walk: _Walk, path: str, layer: nn.Module, affine: bool) -> None:
    """A layer that no node computes: as its matrix if it is an affine map."""
    if not affine:
        behind = " that an earlier layer has made one vector" if walk.flat else ""
        raise Error(f"{path}: no node computes {layer} of an image of {walk.image}" + behind)
    _affine_image(walk, path, layer)


def _pixel_unshuffle(walk: _Walk, path: str, layer: nn.PixelUnshuffle) -> None:
    (channels, height, width), size = _image(walk, path, layer), layer.downscale_factor
    if walk.flat or height % size or width % size:
        return _no_node(walk, path, layer, False)
    walk.node("space_to_depth", size=size)
    walk.image = (channels * size**2, height // size, width // size)


def _affine_image(walk: _Walk, path: str, layer: nn.Module) -> None:
    """A layer that is an affine map of images, as its matrix: its values on a basis."""
    shape = _image(walk, path, layer)
    count = math.prod(shape)
    layer = copy.deepcopy(layer).cpu().double()
    zero = layer(torch.zeros(1, *shape, dtype=torch.float64))
    if zero.numel() * count > LARGEST:
        raise Error(f"{path}, a {_kind(layer)}: has a matrix of {zero.numel()} by {count} numbers, which is too large")
    bias = zero.flatten() if getattr(layer, "bias", None) is not None else None
    if bias is not None:
        # Without it, products with ones and zeros alone are left: nothing is rounded.
        layer.bias = None
    columns = []
    for start in range(0, count, 256):
        size = min(256, count - start)
        basis = torch.zeros(size, count, dtype=torch.float64)
        basis[torch.arange(size), torch.arange(start, start + size)] = 1.0
        columns.append(layer(basis.reshape(size, *shape)).flatten(1).T)
    walk.flatten()
    walk.matrix(path, torch.cat(columns, 1).contiguous(), bias)
    walk.computed = True
    walk.image = tuple(zero.shape[1:])


def _batch_norm(walk: _Walk, path: str, layer: Any) -> None:
    if layer.running_mean is None:
        raise Error(f"{path}, a {_kind(layer)}: without running statistics it is a function of the whole batch")
    if walk.input["kind"] == "tokens":
        raise Error(f"{path}, a {_kind(layer)}: of tokens is not known")
    before = walk.nodes[-1] if walk.nodes else {}
    if before.get("op") not in ("linear", "conv2d"):
        if walk.image is None or walk.flat:
            raise Error(f"{path}, a {_kind(layer)}: is known right behind a linear map, or of images")
        # Alone, it is a convolution of each channel with one number.
        count = walk.image[0]
        before = {"name": walk.name(path)}
        walk.node("conv2d", **before, inputs=count, outputs=count, kernel=1, groups=count, bias=False)
        before = walk.nodes[-1]
        walk.weights[f"{before['name']}.weight"] = torch.ones(count, 1, dtype=torch.float64)
    scale = (layer.running_var.double() + layer.eps).rsqrt()
    if layer.affine:
        scale = scale * layer.weight.double()
    shift = -layer.running_mean.double() * scale
    if layer.affine:
        shift = shift + layer.bias.double()
    weight = walk.weights[f"{before['name']}.weight"].double()
    if walk.image is not None and walk.flat:
        each = math.prod(walk.image[1:])
        scale, shift = scale.repeat_interleave(each), shift.repeat_interleave(each)
    if scale.shape[0] != weight.shape[0]:
        raise Error(f"{path}, a {_kind(layer)}: has {scale.shape[0]} features, and the map before it {weight.shape[0]}")
    bias = walk.weights.get(f"{before['name']}.bias")
    walk.weights[f"{before['name']}.weight"] = scale.cpu()[:, None] * weight.cpu()
    walk.weights[f"{before['name']}.bias"] = shift.cpu() + (0.0 if bias is None else scale.cpu() * bias.double().cpu())
    before["bias"] = walk.computed = True


def _layer_norm(walk: _Walk, path: str, layer: nn.LayerNorm) -> None:
    if len(layer.normalized_shape) != 1 or walk.image is not None:
        raise Error(f"{path}, a LayerNorm: over several axes is not known")
    name, gain = walk.name(path), layer.elementwise_affine
    bias = gain and layer.bias is not None
    walk.node("layer_norm", name=name, dim=layer.normalized_shape[0], eps=layer.eps, bias=bias, gain=gain)
    if gain:
        walk.weights[f"{name}.weight"] = layer.weight
    if bias:
        walk.weights[f"{name}.bias"] = layer.bias


def _rms_norm(walk: _Walk, path: str, layer: Any) -> None:
    if len(layer.normalized_shape) != 1 or walk.image is not None:
        raise Error(f"{path}, an RMSNorm: over several axes is not known")
    if layer.eps is None:
        raise Error(f"{path}, an RMSNorm: without eps it depends on the type of its input; give it one")
    name, gain = walk.name(path), layer.elementwise_affine
    walk.node("rms_norm", name=name, dim=layer.normalized_shape[0], eps=layer.eps, gain=gain)
    if gain:
        walk.weights[f"{name}.weight"] = layer.weight


def _embedding(walk: _Walk, path: str, layer: nn.Embedding) -> None:
    if layer.max_norm is not None:
        raise Error(f"{path}, an Embedding: with max_norm is not known")
    if walk.nodes:
        raise Error(f"{path}, an Embedding: is known as the first layer alone")
    name = walk.name(path)
    walk.node("embedding", name=name, vocabulary=layer.num_embeddings, dim=layer.embedding_dim)
    walk.weights[f"{name}.weight"] = layer.weight


def _nothing(walk: _Walk, path: str, layer: nn.Module) -> None:
    """In evaluation mode it gives what it reads."""


def _function(function: Any) -> Any:
    def add(walk: _Walk, path: str, layer: nn.Module) -> None:
        found = function(layer) if callable(function) else function
        walk.node("activation", function=found, scale=1.0)

    return add


def _gelu(layer: nn.GELU) -> str:
    return {"none": "gelu_erf", "tanh": "gelu_tanh"}[layer.approximate]


def _hardtanh(walk: _Walk, path: str, layer: nn.Hardtanh) -> None:
    if layer.min_val != -layer.max_val:
        raise Error(f"{path}, a Hardtanh: from {layer.min_val} to {layer.max_val} is not known; both ends have to be as far from 0")
    walk.node("clip", limit=layer.max_val)


_KINDS: dict[type, Any] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.AvgPool2d: _pool("average"),
    nn.MaxPool2d: _pool("max"),
    nn.LPPool2d: _pool("l2"),
    nn.AdaptiveAvgPool2d: _adaptive_pool("average"),
    nn.AdaptiveMaxPool2d: _adaptive_pool("max"),
    nn.PixelUnshuffle: _pixel_unshuffle,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
    nn.Flatten: _flatten,
    nn.Identity: _nothing,
    nn.Dropout: _nothing,
    nn.Dropout2d: _nothing,
    nn.ReLU: _function("relu"),
    nn.GELU: _function(_gelu),
    nn.SiLU: _function("silu"),
    nn.Tanh: _function("tanh"),
    nn.Sigmoid: _function("sigmoid"),
    nn.Mish: _function("mish"),
    nn.Hardswish: _function("hard_swish"),
    nn.Hardsigmoid: _function("hard_sigmoid"),
    nn.LeakyReLU: _function(lambda layer: {"leaky_relu": {"slope": float(layer.negative_slope)}}),
    nn.ELU: _function(lambda layer: {"elu": {"alpha": float(layer.alpha)}}),
    nn.Hardtanh: _hardtanh,
}
if hasattr(nn, "RMSNorm"):
    _KINDS[nn.RMSNorm] = _rms_norm
