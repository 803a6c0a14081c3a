"""Writes small files in the formats that the import reads, with the values that they hold.

Needs torch, transformers, accelerate, safetensors, numpy and gguf from PyPI (written with torch 2.15, transformers 5.24 and gguf
0.19), and no network:

    python tests/golden/make_formats.py tests/golden/formats

Each `NAME.*` has its numbers, as the library that wrote it reads them, in `NAME.expected.safetensors`.
"""

import argparse
import collections
import os
import pathlib
import sys

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

out = pathlib.Path(sys.argv[1])
os.makedirs(out, exist_ok=True)
torch.manual_seed(7)
rng = np.random.default_rng(7)


def expect(name, tensors):
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, out / f"{name}.expected.safetensors")


def state(*sizes):
    """Matrices whose names are not in alphabetical order."""
    names = ["encoder", "decoder", "auxiliary"]
    return collections.OrderedDict((f"{names[i]}.weight", torch.randn(sizes[i + 1], sizes[i])) for i in range(len(sizes) - 1))


class Options:
    """A class that no reader knows."""

    def __init__(self):
        self.path = pathlib.PurePosixPath("a/b")
        self.dtype = torch.float32


# The former format, with types and views, and a tensor of the zip format for each.
base = torch.randn(3, 4)
views = {
    "transposed": base.t(),
    "offset": base[1:, 1:3],
    "whole": base,
    "expanded": torch.randn(1, 4).expand(3, 4),
    "half": torch.randn(2, 3).half(),
    "brain": torch.randn(2, 3).bfloat16(),
    "double": torch.randn(2, 3).double(),
    "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "count": torch.tensor(7),
    "mask": torch.tensor([True, False]),
}
read = {key: value.detach() for key, value in views.items() if key not in ("mask", "count")}
for name, zipped in (("views", True), ("legacy", False)):
    torch.save(views, out / f"{name}.pt", _use_new_zipfile_serialization=zipped)
    expect(name, read)
torch.save(views, out / "legacy4.pt", _use_new_zipfile_serialization=False, pickle_protocol=4)
expect("legacy4", read)

# A checkpoint of a training script, and one with a choice.
net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
weights = net.state_dict()
optimizer = torch.optim.AdamW(net.parameters())
net(torch.ones(1, 3)).sum().backward()
optimizer.step()
full = {
    "model_state_dict": collections.OrderedDict((f"module._orig_mod.{k}", v) for k, v in weights.items()),
    "optimizer": optimizer.state_dict(),
    "model_args": dict(n_layer=2, dropout=0.0, bias=True, name="tiny"),
    "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs"), dtype=torch.float32),
    "best_val_loss": np.float64(1.25),
    "rng_state": torch.get_rng_state(),
    "step": torch.tensor(3),
    "object": Options(),
}
torch.save(full, out / "training.pt")
expect("training", weights)
average = {key: value * 0.5 for key, value in weights.items()}
torch.save({"model": weights, "ema": {"module": average, "decay": 0.99}, "epoch": 3}, out / "choice.pt")
expect("choice", weights)
torch.save(state(4, 3, 2, 5), out / "order.pt")

# What is refused.
refused = {
    "sparse": torch.eye(3).to_sparse(),
    "quantized": torch.quantize_per_tensor(torch.randn(2, 2), 0.1, 0, torch.qint8),
    "nested": torch.nested.nested_tensor([torch.randn(2), torch.randn(3)]),
    "meta": torch.empty(2, 2, device="meta"),
    "negative": torch._neg_view(torch.randn(2, 2)),
    "conjugate": torch.randn(2, 2, dtype=torch.complex64).conj(),
    "float8": torch.randn(2, 2).to(torch.float8_e4m3fn),
    "uint16": torch.ones(2, 2, dtype=torch.uint16),
    "complex": torch.randn(2, 2, dtype=torch.complex64),
}
for key, value in refused.items():
    torch.save({"0.weight": value}, out / f"refused_{key}.pt")
# A number that may be a part of what a model computes, beside one that says how far it was trained.
torch.save({"0.weight": torch.ones(2, 2), "epoch": 3, "logit_scaler": 2.0}, out / "refused_number.pt")
torch.save(net, out / "refused_module.pt")
torch.jit.script(torch.nn.Linear(2, 2)).save(out / "refused_script.pt")
torch.save({"0.weight": torch.ones(1).expand(1 << 30)[None].expand(1 << 20, 1 << 30)}, out / "refused_expanded.pt")

# numpy: compressed, and in Fortran order.
arrays = {"b": rng.standard_normal((3, 2)).astype("<f4"), "a": np.asfortranarray(rng.standard_normal((4, 3)))}
for name, save in (("fortran", np.savez), ("compressed", np.savez_compressed)):
    save(out / f"{name}.npz", **arrays)
    expect(name, {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()})

# GGUF: blocks of any bits, and what they stand for; scales are kept finite.
T = gguf.GGMLQuantizationType
KINDS = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K]
# Where the halves are that scale a block.
SCALES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
          T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}


def blocks(kind, rows, width):
    each, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (rows, width // each, size), dtype=np.uint8)
    for at in SCALES[kind]:
        halves = rng.standard_normal((rows, width // each, 1)).astype("<f2")
        data[:, :, at:at + 2] = halves.view(np.uint8)
    return data.reshape(rows, -1)


writer = gguf.GGUFWriter(out / "blocks.gguf", "llama")
expected = {}
for kind in KINDS:
    data = blocks(kind, 2, 512)
    writer.add_tensor(kind.name, data, raw_dtype=kind)
    expected[kind.name] = torch.from_numpy(gguf.quants.dequantize(data, kind).reshape(2, 512).copy())
for name, kind, data in (("F32", T.F32, rng.standard_normal((2, 3)).astype("<f4")), ("F16", T.F16, rng.standard_normal((2, 3)).astype("<f2"))):
    writer.add_tensor(name, data, raw_dtype=kind)
    expected[name] = torch.from_numpy(data.copy())
brain = torch.randn(2, 3).bfloat16()
writer.add_tensor("BF16", brain.view(torch.uint8).numpy(), raw_dtype=T.BF16)
expected["BF16"] = brain
writer.add_tensor("I32", np.arange(6, dtype="<i4").reshape(2, 3), raw_dtype=T.I32)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
expect("blocks", expected)

# GGUF models, with the outputs of transformers' own reading of them.
import transformers  # noqa: E402

V, D, H, KV, F, L = 32, 32, 4, 2, 64, 2


def model(name, arch, kind, scaled):
    path = out / f"{name}.gguf"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(name)
    writer.add_context_length(16)
    writer.add_embedding_length(D)
    writer.add_block_count(L)
    writer.add_feed_forward_length(F)
    writer.add_head_count(H)
    writer.add_head_count_kv(KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100.0)
    writer.add_rope_dimension_count(D // H)
    writer.add_vocab_size(V)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(V)])
    writer.add_token_merges(["t 1"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {"token_embd.weight": (V, D), "output_norm.weight": (D,)}
    if arch == "llama":
        shapes["output.weight"] = (V, D)
    for i in range(L):
        at, key = f"blk.{i}", D // H * KV
        shapes |= {f"{at}.attn_norm.weight": (D,), f"{at}.ffn_norm.weight": (D,), f"{at}.attn_q.weight": (D, D),
                   f"{at}.attn_k.weight": (key, D), f"{at}.attn_v.weight": (key, D), f"{at}.attn_output.weight": (D, D),
                   f"{at}.ffn_gate.weight": (F, D), f"{at}.ffn_up.weight": (F, D), f"{at}.ffn_down.weight": (D, F)}
        if arch == "qwen2":
            shapes |= {f"{at}.attn_q.bias": (D,), f"{at}.attn_k.bias": (key,), f"{at}.attn_v.bias": (key,)}
    for key, shape in shapes.items():
        data = rng.standard_normal(shape).astype("<f4") * 0.3 + (1.0 if "norm" in key else 0.0)
        if len(shape) == 2 and kind != T.F32:
            writer.add_tensor(key, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, data.astype("<f4"))
    if scaled:
        factors = np.array([1.0, 1.5, 4.0, 8.0], "<f4")
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = transformers.AutoModelForCausalLM.from_pretrained(out, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager").double().eval()
    if scaled:
        # What the library leaves out of its reading.
        rotary = read.model.rotary_emb
        rotary.inv_freq = (rotary.inv_freq.double() / torch.from_numpy(factors).double())
    tokens = torch.arange(9)[None] * 5 % V
    with torch.no_grad():
        expect(name, {"tokens": tokens, "output": read(tokens).logits.float()})


model("llama", "llama", T.Q8_0, False)
model("llama_freqs", "llama", T.F32, True)
model("qwen2", "qwen2", T.F32, False)


# Models of transformers, written as llama.cpp's own script does: its names, and the gains of Gemma with their 1. The
# library's reading of the tensors has to give the same; its reading of the metadata leaves out the width of heads of Qwen 3,
# the share of Phi 3 that is turned, and the caps, the scaling and the other base of Gemma.
SMALL = dict(vocab_size=V, hidden_size=D, intermediate_size=24, num_attention_heads=H, num_key_value_heads=KV,
             max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=None, attn_implementation="eager")
PLAIN = dict(rope_type="default", rope_theta=100.0)


def write(name, net, also, reads=True, tensors=lambda tensors: tensors):
    config, arch = net.config, name.split("_")[0]
    torch.manual_seed(len(name))
    for key, p in net.named_parameters():
        p.data = torch.randn_like(p) * (0.3 if p.dim() == 2 else 0.2) + (1.0 if key.endswith("weight") and p.dim() == 1 and "gemma" not in name else 0.0)
    path = out / f"{name}.gguf"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", 4 * D))
    writer.add_head_count(config.num_attention_heads)
    if arch != "gpt2":
        writer.add_head_count_kv(config.num_key_value_heads)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(1e-5)
    if arch != "gpt2":
        writer.add_rope_freq_base(100.0)
    writer.add_vocab_size(V)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(V)])
    writer.add_token_merges(["t 1"])
    also(writer)
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    for key, value in tensors(net.state_dict()).items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, suffix = key.rsplit(".", 1)
        data = value.numpy() + (1.0 if "gemma" in name and "norm" in key else 0.0)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", data.astype("<f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokens = torch.arange(9)[None] * 5 % V
    with torch.no_grad():
        output = net.double().eval()(tokens).logits.float()
        if reads:
            read = type(net).from_pretrained(out, gguf_file=path.name, config=config, dtype=torch.float32).double().eval()
            torch.testing.assert_close(read(tokens).logits.float(), output, rtol=1e-4, atol=1e-4)
    expect(name, {"tokens": tokens, "output": output})


def lengths(of):
    def add(writer):
        writer.add_key_length(of)
        writer.add_value_length(of)
    return add


write("qwen3", transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
    **SMALL, num_hidden_layers=2, head_dim=6, rope_parameters=PLAIN)), lengths(6))


def phi3(writer):
    writer.add_rope_dimension_count(4)
    writer.add_rope_scaling_orig_ctx_len(16)
    writer.add_sliding_window(16)


write("phi3", transformers.Phi3ForCausalLM(transformers.Phi3Config(
    **SMALL, num_hidden_layers=2, rope_parameters=dict(PLAIN, partial_rotary_factor=0.5))), phi3)


def gemma2(writer):
    lengths(6)(writer)
    writer.add_sliding_window(3)
    writer.add_attn_logit_softcapping(2.0)
    writer.add_final_logit_softcapping(4.0)


write("gemma2", transformers.Gemma2ForCausalLM(transformers.Gemma2Config(
    **SMALL, num_hidden_layers=3, head_dim=6, query_pre_attn_scalar=6, sliding_window=3, attn_logit_softcapping=2.0,
    final_logit_softcapping=4.0, rope_parameters=PLAIN)), gemma2)


def gemma3(writer):
    lengths(6)(writer)
    writer.add_sliding_window(3)
    writer.add_final_logit_softcapping(4.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)
    writer.add_key_value("gemma3.rope.freq_base_swa", 30.0, gguf.GGUFValueType.FLOAT32)


local = dict(rope_type="default", rope_theta=30.0)
write("gemma3", transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(
    **SMALL, num_hidden_layers=7, head_dim=6, query_pre_attn_scalar=6, sliding_window=3, final_logit_softcapping=4.0,
    rope_parameters=dict(full_attention=dict(rope_type="linear", factor=4.0, rope_theta=100.0), sliding_attention=local))),
    gemma3)

# With layer norms. The library does not read Phi 2, nor the stacked norms of StableLM.
HALF = dict(PLAIN, partial_rotary_factor=0.5)
write("starcoder2", transformers.Starcoder2ForCausalLM(transformers.Starcoder2Config(
    **SMALL, num_hidden_layers=2, norm_epsilon=1e-5, sliding_window=None, tie_word_embeddings=True, rope_parameters=PLAIN)), lambda writer: None)


def turned(writer):
    writer.add_rope_dimension_count(4)


def fused(tensors):
    """Queries, keys and values in one, as the first files of Phi 2 have them."""
    parts = {key: [tensors.pop(key.replace("q_proj", f"{x}_proj")) for x in "qkv"] for key in list(tensors) if "q_proj" in key}
    return tensors | {key.replace("self_attn.q_proj", "self_attn.qkv_proj"): torch.cat(part) for key, part in parts.items()}


phi = transformers.PhiConfig(**SMALL, num_hidden_layers=2, layer_norm_eps=1e-5, rope_parameters=HALF)
write("phi2", transformers.PhiForCausalLM(phi), turned, reads=False)
write("phi2_fused", transformers.PhiForCausalLM(phi), turned, reads=False, tensors=fused)


def stablelm(writer):
    turned(writer)
    writer.add_parallel_residual(True)


def stacked(tensors):
    """The norms of all heads in one tensor."""
    for key in [key for key in tensors if key.endswith("layernorm.norms.0.weight")]:
        stem = key.removesuffix(".norms.0.weight")
        heads = sum(other.startswith(f"{stem}.norms.") for other in tensors)
        tensors[f"{stem}.weight"] = torch.stack([tensors.pop(f"{stem}.norms.{h}.weight") for h in range(heads)])
    return tensors


stable = dict(**SMALL, num_hidden_layers=2, layer_norm_eps=1e-5, rope_parameters=HALF)
write("stablelm", transformers.StableLmForCausalLM(transformers.StableLmConfig(**stable, use_qkv_bias=True)), stablelm)
write("stablelm_parallel", transformers.StableLmForCausalLM(transformers.StableLmConfig(
    **stable, use_parallel_residual=True, qk_layernorm=True)), stablelm, reads=False, tensors=stacked)


def rows(tensors):
    """Matrices with a row for each output."""
    return {key: value.t() if "c_" in key and value.dim() == 2 else value for key, value in tensors.items()}


gpt2 = transformers.GPT2Config(vocab_size=V, n_positions=16, n_embd=D, n_layer=2, n_head=H, bos_token_id=0, eos_token_id=1)
write("gpt2", transformers.GPT2LMHeadModel(gpt2), lambda writer: None, tensors=rows)
