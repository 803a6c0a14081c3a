"""Writes the golden encoders of sentences: small random ones, saved by sentence-transformers itself, with what it computes.

Needs sentence-transformers besides what make.py needs (written with 6.2), and no network:

    python tests/golden/make_sentence.py tests/golden

The expected output is the library's own in f32, for tokens none of which pads.
"""

import os
import shutil
import sys
import tempfile

import torch
import transformers as t
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers

from models import TEXT, D, V, scramble


def encoder(where, model, length):
    """A transformer that sentence-transformers opens: with a tokenizer beside it."""
    model.save_pretrained(where)
    words = {w: i for i, w in enumerate("[PAD] [UNK] [CLS] [SEP] [MASK] a b c d".split())}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(where)
    return Transformer(where, max_seq_length=length)


def main(out):
    torch.manual_seed(0)
    bert = t.BertModel(t.BertConfig(**TEXT, pad_token_id=None))
    mpnet = t.MPNetForMaskedLM(t.MPNetConfig(**TEXT, pad_token_id=1)).mpnet
    for seed, (name, model, ends) in enumerate([
        ("sentence", bert, [Pooling(D, "mean"), Dense(D, 5), Normalize()]),
        ("sentence-first", mpnet, [Pooling(D, "cls"), Dense(D, 5, bias=False, activation_function=torch.nn.Identity())]),
    ]):
        scramble(model, seed)
        with tempfile.TemporaryDirectory() as base:
            first = encoder(base, model, 8)
            whole = SentenceTransformer(modules=[first, *ends]).eval()
            where = os.path.join(out, name)
            shutil.rmtree(where, ignore_errors=True)
            whole.save(where, create_model_card=False)
        tokens = torch.randint(2, V, (2, 7), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            given = dict(input_ids=tokens, attention_mask=torch.ones_like(tokens))
            output = whole(given)["sentence_embedding"]
        save_file(dict(tokens=tokens, output=output.contiguous()), os.path.join(where, "expected.safetensors"))
        print(name, tuple(output.shape))


main(sys.argv[1])
