"""Writes what Hugging Face transformers computes for configs as they are published (with small sizes).

Needs torch, transformers and safetensors from PyPI (written with torch 2.15 and transformers 5.24), and no network:

    python tests/golden/configs.py lipschitz-nn/import/tests/configs lipschitz-nn/import/tests/configs.json

`configs`: by the name of the config, which of the `files` holds its weights (null where the library makes no such model), and
the outcome as in `mutate.py` (null where the library refuses). `files`: tensors and shapes. Weights follow from their names:
with c = the sum of (j + 1) · byte j of the name, modulo 997, the element i is sin(c + 0.37 · (i² mod 1009)), times 0.3 and
plus 1 for the gains of norms, times 0.3 for other vectors, and times 2 / √(last dimension) for all else. Token ids are
2 + (7 i mod (vocabulary - 2)) for two sequences of 12; the elements of two pictures are sin(i).
"""

import json
import os
import sys
import tempfile

import torch
import transformers as t
from safetensors.torch import load_file, save_file

from mutate import Subject, as_json


def weight(name, shape):
    c = sum((j + 1) * byte for j, byte in enumerate(name.encode())) % 997
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    x = torch.sin(c + 0.37 * (i * i % 1009).double()).reshape(shape)
    if len(shape) <= 1:
        gain = name.endswith("weight") and any(part in name.lower() for part in ["norm", "ln_"])
        x = 0.3 * x + (1 if gain else 0)
    else:
        x = 2 * x / shape[-1] ** 0.5
    return x.float()


class Published(Subject):
    """A config, and a directory with weights that follow from their names."""

    def __init__(self, config, where):
        self.name, self.where, self.outcomes, self.config = config["model_type"], where, [], config
        self.model_type = config["model_type"]
        with open(os.path.join(where, "config.json"), "w") as file:
            json.dump(config, file)
        model = getattr(t, config["architectures"][0])
        meant = model.config_class.from_pretrained(where)
        model(meant).save_pretrained(where)
        tensors = load_file(os.path.join(where, "model.safetensors"))
        self.tensors = {name: weight(name, list(x.shape)) for name, x in tensors.items()}
        if "image_size" in config:
            size = (2, 3, config["image_size"], config["image_size"])
            self.given = dict(pixel_values=torch.arange(torch.Size(size).numel()).double().sin().reshape(size))
        else:
            i = torch.arange(24)
            self.given = dict(input_ids=(2 + 7 * i % (config["vocab_size"] - 2)).reshape(2, 12))


def main(configs, out):
    found, files = {}, []
    for file in sorted(os.listdir(configs)):
        name = file.removesuffix(".json")
        with open(os.path.join(configs, file)) as text:
            config = json.load(text)
        found[name] = [None, None]
        with tempfile.TemporaryDirectory() as where:
            try:
                published = Published(config, where)
            except Exception as e:
                print(f"{name}: {e}", file=sys.stderr)
                continue
            shapes = {name: list(x.shape) for name, x in sorted(published.tensors.items())}
            if shapes not in files:
                files.append(shapes)
            found[name][0] = files.index(shapes)
            if published.outcome(config) == 0:
                (shape, norm, sums), = published.outcomes
                found[name][1] = [shape, *(float(f"{x:.8g}") for x in [norm, *sums])]
    parts = ['"configs":{\n' + ",\n".join(f"{as_json(name)}:{as_json(pair)}" for name, pair in found.items()) + "\n}",
             '"files":[\n' + ",\n".join(as_json(shapes) for shapes in files) + "\n]"]
    with open(out, "w") as file:
        file.write("{" + ",\n".join(parts) + "}\n")


main(sys.argv[1], sys.argv[2])
