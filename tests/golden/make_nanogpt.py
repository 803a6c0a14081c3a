"""Writes small checkpoints as nanoGPT's training script saves them, with the outputs of the same model in transformers.

Needs torch, transformers and safetensors from PyPI (written with torch 2.15 and transformers 5.24), and no network:

    python tests/golden/make_nanogpt.py tests/golden/nanogpt

nanoGPT is GPT-2 with the exact GELU, maps stored `[outputs, inputs]`, and biases everywhere or nowhere. `biased.pt` is of a
model under `torch.compile`; each `NAME.expected.safetensors` has `tokens` and `output`.
"""

import os
import sys

import torch
import transformers as t
from safetensors.torch import save_file

from models import D, H, V, scramble

CONTEXT = 9
MAPS = ["attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"]


def main(out):
    os.makedirs(out, exist_ok=True)
    for seed, (name, bias) in enumerate([("biased", True), ("plain", False)]):
        model = t.GPT2LMHeadModel(t.GPT2Config(
            vocab_size=V, n_embd=D, n_head=H, n_layer=2, n_positions=CONTEXT, activation_function="gelu", bos_token_id=None,
            eos_token_id=None))
        scramble(model, seed)
        if not bias:
            for key, p in model.named_parameters():
                if key.endswith("bias"):
                    p.data.zero_()
        saved = {}
        for key, x in model.state_dict().items():
            if key.endswith("bias") and not bias:
                continue
            saved[key] = x.t().contiguous() if any(key.endswith(end) for end in MAPS) else x
        saved["lm_head.weight"] = saved["transformer.wte.weight"]
        compiled = "_orig_mod." if bias else ""
        optimizer = torch.optim.AdamW(model.parameters())
        args = dict(n_layer=2, n_head=H, n_embd=D, block_size=CONTEXT, bias=bias, vocab_size=V, dropout=0.1)
        checkpoint = dict(model={compiled + key: x for key, x in saved.items()}, optimizer=optimizer.state_dict(),
                          model_args=args, iter_num=7, best_val_loss=torch.tensor(1.5), config=dict(learning_rate=1e-3, **args))
        torch.save(checkpoint, os.path.join(out, f"{name}.pt"))
        g = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, V, (2, 7), generator=g)
        with torch.no_grad():
            output = model.eval().double()(input_ids=tokens).logits
        save_file(dict(tokens=tokens, output=output.float().contiguous()), os.path.join(out, f"{name}.expected.safetensors"))


main(sys.argv[1])
