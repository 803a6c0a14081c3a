"""Writes the golden models: small random ones, saved by Hugging Face transformers itself, with the outputs it computes.

Needs torch, transformers and safetensors from PyPI (written with torch 2.15 and transformers 5.24), and no network:

    python tests/golden/make.py tests/golden

Each directory holds what `save_pretrained` wrote (config.json and weights), and `expected.safetensors`: `tokens` or
`pixels`, and `output` in f32 from a forward pass in f64 over the stored weights.
"""

import os
import shutil
import sys

import torch
from safetensors.torch import save_file

from models import decoders, encoders, image_models, inputs, later, processed, processors, run, scramble, text_models

# Saved in f32; the others in bf16.
SINGLE = ["gpt2", "llama", "qwen3", "bert", "vit", "gemma2", "phi", "cohere-normed", "falcon-new", "marian", "persimmon"]


def main(out):
    only = sys.argv[2:]
    for seed, (name, model, options) in enumerate([*text_models(), *image_models(), *encoders(), *decoders(), *later()]):
        if only and name not in only:
            continue
        where = os.path.join(out, name)
        shutil.rmtree(where, ignore_errors=True)
        scramble(model, seed)
        model.eval()
        if name not in SINGLE:
            # Weights alone: tables of angles stay as the library keeps them.
            for p in model.parameters():
                p.data = p.data.bfloat16()
        model.save_pretrained(where, **options)
        if name == "mistral":
            # The older format.
            os.remove(os.path.join(where, "model.safetensors"))
            torch.save(model.state_dict(), os.path.join(where, "pytorch_model.bin"))
        for extra in ["generation_config.json"]:
            if os.path.exists(os.path.join(where, extra)):
                os.remove(os.path.join(where, extra))
        g = torch.Generator().manual_seed(seed)
        model = model.double()
        # Of a model of two inputs, the one that is read.
        part = name.rpartition(".")[2] if "." in name else None
        given = read = inputs(model, part, g)
        if name in processors():
            processors()[name].save_pretrained(where)
            given, read = processed(processors()[name], g)
        output = run(model, part, read)
        save_file(dict(**given, output=output.float().contiguous()), os.path.join(where, "expected.safetensors"))
        print(name, tuple(output.shape))


main(sys.argv[1])
