"""Writes the golden checkpoints of the JAX code of Newhouse et al. (2025): small random ones with the outputs it computes.

Needs jax and numpy from PyPI, safetensors, and a clone of the code published with the paper (its `modula` package):

    PYTHONPATH=path/to/lipschitz-transformers python tests/golden/make_modula.py tests/golden/modula
"""

import json
import os
import sys

import jax
import numpy as np
from modula.compound import GPT, MLP
from safetensors.numpy import save_file

jax.config.update("jax_enable_x64", True)


def write(name, model, config, inputs, wrap):
    weights = model.initialize(jax.random.PRNGKey(3))
    # Larger than they start, so that attention is not flat; stored in f32, run in f64.
    weights = [np.asarray(2.0 * w, dtype=np.float32) for w in weights]
    path = os.path.join(out, name)
    np.savez(path + ".npz", *weights)
    with open(path + ".json", "w") as f:
        json.dump(dict(parameters=config, results={}) if wrap else config, f)
    if wrap:
        # As the training script saves a run, the first checkpoint another one.
        first = {i: (0.0 * w).tolist() for i, w in enumerate(weights)}
        last = {i: w.tolist() for i, w in enumerate(weights)}
        members = dict(args=config, results=dict(losses=[1.5, 0.5]), weights_checkpoint_0=first, weights_checkpoint_1=last)
        np.savez_compressed(path + "_run.npz", **members, allow_pickle=True)
    output = model.forward(next(iter(inputs.values())), [jax.numpy.asarray(w, dtype="float64") for w in weights])
    save_file(dict(**inputs, output=np.asarray(output, dtype=np.float32)), path + ".expected.safetensors")
    print(name, output.shape)


out = sys.argv[1]
os.makedirs(out, exist_ok=True)
rng = np.random.default_rng(0)
gpt = dict(vocab_size=7, num_heads=2, d_embed=8, num_blocks=2, softmax_scale=3.0, final_scale=2.0, residual_scale=1.5)
tokens = dict(tokens=rng.integers(0, 7, (2, 5)))
write("gpt", GPT(**gpt, use_unembed=False), dict(gpt, data="shakespeare", seq_len=6, lr=0.1), tokens, True)
mlp = dict(d_embed=2, num_blocks=3, final_scale=0.5)
pixels = dict(vectors=rng.standard_normal((1, 3072)).astype(np.float32))
write("mlp", MLP(output_dim=10, input_dim=3072, **mlp), dict(mlp, data="cifar"), pixels, False)
