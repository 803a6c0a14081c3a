"""What may be certified, and how it becomes a network."""

from __future__ import annotations

import operator
import os
import sys
from typing import Any, Mapping, Optional, Sequence

from ._certificate import Certificate, number
from ._lipschitz import Error, Network
from ._results import Found, Radii, Robustness


def certify(
    model: Any,
    graph: Any = None,
    *,
    input_shape: Optional[Sequence[int]] = None,
    context: Optional[int] = None,
    effort: Optional[int] = None,
    radius: Optional[float] = None,
) -> Certificate:
    """Proves a Lipschitz constant of a model.

    `model` is one of
      - a path: a run directory, a checkpoint, or a third-party model such as a Hugging Face directory;
      - a dict of arrays, with its `graph` as a dict or as JSON;
      - a `torch.nn.Sequential` of linear, convolution, activation, norm and pooling layers, in
        evaluation mode. If it reads images, `input_shape` is (channels, height, width); if it reads
        tokens, `context` is their largest number;
      - a Hugging Face model, which is saved and read as its config says.

    `effort` is the number of steps of the search for a second proof (by default 30, and 0 for large
    networks). `radius` is the l2 radius of the domain, where it is not to be the natural one.

    >>> import numpy
    >>> graph = {"format": 1, "input": {"kind": "vector", "dim": 2}, "nodes": [
    ...     {"name": "first", "op": "linear", "inputs": 2, "outputs": 2, "bias": False}]}
    >>> certificate = lipschitz.certify({"first.weight": numpy.diag([3.0, 4.0])}, graph)
    >>> round(certificate.l2, 6)
    4.0
    """
    if effort is not None:
        effort = _whole("effort", effort)
    if radius is not None:
        radius = _number("radius", radius)
    network, keep = network_of(model, graph, input_shape=input_shape, context=context)
    return Certificate(network.certify(effort, radius), network, keep)


def load(path: Any) -> Certificate:
    """The certificate in a file.

    >>> lipschitz.load("first.json").verify("runs/first")          # doctest: +SKIP
    """
    try:
        with open(os.fspath(path), encoding="utf-8") as file:
            return Certificate(file.read())
    except TypeError:
        raise Error(f"a {type(path).__name__} is no path to a certificate") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"{path}: {getattr(error, 'strerror', None) or 'is no text'}") from None


def run(model: Any, inputs: Any, graph: Any = None, **options: Any) -> Any:
    """The outputs of the network that a certificate of `model` is about, in double precision.

    Compare them with what your own program computes: they show that both are one function.

    >>> lipschitz.run("runs/first", numpy.array([[1, 2, 3]])).shape        # doctest: +SKIP
    (1, 3, 40)
    """
    import numpy

    network, keep = network_of(model, graph, **options)
    values, shape = network.run(_batch("inputs", inputs))
    del keep
    return numpy.array(values).reshape(shape)


def probe(
    model: Any,
    inputs: Any,
    graph: Any = None,
    *,
    seconds: float = 10.0,
    radius: Optional[float] = None,
    **options: Any,
) -> Found:
    """Searches for the steepest pair of inputs: a lower bound on the constant, beside the certified one.

    `inputs` are where the search starts: token ids, images or vectors, a batch of them.

    >>> lipschitz.probe(model, numpy.random.randn(8, 784), seconds=5).found    # doctest: +SKIP
    3.07...
    """
    import json

    import numpy

    network, keep = network_of(model, graph, **options)
    seconds, radius = _number("seconds", seconds), None if radius is None else _number("radius", radius)
    found = json.loads(network.probe(_batch("inputs", inputs), seconds, radius))
    del keep
    a, b = (numpy.array(x["values"]).reshape(x["shape"]) for x in found["pair"])
    return Found(found["found_l2"], number(found["certified_l2"]), a, b)


def robust(
    model: Any,
    images: Any,
    classes: Any,
    graph: Any = None,
    *,
    eps: Sequence[float] = (0.0, 36 / 255),
    steps: int = 20,
    restarts: int = 2,
    **options: Any,
) -> Robustness:
    """How many predictions are right, how many an attack changes, and how many are proven to stay.

    Images have pixels in [0, 1]; a radius is an l2 distance of them.

    >>> lipschitz.robust(model, images, classes, eps=[0.1]).certified      # doctest: +SKIP
    array([0.42])
    """
    import json

    import numpy

    network, keep = network_of(model, graph, **options)
    images, classes = _batch("images", images), _array(classes, "classes")
    if classes.shape != images.shape[:1] or classes.dtype.kind not in "iu":
        raise Error(
            f"classes: wants {len(images)} whole numbers, one for each image, and has the shape {classes.shape} of {classes.dtype}"
        )
    for extreme in (classes.min(), classes.max()):
        if not 0 <= extreme < 1 << 31:
            raise Error(f"classes: are numbered from 0, and one is {extreme}")
    try:
        radii = [float(radius) for radius in eps]
    except (TypeError, ValueError):
        raise Error("eps: wants a list of numbers") from None
    rows = json.loads(network.robust(images, classes, radii, _whole("steps", steps), _whole("restarts", restarts)))["rows"]
    del keep
    column = lambda key: numpy.array([row[key] for row in rows])
    return Robustness(column("eps"), column("clean"), column("attacked"), column("certified"))


def local(
    model: Any,
    inputs: Any,
    graph: Any = None,
    *,
    norm: Optional[str] = None,
    steps: int = 0,
    **options: Any,
) -> Radii:
    """How far each input may move before the decision can change, proven around that input.

    `inputs` are token ids, images or vectors, a batch of them; the decision is the largest output, of the
    last token where each token has some. `norm` is "l2" (the default for images and vectors: the norm of the
    change), "linf" (its largest element), or "token" (the default for token ids: every embedding vector may
    move by the radius in l2). With `steps` an attack looks for a change that is larger than the radius.

    >>> lipschitz.local(model, images).radius                      # doctest: +SKIP
    array([0.31, 0.07])
    """
    import json

    import numpy

    network, keep = network_of(model, graph, **options)
    inputs, steps = _batch("inputs", inputs), _whole("steps", steps)
    tokens = json.loads(network.graph())["input"]["kind"] == "tokens"
    norm = norm or ("token" if tokens else "l2")
    if norm not in ("token", "l2", "linf"):
        raise Error(f"norm: {norm!r} is none of 'token', 'l2' and 'linf'")
    rows = json.loads(network.local(inputs, norm, [], steps))["inputs"]
    del keep
    column = lambda key: numpy.array([numpy.nan if row[key] is None else row[key] for row in rows])
    return Radii(
        numpy.array([row["class"] for row in rows]),
        column("margin"),
        column("radius"),
        column("global"),
        column("broken"),
    )


def network_of(model: Any, graph: Any = None, **options: Any) -> tuple[Network, Any]:
    """The network that a model is, and what has to live as long as it."""
    try:
        return _network_of(model, graph, **options)
    except Error:
        raise
    # What torch, numpy or a model says of itself, on one line.
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise Error(f"a {type(model).__name__} cannot be read: {said}") from error


def _network_of(
    model: Any,
    graph: Any,
    *,
    input_shape: Optional[Sequence[int]] = None,
    context: Optional[int] = None,
) -> tuple[Network, Any]:
    if isinstance(model, (str, os.PathLike)):
        if graph is not None:
            raise Error("a path has its own graph; give a dict of arrays with one")
        return Network.open(model), None
    if isinstance(model, Mapping):
        if graph is None:
            raise Error("a dict of arrays needs a graph: certify(arrays, graph)")
        import json

        names = {}
        if isinstance(graph, Mapping) and "graph" in graph:
            # The file that `certify import --graph` reads: the path in the graph, the name in the file.
            names, graph = graph.get("weights", {}), graph["graph"]
        try:
            text = graph if isinstance(graph, str) else json.dumps(graph)
        except (TypeError, ValueError) as error:
            raise Error(f"graph: cannot be written as JSON: {error}") from None
        for name in model:
            if not isinstance(name, str):
                raise Error(f"a weight is called {name!r}; names of weights are texts")
        arrays = {name: _array(value, name) for name, value in model.items()}
        for path, name in names.items():
            if name not in arrays:
                raise Error(f"weights: `{path}` is to be `{name}`, which is not there")
        # One may have the name of another's path.
        renamed = {path: arrays[name] for path, name in names.items()}
        arrays = {name: array for name, array in arrays.items() if name not in names.values()} | renamed
        return Network.of(text, _floats(arrays), "graph and weights as given to lipschitz.certify"), None
    # Whoever has a torch module has imported torch.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        if graph is not None:
            # How often a batch norm was trained is no weight.
            weights = {name: value for name, value in model.state_dict().items() if name.split(".")[-1] != "num_batches_tracked"}
            return network_of(weights, graph)
        from ._modules import as_configured, same_outputs, translate, unchanged

        unchanged(model)
        if hasattr(model, "save_pretrained") and hasattr(model, "config"):
            import tempfile

            as_configured(model)
            directory = tempfile.TemporaryDirectory()
            model.save_pretrained(directory.name)
            network = Network.open(directory.name)
            same_outputs(model, network)
            return network, directory
        if context is not None:
            context = _whole("context", context)
        text, weights = translate(model, _shape(input_shape), context)
        network = Network.of(text, weights, "translated from a torch module")
        same_outputs(model, network)
        return network, None
    raise Error(
        f"a {type(model).__name__} is no model: give a path, a dict of arrays with a graph, or a torch.nn.Module"
    )


def _whole(name: str, value: Any) -> int:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < 1 << 53:
        raise Error(f"{name}: wants a whole number of 0 or above, and is {value!r}")
    return number


def _shape(value: Any) -> Optional[tuple[int, ...]]:
    """Axes of an input; a number is one axis."""
    if value is None:
        return None
    axes = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    axes = tuple(_whole("input_shape", axis) for axis in axes)
    if 0 in axes:
        raise Error("input_shape: an axis of 0 has no elements")
    return axes


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise Error(f"{name}: wants a number, and is {value!r}") from None


def _batch(name: str, value: Any) -> Any:
    array = _array(value, name)
    if array.ndim == 0 or array.size == 0:
        raise Error(f"{name}: wants a batch, and has the shape {array.shape}")
    return array


def _floats(arrays: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Weights of one type, as the widest of them holds them all; kernels as matrices."""
    import numpy

    for name, array in arrays.items():
        if array.dtype.kind != "f" or array.dtype.itemsize > 8:
            raise Error(f"{name}: is no array of floats of 64 bits at most, but of {array.dtype}; convert it")
    kinds = {array.dtype for array in arrays.values()}
    one = (lambda a: a) if len(kinds) < 2 else (lambda a: a.astype(numpy.float64))
    return [(name, one(a.reshape(len(a), -1) if a.ndim == 4 else a)) for name, a in arrays.items()]


def _array(value: Any, name: str) -> Any:
    """A numpy array, or another library's tensor as one; the numbers are shared where they can be."""
    import numpy

    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        try:
            value = value.detach().cpu()
            # Every number of bf16 is one of f32.
            return value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
        # Of the kinds that numpy has not, and without numbers, on the device "meta".
        except (RuntimeError, TypeError) as error:
            raise Error(f"{name}: is no array: {error}") from None
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        value = numpy.from_dlpack(value)
    try:
        array = numpy.asarray(value)
    except (TypeError, ValueError) as error:
        raise Error(f"{name}: is no array: {error}") from None
    if array.dtype.kind in "iu" and array.dtype not in (numpy.int64, numpy.uint32, numpy.uint8):
        return array.astype(numpy.int64)
    return array
