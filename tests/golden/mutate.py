"""Writes what Hugging Face transformers makes of changed configs and weights, for the importer to be held to.

Needs torch, transformers and safetensors from PyPI (written with torch 2.15 and transformers 5.24), and no network:

    python tests/golden/mutate.py lipschitz-nn/import/tests/mutations [NAME...]

For each of the small models of `models.py`, its weights as NAME.safetensors, and NAME.json:

- `config` and `tokens` or `pixels`: what nothing is changed in.
- `outcomes`: what the library can be seen to compute, each as the shape of the output, its Euclidean norm, and the sums
  over its elements i = 0, 1, … of output[i] · cos(k·i + k) for k = 1…6. The number of an outcome is its place here; -1
  says that the library refuses, that the output is not finite, or that it depends on weights that are not in the file.
  The first is that of the model itself.
- `keys`: keys of the config (a dot leads into one), and by outcome the values that each of them is given alone: a list of
  `[[key, …], {outcome: [value, …], …}]`. `missing`: by key, the outcome without it.
- `legacy`: the `config`, `keys` and `missing` where rotary positions are written as they were before `rope_parameters`.
- `sets`: changes to the config together (an object of values, a list of keys to remove), and their outcome.
- `each`: by tensor, the outcomes of the operations drop, negate and zero on it alone.
- `weights`: operations on the tensors in their order, changes to the config, and their outcome. `["copy", a, b]` makes b
  a copy of a; `["negate", a]`, `["zero", a]` and `["drop", a]` change a; `["rename", x, y]` writes y for x in all names;
  `["prefix", p]` and `["strip", p]` change the start of all names.

Models under REDUCED have a smaller table, and their weights in bf16; of `each` they have the first operation alone.

The library is used as its users do: the class that `architectures` names first, or else `AutoModel`, loads the directory
in f64. Of a T5 that has a decoder too, `T5EncoderModel` loads the encoder.
"""

import itertools
import json
import math
import os
import random
import signal
import sys
import tempfile
import warnings

import torch
import transformers as t
from safetensors.torch import load_file, save_file
from transformers.activations import ACT2FN

from models import base_models, scramble, V

t.logging.set_verbosity_error()
t.utils.logging.disable_progress_bar()
warnings.filterwarnings("ignore")
torch.set_num_threads(1)

HERE = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(HERE, "../../lipschitz-nn/import/src/library.json")) as file:
    LIBRARY = json.load(file)

MISSING = object()
KINDS = [None, False, True, 0, 1, -1, 2, 0.5, 3.0, "x", "relu", "gelu", "silu", "2", [], {}, [1], ["x"]]
FEW = [None, False, True, 0, 2, 0.5, "x"]
ACTIVATIONS = [*ACT2FN, "gelu_tanh", "gelu_erf", "GELU", "geglu", "swiglu", "gated-gelu", "gated-relu", "gated-silu", "", None]
ACTIVATION_KEYS = ["hidden_act", "hidden_activation", "activation_function", "activation", "feed_forward_proj", "dense_act_fn",
                   "classifier_activation"]
# Keys that carry function in some family, with what they may say there.
FOREIGN = {
    "partial_rotary_factor": [0.5, 1.0], "layer_types": [["full_attention"] * 2, ["sliding_attention"] * 2],
    "layer_norm_eps": [0.1], "layer_norm_epsilon": [0.1], "norm_eps": [0.1], "rms_norm_eps": [0.1], "norm_epsilon": [0.1],
    "attention_bias": [], "mlp_bias": [], "qkv_bias": [], "use_bias": [], "norm_bias": [], "use_qkv_bias": [],
    "attention_out_bias": [], "sliding_window": [3], "use_sliding_window": [], "max_window_layers": [],
    "window_size": [3], "local_attention": [2], "rope_scaling": [{"type": "linear", "factor": 2.0}], "rope_theta": [50.0],
    "rope_parameters": [{"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}], "rotary_emb_base": [50],
    "rotary_pct": [0.25], "rotary_dim": [4], "rope_local_base_freq": [50.0], "global_rope_theta": [50.0],
    "local_rope_theta": [50.0], "rotary_value": [], "rotary_emb_fraction": [0.5],
    **{key: ["relu", "silu", "gelu_new"] for key in ACTIVATION_KEYS},
    "final_logit_softcapping": [3.0], "attn_logit_softcapping": [3.0], "query_pre_attn_scalar": [7], "logit_scale": [0.25],
    "logits_scaling": [8.0], "residual_multiplier": [0.3], "embedding_multiplier": [12.0], "attention_multiplier": [0.3],
    "tie_word_embeddings": [], "scale_attn_weights": [], "scale_attn_by_inverse_layer_idx": [], "multi_query": [],
    "reorder_and_upcast_attn": [], "parallel_attn": [], "use_parallel_residual": [], "qk_layernorm": [], "use_qk_norm": [],
    "position_embedding_type": ["relative_key", "rotary", "absolute"], "is_decoder": [], "add_cross_attention": [],
    "head_dim": [4, 6, 8], "num_key_value_heads": [], "no_rope_layers": [[0, 1], [1, 0]], "no_rope_layer_interval": [],
    "clip_qkv": [0.1], "alibi": [], "use_swiglu_ffn": [], "layerscale_value": [0.1], "layer_scale_init_value": [0.1],
    "use_bidirectional_attention": [], "is_causal": [], "attn_config": [{"alibi": True}], "attention_chunk_size": [2],
    "num_experts": [], "num_local_experts": [4], "scale_embeddings": [], "scale_embedding": [], "normalize_embedding": [],
    "do_layer_norm_before": [], "pre_norm": [], "final_norm": [], "use_cls_token": [], "pooling_mode": ["cls"],
    "per_layer_config": [{"1": {"hidden_act": "relu"}}, {"0": {"sliding_window": 2}}], "quantization_config": [{}, {"bits": 4}],
    "chunk_size_feed_forward": [3], "pruned_heads": [{"0": [1]}, {}], "dtype": ["float16", "bfloat16"], "torch_dtype": ["float16"],
    "is_encoder_decoder": [], "output_attentions": [], "output_hidden_states": [], "return_dict": [], "use_cache": [],
    "tie_encoder_decoder": [], "torchscript": [], "use_bfloat16": [], "auto_map": [{}, {"AutoModel": "x--y.Z"}],
    "num_labels": [3], "id2label": [{"0": "a", "1": "b", "2": "c"}], "label2id": [{"a": 0}], "problem_type": ["regression"],
    "embedding_size": [4], "type_vocab_size": [], "num_channels": [], "text_config": [{"hidden_act": "relu"}],
    "vision_config": [{"hidden_act": "relu"}], "decoder_layers": [], "word_embed_proj_dim": [4], "hidden_size": [],
    "mup_width_multiplier": [2.0], "lm_head_multiplier": [2.0], "key_multiplier": [2.0], "dropout": [0.5],
    "attn_implementation": ["eager", "flash_attention_2"], "_attn_implementation": ["sdpa"], "_name_or_path": ["a/b"],
    "transformers_version": ["4.0.0"], "tokenizer_class": ["x"], "gradient_checkpointing": [], "adapters": [{"a": 1}],
    "task_specific_params": [{"a": {}}], "bos_token_id": [5], "eos_token_id": [5], "unk_token_id": [5], "pad_token_id": [5, -1],
    "temperature": [0.5], "max_length": [7], "something_new": [],
}
# Models whose table is a smaller one, one of each family.
REDUCED = """
    arcee granite starcoder2 smollm3 gemma3_text glm glm4 helium olmo stablelm phi cohere neox gptj falcon mpt bloom opt neo
    electra albert camembert mpnet esm nomic clip-text siglip-text clip-vision siglip-vision clip-classes siglip-classes
    dinov2-registers deit vit-msn ijepa
""".split()
LESS = [None, False, True, 0, 1, 2, 0.5, "x"]
EACH = ["drop", "negate", "zero"]
ROPES = {
    "default": {}, "linear": dict(factor=2.0), "dynamic": dict(factor=2.0),
    "yarn": dict(factor=2.0, original_max_position_embeddings=6),
    "longrope": dict(factor=2.0, short_factor=[1.5], long_factor=[2.0], original_max_position_embeddings=6),
    "llama3": dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8),
    "proportional": dict(factor=2.0), "su": dict(short_factor=[1.5], long_factor=[2.0]), "mrope": dict(mrope_section=[1]),
    "x": {}, "": {},
}
ROPE_KEYS = ["rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast",
             "beta_slow", "mscale", "mscale_all_dim", "truncate", "short_factor", "long_factor", "partial_rotary_factor",
             "original_max_position_embeddings", "finetuned", "mrope_section"]
ROPE_VALUES = [None, False, True, 0, 1, 2, 0.5, 3.0, -1.0, 50.0, "x", "linear", "default", [], [1.5], [1.5, 2.5], [1.5, 2.5, 3.5], {}]


def classes(family):
    """The names of the classes of a family, and of some that are not its."""
    stem = family.replace("_", "").replace("-", "")
    return [name for name in dir(t) if name.lower().startswith(stem)
            and any(part in name for part in ["For", "Model"]) and "PreTrained" not in name]


def numbers(value):
    """Values near a number."""
    near = [value + 1, value - 1, value * 2, value / 2, float(value), str(value)]
    if isinstance(value, int):
        return near + [value // 2]
    return near + [0.0, -value, 1e-5, 1e-3, 0.1, 10.0, 1e30, int(value)]


def values(key, value, family):
    """What a key of the family itself may say."""
    found = list(KINDS)
    if isinstance(value, bool):
        found += [not value]
    elif isinstance(value, int | float):
        found += numbers(value)
    if key in ACTIVATION_KEYS:
        found += ACTIVATIONS
        if key == "feed_forward_proj":
            found += [f"gated-{name}" for name in ACT2FN] + ["gated-gated-gelu", "gelu-gated", "x-gelu"]
    if key == "architectures":
        found += [[name] for name in classes(family)] + [["x"], ["LlamaForCausalLM"], ["BertModel"], ["AutoModel"]]
        found += [[*value, "x"], ["x", *value], [*value, *value], [None], value[0]]
    if key == "model_type":
        found += list(LIBRARY["families"])
    if key == "layer_types":
        names = ["full_attention", "sliding_attention"]
        found += [list(pair) for n in [1, 2, 3] for pair in itertools.product(names, repeat=n)]
        found += [[name] * n for n in [2, 3] for name in ["attention", "chunked_attention", "linear_attention", "x", None]]
    if key == "position_embedding_type":
        found += ["absolute", "relative_key", "relative_key_query", "rotary"]
    if key == "classifier_pooling":
        found += ["cls", "mean"]
    if key == "id2label":
        found += [{str(i): "x" for i in range(n)} for n in [1, 2, 3, 4]] + [{"a": "b"}]
    return found + FOREIGN.get(key, [])


def as_json(value):
    return json.dumps(value, separators=(",", ":"))


def unique(many):
    seen = {}
    for one in many:
        seen.setdefault(as_json(one), one)
    return list(seen.values())


class Timeout(BaseException):
    pass


def alarm(*_):
    raise Timeout


class Subject:
    """A model, and the directory that its changes are written to."""

    def __init__(self, name, model, where):
        self.name, self.where, self.outcomes = name, where, []
        self.model_type = model.config.model_type
        model.save_pretrained(where)
        self.tensors = load_file(os.path.join(where, "model.safetensors"))
        with open(os.path.join(where, "config.json")) as file:
            self.config = json.load(file)
        self.config.pop("dtype", None)
        self.tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
        g = torch.Generator().manual_seed(1)
        if model.main_input_name == "pixel_values":
            self.given = dict(pixel_values=(torch.randn(2, 3, 8, 8, generator=g).double() * 100).round() / 100)
        else:
            longest = getattr(model.config, "max_position_embeddings", 12)
            if self.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet", "esm"):
                longest -= 2
            if self.model_type == "phi3":
                longest = model.config.original_max_position_embeddings
            if self.model_type == "t5":
                longest = 12
            self.given = dict(input_ids=torch.randint(2, V, (2, longest), generator=g))

    def write(self, config, tensors):
        with open(os.path.join(self.where, "config.json"), "w") as file:
            json.dump(config, file)
        if tensors is not self.written:
            save_file(tensors, os.path.join(self.where, "model.safetensors"), metadata=dict(format="pt"))
            self.written = tensors

    written = None

    def load(self, config, seed):
        torch.manual_seed(seed)
        names = config.get("architectures")
        model = t.AutoModel if not names else getattr(t, names[0])
        if config.get("model_type") == "t5" and names and names[0] in ("T5ForConditionalGeneration", "T5Model"):
            model = t.T5EncoderModel
        if hasattr(model, "config_class"):
            # Sizes that nobody says, or that are called something else in another family, stay as large as by default.
            meant = model.config_class.from_dict(json.loads(json.dumps(config)))
            if meant.model_type != self.model_type and meant.sub_configs or self.name in REDUCED and any(
                    isinstance(size := getattr(one, key, None), int) and size > 499
                    for one in [meant, *(getattr(meant, key) for key in meant.sub_configs
                                         if key != "text_config" or "ForImageClassification" not in model.__name__)]
                    for key in ["hidden_size", "vocab_size", "intermediate_size", "ffn_dim", "embedding_size"]):
                raise ValueError("no weights are so large")
            if meant.model_type != self.model_type and getattr(meant, "hidden_size", 0) > 64:
                raise ValueError("no weights are so large")
        model, info = model.from_pretrained(self.where, dtype=torch.float64, attn_implementation="eager", output_loading_info=True)
        return model.eval(), info

    def output(self, model):
        with torch.no_grad():
            result = model(**self.given)
        if isinstance(result, tuple):
            return result[0]
        if type(model).__name__ == "ElectraForPreTraining":
            return result.logits[..., None]
        if hasattr(result, "start_logits"):
            return torch.stack([result.start_logits, result.end_logits], -1)
        for name in ["logits", "prediction_logits", "image_embeds", "text_embeds"]:
            if hasattr(result, name):
                return getattr(result, name)
        return result.last_hidden_state

    def attempt(self, config):
        """The output, or nothing where the library refuses."""
        model, info = self.load(config, 1)
        output = self.output(model)
        if not output.is_floating_point() or not output.isfinite().all() or info["mismatched_keys"]:
            return None
        # Rotary frequencies are not made up: the library works them out.
        missing = {name for name in info["missing_keys"] if not name.endswith("inv_freq")}
        if missing:
            # Weights that are made up, and may not matter.
            changed = False
            with torch.no_grad():
                for name, p in [*model.named_parameters(), *model.named_buffers()]:
                    if name in missing:
                        changed = True
                        p.copy_(torch.randn(p.shape, dtype=torch.float64))
            if not changed or not torch.equal(self.output(model), output):
                return None
        return output

    def outcome(self, config, tensors=None):
        tensors = self.tensors if tensors is None else tensors
        signal.setitimer(signal.ITIMER_REAL, 20)
        try:
            self.write(config, tensors)
            output = self.attempt(config)
            if output is None:
                return -1
            found = self.number(output)
        except Timeout:
            print(f"{self.name}: takes too long: {config}", file=sys.stderr)
            return -1
        except Exception:
            return -1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return found

    def number(self, output):
        """Where an output is among the outcomes."""
        flat = output.double().flatten()
        i = torch.arange(flat.numel(), dtype=torch.float64)
        sums = [(flat * torch.cos(k * i + k)).sum().item() for k in range(1, 7)]
        norm = flat.norm().item()
        if not math.isfinite(norm):
            return -1
        for number, (shape, size, known) in enumerate(self.outcomes):
            if shape == list(output.shape) and max(abs(a - b) for a, b in zip([size, *known], [norm, *sums])) <= 1e-9 * (norm + 1e-30):
                return number
        self.outcomes.append((list(output.shape), norm, sums))
        return len(self.outcomes) - 1

    def changed(self, changes, removed=()):
        return changed(self.config, changes, removed)


def changed(config, changes, removed=()):
    """A config with other values; a dot leads into a value."""
    config = json.loads(json.dumps(config))
    for key, value in [*json.loads(json.dumps(changes)).items(), *((key, MISSING) for key in removed)]:
        inside, last = config, key
        while "." in last and isinstance(inside.get(last.split(".")[0]), dict):
            first, last = last.split(".", 1)
            inside = inside[first]
        if value is MISSING:
            inside.pop(last, None)
        else:
            inside[last] = value
    return config


def apply(tensors, operations):
    tensors = dict(tensors)
    for kind, *names in operations:
        if kind == "copy":
            tensors[names[1]] = tensors[names[0]].clone()
        elif kind == "negate":
            tensors[names[0]] = -tensors[names[0]]
        elif kind == "zero":
            tensors[names[0]] = torch.zeros_like(tensors[names[0]])
        elif kind == "drop":
            del tensors[names[0]]
        elif kind == "rename":
            tensors = {name.replace(*names): x for name, x in tensors.items()}
        elif kind == "prefix":
            tensors = {names[0] + name: x for name, x in tensors.items()}
        elif kind == "strip":
            tensors = {name.removeprefix(names[0]): x for name, x in tensors.items()}
    return tensors


def rope_sets(subject):
    """Rotary positions in both spellings, each key of them changed."""
    config = subject.config
    turned = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    own = config["rope_parameters"]

    def sized(parameters):
        return {k: v * (turned // 2) if k in ("short_factor", "long_factor") and len(v) == 1 else v for k, v in parameters.items()}

    def spellings(parameters, kind):
        legacy = {k: v for k, v in parameters.items() if k != "rope_theta"}
        theta = {"rope_theta": parameters["rope_theta"]} if "rope_theta" in parameters else {}
        yield {"rope_parameters": {"rope_type": kind, **parameters}}, []
        yield {"rope_scaling": {"type": kind, **legacy}, **theta}, ["rope_parameters"]
        yield {"rope_scaling": {"rope_type": kind, **legacy}, **theta}, ["rope_parameters"]

    for kind, parameters in ROPES.items():
        yield from spellings(sized({"rope_theta": 100.0, **parameters}), kind)
        yield from spellings(sized(parameters), kind)
    if any(isinstance(value, dict) for value in own.values()):
        for part in own:
            yield {"rope_parameters": own[part]}, []
            yield {"rope_parameters": {part: own[part]}}, []
            yield {"rope_parameters": {**own, part: None}}, []
        yield {"rope_parameters": {**own, "x": {}}}, []
        return
    for outer, inner in [("rope_theta", 50.0), ("partial_rotary_factor", 0.5), ("original_max_position_embeddings", 5)]:
        yield {outer: inner}, []
        yield {outer: inner}, ["rope_parameters"]
        yield {outer: inner, "rope_parameters": {**own, outer: 25 if outer == "rope_theta" else inner}}, []
    yield {"rope_scaling": {"type": "linear", "factor": 2.0}}, []
    yield {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}, []
    yield {"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 2.0}}, []
    yield {"rope_scaling": {"type": "dynamic", "rope_type": "linear", "factor": 2.0}}, ["rope_parameters"]
    yield {"rope_scaling": None, "rope_theta": 50.0}, ["rope_parameters"]
    yield {"rope_scaling": {}, "rope_theta": 50.0}, ["rope_parameters"]
    yield {"rope_scaling": {"factor": 2.0}, "rope_theta": 50.0}, ["rope_parameters"]
    yield {"rope_parameters": {"full_attention": own, "sliding_attention": {**own, "rope_theta": 50.0}}}, []


def reduced_values(key, value, family):
    """The smaller table of what a key of the family itself may say."""
    if key == "architectures":
        return values(key, value, family)
    found = list(LESS)
    if isinstance(value, int | float) and not isinstance(value, bool):
        found += [value + 1, value - 1, value * 2]
    if key in ACTIVATION_KEYS:
        found += ACTIVATIONS
    if key == "model_type":
        found += random.Random(family).sample(list(LIBRARY["families"]), 6)
    if key == "mask_token_id":
        found.remove(2)  # A token of the input, which the importer takes to have no mask.
    return found + FOREIGN.get(key, [])


def reduced_weight_sets(subject):
    """The smaller table of operations on the tensors."""
    extra = ["lm_head.weight", "classifier.weight", "score.weight", "embeddings.position_ids", "model.norm.bias"]
    for operations, changes in weight_sets(subject):
        kinds = {kind for kind, *_ in operations}
        if "zero" in kinds or "negate" in kinds and "copy" not in kinds:
            continue
        if kinds == {"copy"} and operations[0][1] == next(iter(subject.tensors)) and operations[0][2] not in [*extra, *subject.tied]:
            continue
        if operations and changes == {"tie_word_embeddings": None}:
            continue
        if kinds == {"drop"} and ".1." in operations[0][1]:
            continue  # All layers are alike.
        if kinds == {"prefix"} and operations[0][1] not in ("model.", "x."):
            continue
        yield operations, changes


def weight_sets(subject):
    """Operations on the tensors, and changes to the config."""
    ties = [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}, {"tie_word_embeddings": None}]
    yield from (([], tie) for tie in ties)
    pairs = dict(subject.tied)
    if not pairs:
        for head, table in [("lm_head.weight", "model.embed_tokens.weight"), ("lm_head.weight", "transformer.wte.weight"),
                            ("encoder.embed_tokens.weight", "shared.weight")]:
            if table in subject.tensors:
                pairs[head] = table
    for head, table in pairs.items():
        have = [] if head in subject.tensors else [["copy", table, head]]
        for tie in ties:
            yield have, tie
            yield [*have, ["negate", head]], tie
            yield [*have, ["zero", head]], tie
            yield [["copy", table, head]], tie
            yield [["copy", table, head], ["negate", table]], tie
            yield [["copy", table, head], ["drop", table]], tie
            yield [["drop", table]], tie
            if head in subject.tensors:
                yield [["drop", head]], tie
    if len(pairs) > 1:
        every = [["copy", table, head] for head, table in pairs.items()]
        for tie in ties:
            yield every, tie
            yield [*every, *(["negate", head] for head in pairs)], tie
    some = next(iter(subject.tensors))
    for extra in ["extra.weight", "lm_head.weight", "lm_head.bias", "classifier.weight", "score.weight", "h.0.attn.bias",
                  "transformer.h.0.attn.masked_bias", "model.layers.0.self_attn.rotary_emb.inv_freq", "embeddings.position_ids",
                  "bert.embeddings.position_ids", "model.layers.2.self_attn.q_proj.weight", "pooler.dense.weight",
                  "cls.predictions.decoder.bias", "lm_head.decoder.bias", "decoder.embed_tokens.weight", "model.norm.bias"]:
        if extra not in subject.tensors:
            yield [["copy", some, extra]], {}
    for name in subject.tensors:
        for operation in EACH:
            yield [[operation, name]], {}
    for prefix in ["model.", "transformer.", "bert.", "roberta.", "distilbert.", "module.", "encoder.", "vit.", "dinov2.", "x."]:
        yield [["prefix", prefix]], {}
        if any(name.startswith(prefix) for name in subject.tensors):
            yield [["strip", prefix]], {}
    yield [["rename", "LayerNorm.weight", "LayerNorm.gamma"], ["rename", "LayerNorm.bias", "LayerNorm.beta"]], {}
    yield [["rename", "weight", "kernel"]], {}
    yield [["rename", "0", "1"]], {}


def grouped(keys):
    """Keys with the same outcomes for the same values, together."""
    groups = {}
    for key, pairs in sorted(keys.items()):
        short = [as_json(v) for v in [*FEW, *KINDS]]
        for part in [[p for p in pairs if as_json(p[0]) in short], [p for p in pairs if as_json(p[0]) not in short]]:
            by = {}
            for value, outcome in part:
                by.setdefault(outcome, []).append(value)
            if by:
                groups.setdefault(as_json(by), ([], by))[0].append(key)
    return list(groups.values())


def study(name, model, out):
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as where:
        subject = Subject(name, model, where)
        assert subject.outcome(subject.config) == 0, f"{name}: the library does not run the model itself"
        config, family = subject.config, LIBRARY["families"][subject.model_type]
        mine = {*config, *family["defaults"], *family["aliases"], *LIBRARY["base"], "rope_theta", "rope_scaling"}
        others = {*family["reads"], *FOREIGN} - mine
        less, dice = name in REDUCED, random.Random(name)
        if less:
            mine = {key for key in sorted(mine) if key not in LIBRARY["base"] or key in family["reads"] or dice.random() < 0.3}
            others = {key for key in sorted(others) if key in family["reads"] or dice.random() < 0.35}
        full = not any(part in name for part in ["-classes", "-linear", "-yarn", "-model", "-swiglu", "-full", "-multi", "-pretraining"])
        keys, missing = {}, {}

        def give(key, wanted, base, keys, missing):
            value = base
            for part in key.split("."):
                value = value.get(part, MISSING) if isinstance(value, dict) else MISSING
            wanted = [v for v in unique(wanted) if value is MISSING or as_json(v) != as_json(value)]
            keys[key] = [[v, subject.outcome(changed(base, {key: v}))] for v in wanted]
            if value is not MISSING:
                missing[key] = subject.outcome(changed(base, {}, [key]))

        for key in sorted(mine):
            value = config.get(key, family["defaults"].get(key))
            if less:
                wanted = reduced_values(key, value, subject.model_type)
            elif full or key == "architectures":
                wanted = values(key, value, subject.model_type)
            else:
                wanted = [*FEW, *(numbers(value) if isinstance(value, int | float) and not isinstance(value, bool) else [])]
            give(key, wanted, config, keys, missing)
        for key in sorted(others):
            give(key, [*(FEW if full and not less else [True]), *FOREIGN.get(key, [])], config, keys, missing)
        for part in ["text_config", "vision_config"]:
            inner = config.get(part, {})
            for key in sorted({*inner, *LIBRARY["families"].get(f"{subject.model_type}_{part[:-7]}_model", {}).get("reads", ())}):
                near = inner.get(key)
                give(f"{part}.{key}", reduced_values("" if key in ("architectures", "model_type") else key, near, subject.model_type),
                     config, keys, missing)
        legacy = None
        if "rope_parameters" in config:
            own = config["rope_parameters"]
            nested = any(isinstance(value, dict) for value in own.values())
            every = subject.name in ("llama", "llama-linear", "llama-yarn", "phi3", "gemma2", "modernbert")
            for part in own if nested else [None]:
                for key in ROPE_KEYS if not less else dice.sample(ROPE_KEYS[3:], 3) + ROPE_KEYS[:3] + ["partial_rotary_factor"]:
                    path = ".".join(["rope_parameters", *([part] if part else []), key])
                    give(path, ROPE_VALUES if every else FEW, config, keys, missing)
            if not nested:
                outer = {"rope_theta": own["rope_theta"]} if "rope_theta" in own else {}
                scaling = {k: v for k, v in own.items() if k not in ("rope_theta", "rope_type")}
                before = changed(config, {"rope_scaling": {"type": own["rope_type"], **scaling}, **outer}, ["rope_parameters"])
                legacy = dict(config=before, keys={}, missing={})
                inside = [f"rope_scaling.{key}" for key in (ROPE_KEYS if not less else ["type", "rope_theta"])]
                for key in ["rope_scaling", "rope_theta", "partial_rotary_factor", *inside]:
                    give(key, [*(ROPE_VALUES if every else FEW)], before, legacy["keys"], legacy["missing"])
        sets, seen = [], set()

        def add(changes, removed):
            if as_json([changes, removed]) not in seen:
                seen.add(as_json([changes, removed]))
                text = json.loads(json.dumps(changes))
                sets.append([text, removed, subject.outcome(subject.changed(changes, removed))])

        if "rope_parameters" in config:
            many = list(rope_sets(subject))
            for changes, removed in dice.sample(many, min(20, len(many))) if less else many:
                add(changes, removed)
        # Several keys at once, of those that the library takes alone.
        dice = random.Random(name)
        single = [(key, v, outcome) for key, pairs in keys.items() if "." not in key for v, outcome in pairs]
        taken = [(key, v) for key, v, outcome in single if outcome >= 0]
        moving = [(key, v) for key, v, outcome in single if outcome > 0] or taken
        for _ in range(6 if less else 12):
            chosen = dict(dice.sample(moving, min(len(moving), dice.choice([1, 2]))) + dice.sample(taken, dice.choice([1, 2, 3])))
            removed = dice.sample([key for key, outcome in missing.items() if outcome >= 0 and "." not in key], dice.choice([0, 1, 2]))
            add(chosen, sorted(set(removed) - set(chosen)))
        weights, each, seen = [], {}, set()
        for operations, changes in (reduced_weight_sets if less else weight_sets)(subject):
            if as_json([operations, changes]) in seen:
                continue
            seen.add(as_json([operations, changes]))
            try:
                tensors = apply(subject.tensors, operations)
            except KeyError:
                continue
            outcome = subject.outcome(subject.changed(changes), tensors)
            if len(operations) == 1 and not changes and operations[0][0] in EACH:
                each.setdefault(operations[0][1], [-1] * (1 if less else len(EACH)))[EACH.index(operations[0][0])] = outcome
            else:
                weights.append([operations, changes, outcome])
        save_file(subject.tensors, os.path.join(out, f"{name}.safetensors"))
    inputs = {"tokens": model_tokens} if (model_tokens := subject.given.get("input_ids")) is not None else \
        {"pixels": subject.given["pixel_values"]}
    (kind, given), = inputs.items()
    short = [[shape, *(float(f"{x:.7g}") for x in [norm, *sums])] for shape, norm, sums in subject.outcomes]
    parts = [f'"transformers":{as_json(t.__version__)}', f'"config":{as_json(config)}', f'"{kind}":{as_json(given.tolist())}',
             f'"outcomes":{as_json(short)}',
             f'"keys":{as_json(grouped(keys))}', f'"missing":{as_json(missing)}', f'"sets":{as_json(sets)}',
             f'"each":{as_json(each)}', f'"weights":{as_json(weights)}']
    if legacy:
        parts.append(f'"legacy":{as_json({**legacy, "keys": grouped(legacy["keys"])})}')
    with open(os.path.join(out, f"{name}.json"), "w") as file:
        file.write("{" + ",\n".join(parts) + "}\n")
    every = [s[-1] for s in sets + weights]
    every += [outcome for outcomes in each.values() for outcome in outcomes]
    for table in [dict(keys=keys, missing=missing), *([legacy] if legacy else [])]:
        every += [o for pairs in table["keys"].values() for _, o in pairs] + list(table["missing"].values())
    print(f"{name}: {len(every)} cases, {every.count(-1)} refused, {every.count(0)} as the model itself, "
          f"{len(subject.outcomes)} outcomes", flush=True)


def main(out, only):
    signal.signal(signal.SIGALRM, alarm)
    os.makedirs(out, exist_ok=True)
    for seed, (name, model, _) in enumerate(base_models()):
        if not only or name in only:
            scramble(model, seed)
            if name in REDUCED:
                model.to(torch.bfloat16)
            study(name, model.eval(), out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
