"""Writes what Hugging Face transformers takes a config of each family to mean: lipschitz-nn/import/src/library.json.

Needs torch and transformers from PyPI (written with torch 2.15 and transformers 5.24), and no network:

    python tests/golden/library.py lipschitz-nn/import/src/library.json

- `base`: the keys that every config has, with their defaults.
- Of each family, by its `model_type`: `defaults`, its other keys with what the class says before it works out those
  that depend on others (a key that must be given is absent); `aliases`, other names of keys; `kinds`, what a key may be
  given as, where the class says: n for null, b for true or false, i for a whole number, f for another (0.5), s for a text,
  l for a list, d for an object; `thetas`, the bases of rotary positions; `reads`, the names that the library's code reads
  from the config while it builds the family's models, loads their weights and runs them.
- `kinds` beside `base`: the same, of its keys.
"""

import dataclasses
import json
import sys
import tempfile
import warnings

import torch
import transformers as t
from transformers.models.auto import configuration_auto, modeling_auto

t.logging.set_verbosity_error()
warnings.filterwarnings("ignore")

FAMILIES = """
    albert arcee bart beit bert bloom camembert chinese_clip chinese_clip_text_model chinese_clip_vision_model clip clip_text_model
    clip_vision_model cohere deit dinov2 dinov2_with_registers distilbert electra esm falcon
    gemma gemma2 gemma3_text glm glm4 gpt2 gpt_bigcode gpt_neo gpt_neox gptj granite helium ijepa llama m2m_100 marian mbart ministral
    mistral modernbert mpnet mpt nomic_bert olmo olmo2 opt pegasus persimmon phi phi3 qwen2 qwen3 roberta seed_oss siglip
    siglip_text_model siglip_vision_model smollm3 stablelm starcoder2 t5 vit vit_msn xlm-roberta
""".split()

# Sizes that make a model small, under the names of all families.
SMALL = dict(
    vocab_size=19, hidden_size=16, intermediate_size=12, ffn_dim=12, d_ff=12, n_inner=12, hidden_dim=12, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=24, embedding_size=8, image_size=8,
    patch_size=4, pad_token_id=1, bos_token_id=2, eos_token_id=3, sep_token_id=3, cls_token_id=2, sliding_window=4,
    num_labels=3, decoder_layers=2, decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=12, word_embed_proj_dim=16,
    projection_dim=8, mask_token_id=4, decoder_start_token_id=2, rotary_dim=4,
)
# What the sizes do not say.
MORE = dict(
    gpt_neo=dict(attention_types=[[["global", "local"], 1]], window_size=3),
    esm=dict(position_embedding_type="absolute", vocab_list=None),
    mpt=dict(max_seq_len=24),
    opt=dict(do_layer_norm_before=True),
    clip=dict(text_config="clip_text_model", vision_config="clip_vision_model"),
    siglip=dict(text_config="siglip_text_model", vision_config="siglip_vision_model"),
    chinese_clip=dict(text_config="chinese_clip_text_model", vision_config="chinese_clip_vision_model"),
    beit=dict(out_indices=None),
)
HEADS = ["", "FOR_CAUSAL_LM", "FOR_MASKED_LM", "FOR_SEQUENCE_CLASSIFICATION", "FOR_TOKEN_CLASSIFICATION",
         "FOR_IMAGE_CLASSIFICATION", "FOR_PRETRAINING"]


def plain(value):
    """A default as JSON has it."""
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def defaults(config):
    found = {}
    for field in dataclasses.fields(config):
        if field.default is not dataclasses.MISSING:
            found[field.name] = plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = plain(field.default_factory())
    return found


PROBES = dict(n=None, b=True, i=1, f=0.5, s="x", l=[], d={})


def kinds(config):
    """What each key may be given as: what none of the validators of the class refuses."""
    found = {}
    for key, validators in config.__validators__.items():
        def takes(value):
            try:
                for validator in validators:
                    validator(value)
                return True
            except (TypeError, ValueError):
                return False

        usual = getattr(config, key, None)
        found[key] = "".join(
            kind for kind, probe in PROBES.items() if takes(probe) or isinstance(usual, str) and kind == "s" and takes(usual))
    return {key: kind for key, kind in found.items() if kind != "".join(PROBES)}


def sizes(model_type):
    """A small config of a family."""
    config = configuration_auto.CONFIG_MAPPING[model_type]
    names = {field.name for field in dataclasses.fields(config)}
    named = {config.attribute_map.get(key, key): value for key, value in SMALL.items()}
    chosen = {key: value for key, value in named.items() if key in names or key == "num_labels"}
    for key, value in MORE.get(model_type, {}).items():
        chosen[key] = {**sizes(value), "model_type": value} if key in ("text_config", "vision_config") else value
    return chosen


def variants(model_type):
    """What makes the code read other keys: each flag turned, each kind of rotary positions."""
    config = configuration_auto.CONFIG_MAPPING[model_type]
    yield {}
    for key, value in defaults(config).items():
        if isinstance(value, bool) and key not in ("return_dict", "is_encoder_decoder"):
            yield {key: not value}
        if key == "rope_parameters":
            for more in [dict(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0), dict(rope_type="yarn")]:
                yield {key: dict(rope_theta=100.0, factor=2.0, **more)}


def models(model_type):
    """The classes of a family that the importer may meet."""
    names = {"t5": {"T5EncoderModel"}, "siglip_text_model": {"SiglipTextModel"}}.get(model_type, set())
    for head in HEADS:
        found = getattr(modeling_auto, f"MODEL_{head}_MAPPING_NAMES".replace("__", "_")).get(model_type, ())
        names = names | ({found} if isinstance(found, str) else set(found))
    return [getattr(t, name) for name in sorted(names)]


def run(model):
    tokens = dict(input_ids=torch.tensor([[5, 6, 7, 8, 9, 3]]))
    if model.config.is_encoder_decoder:
        tokens["decoder_input_ids"] = tokens["input_ids"]
    pixels = dict(pixel_values=torch.zeros(1, 3, 8, 8))
    wanted = model.main_input_name
    for given in [pixels if wanted == "pixel_values" else tokens, {**tokens, **pixels}, {"input_ids": tokens["input_ids"]}]:
        try:
            model(**given)
            return True
        except (AttributeError, TypeError, ValueError):
            pass
    return False


class Reads:
    """The names that are read from a config of one class, but for those that its base class reads for itself."""

    def __init__(self, config):
        self.config, self.names = config, set()

    def __enter__(self):
        base, names = t.PreTrainedConfig, self.names
        self.kept = base.__getattribute__
        known = {field.name for field in dataclasses.fields(self.config)}

        def read(config, key):
            try:
                value = self.kept(config, key)
                found = True
            except AttributeError:
                found = False
            name = config.attribute_map.get(key, key) if key != "attribute_map" else key
            where = sys._getframe(1).f_code.co_filename
            modelling = "transformers" in where and not where.endswith("/configuration_utils.py") \
                and "/generation/" not in where and "heterogeneity" not in where
            ours = name in known or not found or name in self.kept(config, "__dict__") or name == "num_labels"
            if modelling and ours and not name.startswith("_"):
                names.add(name)
            if not found:
                raise AttributeError(f"{type(config).__name__} has no {key}")
            return value

        base.__getattribute__ = read
        return names

    def __exit__(self, *_):
        t.PreTrainedConfig.__getattribute__ = self.kept


def family(model_type, base):
    config = configuration_auto.CONFIG_MAPPING[model_type]
    names = set()
    for model in models(model_type):
        for variant in variants(model_type):
            try:
                with tempfile.TemporaryDirectory() as where, Reads(config) as read:
                    chosen = config(**{**sizes(model_type), **variant})
                    chosen._attn_implementation = "eager"
                    model(chosen).save_pretrained(where)
                    ran = run(model.from_pretrained(where, attn_implementation="eager").eval())
                if not ran:
                    print(f"{model.__name__} {variant}: not run", file=sys.stderr)
            except Exception as e:
                print(f"{model.__name__} {variant}: {type(e).__name__}: {str(e).splitlines()[0][:99]}", file=sys.stderr)
            names |= read
    own = {k: v for k, v in defaults(config).items() if k not in base or base[k] != v}
    theta = getattr(config, "default_theta", 10_000.0)
    thetas = theta if isinstance(theta, dict) else {"global": theta}
    common = kinds(t.PreTrainedConfig)
    types = {key: kind for key, kind in kinds(config).items() if common.get(key) != kind}
    return dict(aliases=dict(config.attribute_map), defaults=own, kinds=types, reads=sorted(names), thetas=thetas)


def main(out):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = defaults(t.PreTrainedConfig)
    lines = [f'"transformers": {json.dumps(t.__version__)}', f'"base": {json.dumps(base, sort_keys=True)}',
             f'"kinds": {json.dumps(kinds(t.PreTrainedConfig), sort_keys=True)}']
    for model_type in FAMILIES:
        if model_type not in configuration_auto.CONFIG_MAPPING:
            print(f"{model_type} is not in the library", file=sys.stderr)
            continue
        lines.append(f"{json.dumps(model_type)}: {json.dumps(family(model_type, base), sort_keys=True)}")
    # Families apart from the rest.
    text = "{\n" + ",\n".join(lines[:3]) + ',\n"families": {\n' + ",\n".join(lines[3:]) + "\n}\n}\n"
    json.loads(text)
    with open(out, "w") as file:
        file.write(text)


main(sys.argv[1])
