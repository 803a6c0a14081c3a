"""What needs torch; skipped without it."""

import copy
import functools
import sys
import time
import types

import lipschitz
import numpy
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

import lipschitz.torch  # noqa: E402


def agrees(model, x, **options):
    """That the certificate is about the module's own function, and that it holds for pairs."""
    model = model.double().eval()
    with torch.no_grad():
        theirs = model(x if x.dtype == torch.int64 else x.double()).numpy()
    ours = lipschitz.run(model, x, **options)
    assert ours.shape == theirs.shape
    assert numpy.abs(ours - theirs).max() <= 1e-11 * max(1.0, numpy.abs(theirs).max())
    certificate = lipschitz.certify(model, effort=0, **options)
    certificate.verify()
    return certificate


ACTIVATIONS = [
    nn.ReLU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.Mish(), nn.Hardswish(),
    nn.Hardsigmoid(), nn.LeakyReLU(0.2), nn.ELU(1.5), nn.Hardtanh(-0.7, 0.7), nn.Identity(), nn.Dropout(0.5),
]


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=str)
def test_activations(layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), layer, nn.Linear(7, 3, bias=False))
    certificate = agrees(model, 3 * torch.randn(16, 5))
    x = torch.randn(64, 5).double()
    y = x + 0.1 * torch.randn(64, 5).double()
    with torch.no_grad():
        ratio = ((model(x) - model(y)).norm(dim=1) / (x - y).norm(dim=1)).max()
    assert ratio <= certificate.l2


def test_norms_and_nesting():
    torch.manual_seed(1)
    norms = [nn.LayerNorm(6, eps=0.1), nn.LayerNorm(6, elementwise_affine=False), nn.LayerNorm(6, bias=False), nn.RMSNorm(6, eps=0.1)]
    for norm in norms:
        for p in norm.parameters():
            nn.init.normal_(p)
        agrees(nn.Sequential(nn.Linear(4, 6), nn.Sequential(norm, nn.Sequential(nn.Linear(6, 2)))), torch.randn(8, 4))


def test_a_layer_that_comes_twice_counts_twice():
    torch.manual_seed(2)
    layer = nn.Linear(4, 4)
    certificate = agrees(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(8, 4))
    once = agrees(nn.Sequential(layer), torch.randn(8, 4))
    assert certificate.l2 > 0.9 * once.l2**2 or certificate.l2 < once.l2**2


def test_convolutions_pools_and_batch_norms():
    torch.manual_seed(3)
    for conv in [
        nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 3, stride=2, bias=False), nn.Conv2d(2, 4, 2, dilation=2, groups=2),
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
    ]:
        norm = nn.BatchNorm2d(4)
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2.0)
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
        body = [conv, norm, nn.ReLU(), nn.AvgPool2d(2, padding=1), nn.Conv2d(4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        agrees(nn.Sequential(*body, nn.Linear(3, 2)), torch.rand(4, 2, 8, 8), input_shape=(2, 8, 8))
    images = torch.rand(4, 2, 9, 12)
    for pools in [
        [nn.MaxPool2d(3, stride=2, padding=1)], [nn.LPPool2d(2, 3)], [nn.PixelUnshuffle(3)], [nn.AdaptiveMaxPool2d((3, 4))],
        [nn.AdaptiveMaxPool2d(1)], [nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 3, 1)], [nn.AdaptiveAvgPool2d((2, 5))],
        [nn.AvgPool2d(2, padding=1, count_include_pad=False)], [nn.AvgPool2d(2, ceil_mode=True)], [nn.AvgPool2d((3, 2))],
        [nn.AvgPool2d(3, divisor_override=2)], [nn.MaxPool2d(3, ceil_mode=True)], [nn.BatchNorm2d(2), nn.Conv2d(2, 2, (3, 1))],
        [nn.Conv2d(2, 4, 3, padding="same"), nn.AvgPool2d(3, 2)], [nn.Conv2d(2, 4, 2, padding="same"), nn.BatchNorm2d(4)],
        [nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(1, 0)), nn.ReLU()], [nn.Conv2d(2, 2, 3, padding="valid", dilation=2)],
    ]:
        for norm in pools:
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2.0)
        agrees(nn.Sequential(nn.Conv2d(2, 2, 1), *pools, nn.Flatten()), images, input_shape=(2, 9, 12))
    norm = nn.BatchNorm1d(5, affine=False)
    norm.running_mean.normal_()
    agrees(nn.Sequential(nn.Linear(3, 5, bias=False), norm, nn.Linear(5, 2)), torch.randn(4, 3))


def test_tokens():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Embedding(11, 6), nn.LayerNorm(6, eps=0.1), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 11))
    agrees(model, torch.randint(11, (3, 5)), context=5)


def test_half_precision_is_exact():
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    for dtype in (torch.bfloat16, torch.float16):
        half = model.to(dtype)
        with torch.no_grad():
            truth = half.double()(torch.randn(4, 5).double())
        assert truth.shape == (4, 3)
        lipschitz.certify(model.to(dtype), effort=0).verify()


class Own(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    return layer


def patched(name, layer=None):
    layer = layer or nn.Linear(2, 2)
    setattr(layer, name, lambda *x: 3 * x[0])
    return layer


def padded():
    layer = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")
    layer.padding = (0, 0)
    return layer


class Config:
    function = "tanh"


class Configured(nn.Module):
    """What looks like a model of Hugging Face."""

    def __init__(self, config):
        super().__init__()
        self.config, self.scale, self.linear = config, 1.0, nn.Linear(2, 2)
        self.act = nn.Tanh() if config.function == "tanh" else nn.ReLU()
        self.heads, self.sizes, self.function, self.nothing = 4, (2, 3), torch.tanh, None
        self.register_buffer("turns", torch.arange(3.0), persistent=False)

    def save_pretrained(self, directory):
        raise AssertionError("it is not read")


# As one of the library's own.
library = types.ModuleType("transformers.models.configured")
library.Configured = Configured
sys.modules[library.__name__] = library
Configured.__module__ = library.__name__


class Another(Configured):
    pass


def configured(change, kind=Configured):
    model = kind(Config()).eval()
    change(model)
    return model


@pytest.mark.parametrize(
    "model, options, said",
    [
        (nn.Sequential(nn.Linear(2, 2)).train(), {}, "training mode"),
        (nn.Sequential(Own(2, 2)).eval(), {}, "Own, is not known"),
        (nn.Sequential(hooked()).eval(), {}, "hooks"),
        (nn.Sequential(patched("forward")).eval(), {}, "forward of its own"),
        (nn.Sequential(patched("_call_impl")).eval(), {}, "forward of its own"),
        (nn.Sequential(patched("_conv_forward", nn.Conv2d(1, 1, 1))).eval(), {"input_shape": (1, 2, 2)}, "forward of its own"),
        (configured(lambda m: m.linear.register_forward_hook(lambda *_: None)), {}, "linear, a Linear: has hooks"),
        (configured(lambda m: setattr(m, "forward", lambda x: x)), {}, "forward of its own"),
        (configured(lambda m: m.linear.train()), {}, "linear is in training mode"),
        (configured(lambda m: setattr(m, "act", nn.ReLU().eval())), {}, "act, a ReLU, is not what"),
        (configured(lambda m: setattr(m, "scale", 2.0)), {}, "scale is not what"),
        (configured(lambda m: setattr(m, "more", nn.Tanh().eval())), {}, "more, a Tanh, is not what"),
        (configured(lambda m: setattr(m, "function", functools.partial(torch.sum, dim=0))), {}, "function is not what"),
        (configured(lambda m: delattr(m, "act")), {}, "has no act"),
        (configured(lambda m: setattr(m, "heads", 2)), {}, "heads is not what"),
        (configured(lambda m: setattr(m, "sizes", (3, 2))), {}, "sizes is not what"),
        (configured(lambda m: setattr(m, "function", torch.relu)), {}, "function is not what"),
        (configured(lambda m: setattr(m, "nothing", 1.0)), {}, "nothing is not what"),
        (configured(lambda m: m.turns.mul_(0.1)), {}, "turns, which is not saved with the weights, is not what"),
        (configured(lambda m: None, Another), {}, "Another, is of test_torch and not of the library"),
        (nn.Sequential(padded()).eval(), {"input_shape": (1, 4, 4)}, "another padding than it was made with"),
        (nn.Sequential(nn.Conv2d(1, 1, 5)).eval(), {"input_shape": (1, 3, 3)}, "cannot be read|kernel"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(0)).eval(), {"input_shape": (1, 3, 3)}, ""),
        (nn.Sequential(nn.Linear(2, 2, device="meta")).eval(), {}, "cannot be read|no array|meta"),
        (nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).eval(), {"input_shape": 5.5}, "input_shape: wants a whole number"),
        (nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).eval(), {"input_shape": ("a", 3, 3)}, "input_shape: wants a whole number"),
        (nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).eval(), {"input_shape": (1, -3, 3)}, "input_shape: wants a whole number"),
        (nn.Sequential(nn.Embedding(3, 2)).eval(), {"context": "a"}, "context: wants a whole number"),
        (nn.Sequential(nn.Conv2d(1, 1, 1)).eval(), {}, "input_shape"),
        (nn.Sequential(nn.Embedding(3, 2)).eval(), {}, "context"),
        (nn.Sequential(nn.MaxPool2d(2)).eval(), {"input_shape": (4,)}, "wants an image"),
        (nn.Sequential(nn.MaxPool2d((1, 2))).eval(), {"input_shape": (1, 4, 4)}, "no node computes"),
        (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)).eval(), {"input_shape": (1, 5, 5)}, "no node computes"),
        (nn.Sequential(nn.LPPool2d(3, 2)).eval(), {"input_shape": (1, 4, 4)}, "no node computes"),
        (nn.Sequential(nn.Conv2d(1, 1, 2, dilation=2), nn.MaxPool2d(2)).eval(), {"input_shape": (1, 4, 4)}, "one vector"),
        (nn.Sequential(nn.Conv2d(3, 1, 2)).eval(), {"input_shape": (1, 4, 4)}, "reads 3 channels"),
        (nn.Sequential(nn.Linear(2, 2), nn.Softplus()).eval(), {}, "Softplus, is not known"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(2)).eval(), {"input_shape": (2,)}, "right behind"),
        (nn.Sequential(nn.Embedding(3, 2), nn.Flatten()).eval(), {"context": 2}, "of tokens"),
        (nn.Sequential(nn.Linear(2, 2), nn.RMSNorm(2)).eval(), {}, "give it one"),
        (nn.Sequential().eval(), {}, "no layers"),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 2)).eval(), {}, "1"),
        (nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))).eval(), {}, "Linear, is not known"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_known_is_refused_by_its_name(model, options, said):
    with pytest.raises(lipschitz.Error, match=said):
        lipschitz.certify(model, **options)


def test_kernels_names_and_types_of_a_dict():
    torch.manual_seed(9)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()
    conv = {"name": "c", "op": "conv2d", "inputs": 1, "outputs": 2, "kernel": 3, "bias": True}
    head = {"name": "h", "op": "linear", "inputs": 8, "outputs": 3, "bias": True}
    pixels = {"kind": "pixels", "channels": 1, "height": 4, "width": 4}
    graph = {"format": 1, "input": pixels, "nodes": [conv, {"op": "flatten"}, head]}
    names = {f"{to}.{what}": f"{of}.{what}" for to, of in (("c", "0"), ("h", "2")) for what in ("weight", "bias")}
    weights = {**model.state_dict(), "2.bias": model[2].bias.detach().double()}
    x = torch.rand(5, 1, 4, 4)
    ours = lipschitz.run(weights, x, {"graph": graph, "weights": names})
    assert numpy.abs(ours - model(x).detach().numpy()).max() < 1e-6
    lipschitz.certify(weights, {"graph": graph, "weights": names}).verify(weights, {"graph": graph, "weights": names})
    for wrong, said in [({**names, "c.bias": "odd"}, "odd"), ({}, "c.weight")]:
        with pytest.raises(lipschitz.Error, match=said):
            lipschitz.certify(weights, {"graph": graph, "weights": wrong})


def test_what_is_wrong_with_images_and_classes_is_said():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    x, y = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    of = lambda x, y, **options: lipschitz.robust(model, x, y, input_shape=(1, 4, 4), eps=[0.1], **options)
    assert of(x, y).clean.shape == (1,)
    for arguments, options, said in [
        ((3 * x, y), {}, "in .0, 1."),
        ((x - 0.5, y), {}, "in .0, 1."),
        ((x, y[:2]), {}, "wants 4 whole numbers"),
        ((x, nn.functional.one_hot(y)), {}, "wants 4 whole numbers"),
        ((x, y), {"steps": -1}, "steps"),
        ((x[:0], y[:0]), {}, "wants a batch"),
    ]:
        with pytest.raises(lipschitz.Error, match=said):
            of(*arguments, **options)
    with pytest.raises(lipschitz.Error, match="no/such"):
        lipschitz.load("no/such.json")
    assert of(x, y, steps=numpy.int64(2)).clean.shape == (1,)
    with pytest.raises(lipschitz.Error, match="steps"):
        of(x, y, steps=True)


def test_a_changed_class_is_refused(monkeypatch):
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: 10 * x)
    with pytest.raises(lipschitz.Error, match="its class has a forward from test_torch"):
        lipschitz.certify(nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval())


def test_what_computes_something_else_is_refused_whatever_it_is(monkeypatch):
    forward = nn.ReLU.forward

    @functools.wraps(forward)
    def louder(self, x):
        return 10 * forward(self, x)

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    lipschitz.certify(model, effort=0)
    with monkeypatch.context() as m:
        m.setattr(nn.ReLU, "forward", louder)
        with pytest.raises(lipschitz.Error, match="computes something else"):
            lipschitz.certify(model)
    with monkeypatch.context() as m:
        linear = nn.functional.linear
        m.setattr(nn.functional, "linear", lambda *given: 2 * linear(*given))
        with pytest.raises(lipschitz.Error, match="computes something else"):
            lipschitz.certify(model)
    image = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)).eval()
    lipschitz.certify(image, input_shape=(1, 4, 4), effort=0)
    with monkeypatch.context() as m:
        own = nn.Conv2d._conv_forward
        m.setattr(nn.Conv2d, "_conv_forward", lambda self, *given: own(self, *given).flip(1))
        with pytest.raises(lipschitz.Error, match="computes something else"):
            lipschitz.certify(image, input_shape=(1, 4, 4))


def test_outputs_that_are_not_finite_are_not_taken_for_the_same():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1000.0)
    lipschitz.certify(model, effort=0)
    with pytest.raises(lipschitz.Error, match="is not finite, so it cannot be compared"):
        lipschitz.certify(model.half(), effort=0)


def test_a_batch_norm_beside_a_graph_has_no_count():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2, affine=False)).eval()
    graph = {"format": 1, "input": {"kind": "vector", "dim": 2}, "nodes": [{"name": "0", "op": "linear", "inputs": 2, "outputs": 2, "bias": False}]}
    with pytest.raises(lipschitz.Error, match="running_mean"):
        lipschitz.certify(model, graph)


def test_hooks_for_all_modules_are_refused():
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(lipschitz.Error, match="hooks for all modules"):
            lipschitz.certify(nn.Sequential(nn.Linear(2, 2)).eval())
    finally:
        hook.remove()


def test_a_model_of_hugging_face():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=12
    )
    with pytest.raises(lipschitz.Error, match="training mode"):
        lipschitz.certify(transformers.BertModel(config).train())
    bert = transformers.BertModel(config).eval()
    certificate = lipschitz.certify(bert, effort=0)
    certificate.verify()
    tokens = torch.randint(40, (2, 7))
    with torch.no_grad():
        theirs = bert(tokens).last_hidden_state.numpy()
    assert numpy.abs(lipschitz.run(bert, tokens) - theirs).max() < 1e-4


def test_what_a_config_does_not_say_is_refused():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "num_hidden_layers": 1, "max_position_embeddings": 12}
    llama = transformers.LlamaConfig(hidden_size=16, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24, **sizes)
    gpt2 = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=4, n_positions=12, bos_token_id=0, eos_token_id=0)
    make = lambda: (transformers.LlamaForCausalLM(copy.deepcopy(llama)).eval(), transformers.GPT2LMHeadModel(copy.deepcopy(gpt2)).eval())
    for model in make():
        tokens = torch.randint(40, (2, 7))
        with torch.no_grad():
            theirs = model(tokens).logits.numpy()
        assert numpy.abs(lipschitz.run(model, tokens) - theirs).max() < 1e-4

    class Louder(transformers.GPT2LMHeadModel):
        pass

    Louder.__name__ = "GPT2LMHeadModel"
    changed = [(Louder(gpt2).eval(), "not of the library")]
    model, other = make()
    model.model.rotary_emb.inv_freq.mul_(0.1)
    changed.append((model, "inv_freq, which is not saved"))
    other.transformer.h[0].attn.num_heads = 2
    changed.append((other, "num_heads is not what"))
    model, other = make()
    model.model.layers[0].mlp.act_fn = nn.Tanh().eval()
    changed.append((model, "act_fn, a Tanh, is not what"))
    other.config._attn_implementation = "mine"
    changed.append((other, "attention by `mine`"))
    model, other = make()
    model.model.config = copy.deepcopy(model.config)
    inverse = model.model.rotary_emb.inv_freq
    del model.model.rotary_emb.inv_freq
    model.model.rotary_emb.inv_freq = 0.1 * inverse
    changed.append((model, "is not what|computes something else"))
    for model, said in changed:
        with pytest.raises(lipschitz.Error, match=said):
            lipschitz.certify(model, effort=0)
    # What a user adds, and a larger vocabulary, change nothing.
    model, other = make()
    model.note, other.tokenizer = 3, "mine"
    other.resize_token_embeddings(48)
    for model in (model, other.eval()):
        lipschitz.certify(model, effort=0)



METHODS = ["spectral_normalize", "spectral_soft_cap", "spectral_hard_cap", "svd_clip", "stiefel"]


@pytest.mark.parametrize("method", METHODS)
def test_caps_hold_after_every_step_whatever_the_step(method):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 8))
    # Steps that throw every weight far away.
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0)
    held = lipschitz.torch.constrain(optimizer, method=method, sigma_max=1.5)
    x = torch.randn(32, 12)
    for _ in range(5):
        for w in (model[0].weight, model[2].weight):
            assert held.promise(w) == 1.5
            assert lipschitz.torch.rms_norm_upper(w) <= 1.5 * (1 + 1e-5)
        optimizer.zero_grad()
        (-model(x).square().mean()).backward()
        optimizer.step()
    held.remove()
    (-model(x).square().mean()).backward()
    optimizer.step()
    assert lipschitz.torch.rms_norm_upper(model[2].weight) > 2.0


def test_weights_of_other_types_and_layouts_are_held_too():
    torch.manual_seed(6)
    weights = [nn.Parameter(torch.randn(6, 8, dtype=dtype)) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    weights.append(nn.Parameter(torch.randn(8, 6).T))
    table = nn.Parameter(torch.randn(9, 4))
    optimizer = torch.optim.SGD([*weights, table], lr=5.0)
    held = lipschitz.torch.constrain(optimizer, sigma_max=1.0, tables=[table])
    for _ in range(2):
        for w in weights:
            # bf16 rounds what it stores.
            slack = 1e-2 if w.dtype == torch.bfloat16 else 1e-5
            assert lipschitz.torch.rms_norm_upper(w) <= 1.0 + slack
        assert table.square().mean(1).sqrt().max() <= 1.0 + 1e-5
        for w in (*weights, table):
            w.grad = torch.randn_like(w)
        optimizer.step()
    assert held.promise(weights[0]) == 1.0 and held.promise(weights[2]) is None


def test_kernels_of_convolutions_are_held():
    torch.manual_seed(8)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(24, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=20.0)
    lipschitz.torch.constrain(optimizer, sigma_max=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        (-model(torch.rand(4, 2, 4, 4)).square().mean()).backward()
        optimizer.step()
        assert all(lipschitz.torch.rms_norm_upper(w) <= 1.0 + 1e-5 for w in (model[0].weight, model[2].weight))
    with pytest.raises(lipschitz.Error, match="no optimizer"):
        lipschitz.torch.constrain(model, sigma_max=1.0)


def test_wrong_constraints_are_refused():
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for options, said in [
        ({}, "sigma_max is missing"),
        ({"sigma_max": -1.0}, "sigma_max"),
        ({"sigma_max": 1.0, "method": "no_such"}, "no_such"),
        ({"sigma_max": 1.0, "odd": 3}, "odd"),
        ({"sigma_max": 1.0, "parameters": [model.bias]}, "no matrix"),
        ({"sigma_max": 1.0, "parameters": [torch.zeros(2, 2)]}, "not one of the optimizer's"),
        ({"sigma_max": 1.0, "tables": model.weight}, "tables: wants a list"),
        ({"sigma_max": 1.0, "tables": [torch.zeros(3, 3)]}, "tables: wants a list"),
        ({"sigma_max": "large"}, "sigma_max: wants a number"),
        ({"sigma_max": 1.0, "decay": object()}, "options of spectral_normalize"),
    ]:
        with pytest.raises(lipschitz.Error, match=said):
            lipschitz.torch.constrain(optimizer, **options)


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (y.reshape(b, t, 4, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(nn.functional.gelu(self.up(x)))


@pytest.mark.slow
def test_a_constrained_loop_takes_little_more_time():
    """At width 256, three layers and 16 x 256 tokens; run with `-m slow`."""
    torch.manual_seed(7)

    def seconds(constrained):
        model = nn.Sequential(nn.Embedding(65, 256), *(Block(256) for _ in range(3)), nn.Linear(256, 65, bias=False))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        if constrained:
            lipschitz.torch.constrain(optimizer, sigma_max=2.0, tables=[model[0].weight])
        tokens = torch.randint(65, (16, 257))
        times = []
        for _ in range(6):
            start = time.perf_counter()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
            optimizer.step()
            times.append(time.perf_counter() - start)
        if constrained:
            matrices = [w for w in model.parameters() if w is not model[0].weight]
            assert all(lipschitz.torch.rms_norm_upper(w) <= 2.0 * (1 + 1e-5) for w in matrices)
        return sorted(times)[len(times) // 2]

    plain, held = seconds(False), seconds(True)
    print(f"{plain:.3f} s, constrained {held:.3f} s: {held / plain:.2f}")
    assert held <= 1.3 * plain


def test_the_examples_of_docstrings_are_right():
    import doctest

    failed, tried = doctest.testmod(lipschitz.torch, extraglobs={"lipschitz": lipschitz}, optionflags=doctest.ELLIPSIS)
    assert failed == 0 and tried > 3
