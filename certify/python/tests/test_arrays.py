"""What needs numpy alone."""

import json
import math
import subprocess
import sys
import time

import lipschitz
import numpy
import pytest


def linear(name, inputs, outputs, bias=False):
    return {"name": name, "op": "linear", "inputs": inputs, "outputs": outputs, "bias": bias}


def graph(*nodes, dim=2):
    return {"format": 1, "input": {"kind": "vector", "dim": dim}, "nodes": list(nodes)}


RELU = {"op": "activation", "function": "relu", "scale": 1.0}
TWO = graph(linear("a", 3, 5), RELU, linear("b", 5, 2), dim=3)


def two(seed=0, dtype=numpy.float32):
    draw = numpy.random.default_rng(seed)
    return {"a.weight": draw.normal(size=(5, 3)).astype(dtype), "b.weight": draw.normal(size=(2, 5)).astype(dtype)}


def test_the_constant_of_a_matrix_is_its_norm():
    draw = numpy.random.default_rng(3)
    for dtype in (numpy.float16, numpy.float32, numpy.float64):
        w = draw.normal(size=(4, 6)).astype(dtype)
        certificate = lipschitz.certify({"a.weight": w}, graph(linear("a", 6, 4), dim=6))
        truth = numpy.linalg.norm(w.astype(numpy.float64), 2)
        assert truth <= certificate.l2 <= truth * (1 + 1e-6)
        assert certificate.proven and certificate.bound == certificate.l2
        assert math.isclose(certificate.log10, math.log10(certificate.l2))
        assert math.isclose(certificate.rms, truth * math.sqrt(6 / 4), rel_tol=1e-6)
        assert truth <= lipschitz.spectral_norm_upper(w) <= truth * (1 + 1e-6)


def test_names_of_weights_may_be_paths_of_others():
    eye = numpy.eye(2)
    nodes = [linear("l1", 2, 2), linear("l2", 2, 2)]
    chain = {"graph": graph(*nodes), "weights": {"l1.weight": "l0.weight", "l2.weight": "l1.weight"}}
    weights = {"l0.weight": eye, "l1.weight": 10 * eye}
    assert 10 <= lipschitz.certify(weights, chain).l2 < 10.1
    x = numpy.array([[1.0, 2.0]])
    assert numpy.array_equal(lipschitz.run(weights, x, chain), 10 * x)
    first, second = numpy.diag([1.0, 2.0]), numpy.array([[0.0, 1.0], [3.0, 0.0]])
    swap = {"graph": graph(*nodes), "weights": {"l1.weight": "l2.weight", "l2.weight": "l1.weight"}}
    ours = lipschitz.run({"l1.weight": first, "l2.weight": second}, x, swap)
    assert numpy.array_equal(ours, x @ second.T @ first.T)
    twice = {"graph": graph(*nodes), "weights": {"l1.weight": "w", "l2.weight": "w"}}
    assert numpy.array_equal(lipschitz.run({"w": second}, x, twice), x @ second.T @ second.T)


def test_the_numbers_are_those_of_the_array_however_it_lies_in_memory():
    w = numpy.random.default_rng(4).normal(size=(3, 3))
    for other in (w.copy(order="F"), w.T.copy().T, numpy.concatenate([w, w], 1)[:, :3]):
        assert lipschitz.spectral_norm_upper(other) == lipschitz.spectral_norm_upper(w)


def test_what_is_no_float_or_lies_beside_its_place_is_refused():
    records = numpy.zeros(3, [("id", "u1"), ("w", "<f4", (2,))])
    records["w"] = [[1, 2], [3, 4], [5, 6]]
    with pytest.raises(lipschitz.Error, match="not aligned"):
        lipschitz.spectral_norm_upper(records["w"])
    assert lipschitz.spectral_norm_upper(records["w"].copy()) >= 9.5255
    from lipschitz._lipschitz import Constraint

    held = Constraint('{"method": "spectral_normalize", "sigma_max": 1.0}')
    with pytest.raises(lipschitz.Error, match="not aligned"):
        held.apply([("w", records["w"], False)], 0.1)
    assert not records["id"].any()
    eye = numpy.eye(2)
    for other in (eye * (1 + 100j), eye.astype(numpy.longdouble), eye.astype("m8[s]"), eye.astype(str)):
        with pytest.raises(lipschitz.Error, match="floats of 64 bits at most"):
            weights = {"a.weight": eye.astype(numpy.float32), "b.weight": other}
            lipschitz.certify(weights, graph(linear("a", 2, 2), linear("b", 2, 2)))


def test_next_to_zero_a_bound_is_not_zero():
    weights = {"a.weight": 1e-200 * numpy.eye(2), "b.weight": 1e-200 * numpy.eye(2)}
    certificate = lipschitz.certify(weights, graph(linear("a", 2, 2), linear("b", 2, 2)))
    assert 0.0 < certificate.l2 < 1e-300 and "<= 0 " not in str(certificate)


def test_arrays_of_any_library_that_speaks_dlpack():
    class Theirs:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    weights = two()
    theirs = {name: Theirs(weight) for name, weight in weights.items()}
    assert lipschitz.certify(theirs, TWO).l2 == lipschitz.certify(weights, TWO).l2


def test_a_certificate_is_proven_again_and_a_false_one_is_not():
    certificate = lipschitz.certify(two(), TWO)
    certificate.verify()
    certificate.verify(two(), graph=TWO)
    again = lipschitz.Certificate.from_json(certificate.to_json())
    again.verify(two(), graph=TWO)
    with pytest.raises(lipschitz.Violated, match="weights_sha256"):
        again.verify(two(1), graph=TWO)
    with pytest.raises(lipschitz.Error, match="knows no weights"):
        again.verify()
    for path in (["l2", "mantissa"], ["rms", "exponent"]):
        document = json.loads(certificate.to_json())
        document[path[0]][path[1]] -= 1 if path[1] == "exponent" else 1e-3
        with pytest.raises(lipschitz.Violated):
            lipschitz.Certificate.from_json(json.dumps(document)).verify(two(), graph=TWO)
    with pytest.raises(lipschitz.Error, match="no certificate"):
        lipschitz.Certificate.from_json("[1]")


def test_it_shows_itself():
    certificate = lipschitz.certify(two(), TWO)
    said = repr(certificate)
    assert said.startswith("<Certificate: L <= ") and said.endswith("proven>")
    shown = certificate._repr_html_()
    assert "certified" in shown and "<td style='text-align:left'>a</td>" in shown
    # What is shown is not below what is proven.
    assert float(said.split("<= ")[1].split(" ")[0]) >= certificate.rms
    names, lower, upper = certificate.norms
    assert len(names) == len(lower) == len(upper) and (lower <= upper).all()


def test_names_cannot_write_html():
    name = "<script>alert(1)<"
    certificate = lipschitz.certify({f"{name}.weight": numpy.eye(2)}, graph(linear(name, 2, 2)))
    assert "<script" not in certificate._repr_html_()


def test_beyond_floats_it_is_infinite_with_a_logarithm():
    nodes = [linear(f"l{i}", 2, 2) for i in range(4)]
    weights = {f"l{i}.weight": 1e200 * numpy.eye(2) for i in range(4)}
    certificate = lipschitz.certify(weights, graph(*nodes))
    assert certificate.l2 == math.inf and 799 < certificate.log10 < 801
    assert "10^800" in repr(certificate)


@pytest.mark.parametrize(
    "model, arguments, said",
    [
        ("no/such", {}, "no/such"),
        ({"a.weight": numpy.eye(2)}, {}, "needs a graph"),
        ({"a.weight": numpy.eye(3)}, {"graph": graph(linear("a", 2, 2))}, "a.weight"),
        ({}, {"graph": graph(linear("a", 2, 2))}, "a.weight"),
        ({"a.weight": numpy.eye(2), "b": numpy.eye(2)}, {"graph": graph(linear("a", 2, 2))}, "not in the graph"),
        ({"a.weight": numpy.array([["x", "y"]])}, {"graph": graph(linear("a", 2, 2))}, "no array of"),
        ({"a.weight": numpy.eye(2) * numpy.nan}, {"graph": graph(linear("a", 2, 2))}, "NaN"),
        ({"a.weight": numpy.eye(2)}, {"graph": "{"}, "cannot be read"),
        ({"a.weight": numpy.eye(2)}, {"graph": {**graph(), "odd": 1}}, "odd"),
        ({"a.weight": numpy.eye(2)}, {"graph": graph(linear("a", 2, 2)), "radius": -1.0}, "radius"),
        (3, {}, "no model"),
        ("some/path", {"graph": {}}, "own graph"),
    ],
)
def test_bad_input_is_one_line(model, arguments, said):
    with pytest.raises(lipschitz.Error, match=said) as raised:
        lipschitz.certify(model, **arguments)
    assert "\n" not in str(raised.value) and isinstance(raised.value, ValueError)


def test_norms_of_what_is_no_matrix_are_refused():
    for wrong in (numpy.ones(3), numpy.ones((2, 2, 2)), numpy.ones((2, 2), dtype=int), [[1.0, "x"]]):
        with pytest.raises(lipschitz.Error):
            lipschitz.spectral_norm_upper(wrong)
    with pytest.raises(lipschitz.Error, match="inf"):
        lipschitz.spectral_norm_upper(numpy.array([[numpy.inf, 0.0]]))


def test_found_is_below_certified():
    found = lipschitz.probe(two(), numpy.random.default_rng(1).normal(size=(4, 3)), TWO, seconds=0.3)
    assert 0 < found.found <= found.certified and found.a.shape == found.b.shape == (1, 3)
    weights = {name: w.astype(numpy.float64) for name, w in two().items()}
    f = lambda x: numpy.maximum(x @ weights["a.weight"].T, 0) @ weights["b.weight"].T
    ratio = numpy.linalg.norm(f(found.a) - f(found.b)) / numpy.linalg.norm(found.a - found.b)
    assert ratio >= found.found * (1 - 1e-9)


def test_outputs_are_those_of_the_graph():
    x = numpy.random.default_rng(2).normal(size=(4, 3))
    weights = {name: w.astype(numpy.float64) for name, w in two().items()}
    ours = numpy.maximum(x @ weights["a.weight"].T, 0) @ weights["b.weight"].T
    assert numpy.allclose(lipschitz.run(two(), x, TWO), ours, atol=1e-12)


def test_certified_is_at_most_attacked():
    draw = numpy.random.default_rng(5)
    images, classes = draw.random((20, 1, 1, 3)), draw.integers(0, 2, 20)
    of_images = {**TWO, "input": {"kind": "pixels", "channels": 1, "height": 1, "width": 3}}
    of_images["nodes"] = [{"op": "flatten"}, *TWO["nodes"]]
    shares = lipschitz.robust(two(), images, classes, of_images, eps=[0.0, 0.05, 0.5], steps=5)
    assert (shares.certified <= shares.attacked).all() and (shares.attacked <= shares.clean).all()
    with pytest.raises(lipschitz.Error, match="eps"):
        lipschitz.robust(two(), images, classes, of_images, eps=[])


def test_radii_around_inputs_hold():
    draw = numpy.random.default_rng(6)
    x, weights = draw.normal(size=(6, 3)), two()
    f = lambda x: numpy.maximum(x @ weights["a.weight"].T, 0) @ weights["b.weight"].T
    for norm, order in [("l2", 2), ("linf", numpy.inf)]:
        found = lipschitz.local(weights, x, TWO, norm=norm, steps=5)
        assert (found.decision == f(x).argmax(1)).all() and (found.radius >= found.by_constant).all()
        assert (found.radius > 0).all() and not (found.attacked < found.radius).any()
        for row, decision, radius in zip(x, found.decision, found.radius):
            moved = draw.normal(size=(500, 3))
            moved *= radius / numpy.linalg.norm(moved, ord=order, axis=1, keepdims=True)
            assert (f(row + moved).argmax(1) == decision).all()
    with pytest.raises(lipschitz.Error, match="norm"):
        lipschitz.local(weights, x, TWO, norm="l3")


def test_the_import_is_quick_and_brings_neither_numpy_nor_torch():
    code = (
        "import sys, time; start = time.process_time(); import lipschitz;"
        "print(time.process_time() - start, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    said = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() for _ in range(5)]
    assert all(words[1:] == ["False", "False"] for words in said), said
    assert min(float(words[0]) for words in said) <= 0.1, said


def test_other_threads_run_meanwhile():
    import threading

    big = numpy.random.default_rng(6).normal(size=(600, 600))
    ticks, done = [0], threading.Event()

    def tick():
        while not done.is_set():
            ticks[0] += 1
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    lipschitz.spectral_norm_upper(big)
    counted = ticks[0]
    done.set()
    thread.join()
    assert counted > 1


def test_the_examples_of_docstrings_are_right():
    import doctest

    import lipschitz._models

    names = {"lipschitz": lipschitz, "numpy": numpy}
    options = doctest.ELLIPSIS
    failed, tried = doctest.testmod(lipschitz._models, extraglobs=names, optionflags=options)
    assert failed == 0 and tried > 0


def test_ctrl_c_ends_what_takes_long():
    program = f"""
import lipschitz, numpy
from test_arrays import TWO, two
try:
    print("begun", flush=True)
    lipschitz.probe(two(), numpy.zeros((4, 3), numpy.float32), TWO, seconds=600)
except KeyboardInterrupt:
    print("interrupted")
"""
    import os
    import signal

    child = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=os.path.dirname(os.path.abspath(__file__))
    )
    assert child.stdout.readline() == "begun\n"
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    begun = time.monotonic()
    assert child.communicate(timeout=60)[0] == "interrupted\n"
    assert time.monotonic() - begun < 10


def test_constants_of_both_searches_agree():
    inputs = numpy.zeros((4, 3), numpy.float32)
    certified = lipschitz.probe(two(), inputs, TWO, seconds=0.1).certified
    assert certified == lipschitz.certify(two(), TWO).l2


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: lipschitz.certify(None), "is no model"),
        (lambda: lipschitz.certify({"a.weight": [[1, 2], [3]]}, TWO), "a.weight: is no array"),
        (lambda: lipschitz.certify({1: numpy.ones((3, 2))}, TWO), "names of weights are texts"),
        (lambda: lipschitz.certify(two(), {"a": object()}), "graph: cannot be written as JSON"),
        (lambda: lipschitz.certify(two(), TWO, radius="a"), "radius: wants a number"),
        (lambda: lipschitz.probe(two(), numpy.ones((2, 3)), TWO, seconds="x"), "seconds: wants a number"),
        (lambda: lipschitz.robust(two(), numpy.ones((2, 3)), [-1, 0], TWO), "classes: are numbered from 0"),
        (lambda: lipschitz.robust(two(), numpy.ones((2, 3)), [0, 1], TWO, steps=1 << 70), "steps: wants a whole number"),
        (lambda: lipschitz.local(two(), numpy.ones((2, 3)), TWO, norm=3), "norm: 3 is none of"),
        (lambda: lipschitz.load(3.5), "is no path"),
        (lambda: lipschitz.Certificate.from_json('{"rms": 1, "l2": 2}'), "is no certificate"),
        (lambda: lipschitz.certify(two(), TWO).save(object()), "is no path"),
    ],
)
def test_wrong_arguments_raise_one_error(call, said):
    with pytest.raises(lipschitz.Error, match=said) as raised:
        call()
    assert "\n" not in str(raised.value)
