"""The small random models of the golden data, and what they read."""

import torch
import transformers as t

V, D, H, F = 9, 8, 2, 6  # vocabulary, width, heads, hidden width
TEXT = dict(vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=2, num_attention_heads=H,
            max_position_embeddings=12, attn_implementation="eager")
NO_IDS = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)


def rope(kind, **more):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=100.0, **more))


def scramble(model, seed):
    """Weights of a size that matters: matrices of norm about 1.5, gains away from 1, biases away from 0."""
    g = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        x = torch.randn(p.shape, generator=g)
        if p.dim() == 1:
            x = (1 if "norm" in name.lower() or "ln_" in name else 0) + 0.3 * x
            if name.endswith("bias"):
                x = 0.3 * torch.randn(p.shape, generator=g)
        elif "embed" in name or "wte" in name or "wpe" in name or "shared" in name or "relative" in name:
            x = 0.7 * x
        else:
            x = x / p.shape[-1] ** 0.5
        with torch.no_grad():
            p.copy_(x)


def text_models():
    c = t.AutoConfig
    yield "gpt2", t.GPT2LMHeadModel(t.GPT2Config(vocab_size=V, n_embd=D, n_head=H, n_layer=2, n_positions=9, **NO_IDS)), {}
    yield "gpt2-quick", t.GPT2LMHeadModel(t.GPT2Config(
        vocab_size=V, n_embd=D, n_head=H, n_layer=2, n_positions=9, n_inner=11, activation_function="quick_gelu",
        scale_attn_by_inverse_layer_idx=True, tie_word_embeddings=False, **NO_IDS)), {}
    yield "bigcode", t.GPTBigCodeForCausalLM(t.GPTBigCodeConfig(
        vocab_size=V, n_embd=D, n_head=H, n_layer=2, n_positions=9, multi_query=False, **NO_IDS)), {}
    yield "llama", t.LlamaForCausalLM(t.LlamaConfig(
        **TEXT, num_key_value_heads=1, attention_bias=True, mlp_bias=True,
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8))), {}
    yield "llama-linear", t.LlamaForCausalLM(t.LlamaConfig(**TEXT, **rope("linear", factor=4.0))), dict(max_shard_size="1KB")
    yield "llama-yarn", t.LlamaForCausalLM(t.LlamaConfig(
        **{**TEXT, "hidden_size": 16}, **rope("yarn", factor=4.0, original_max_position_embeddings=8))), {}
    yield "mistral", t.MistralForCausalLM(t.MistralConfig(
        **TEXT, num_key_value_heads=1, head_dim=6, sliding_window=3, **rope("default"))), {}
    yield "qwen2", t.Qwen2ForCausalLM(t.Qwen2Config(
        **TEXT, num_key_value_heads=1, use_sliding_window=True, sliding_window=2, max_window_layers=1,
        tie_word_embeddings=True, **rope("default"))), {}
    yield "qwen3", t.Qwen3ForCausalLM(t.Qwen3Config(**TEXT, num_key_value_heads=1, head_dim=6, **rope("default"))), {}
    yield "phi3", t.Phi3ForCausalLM(t.Phi3Config(
        **TEXT, num_key_value_heads=1, sliding_window=4, original_max_position_embeddings=10, **NO_IDS,
        **rope("longrope", short_factor=[1.1, 1.7], long_factor=[2.0, 3.0], original_max_position_embeddings=10))), {}
    yield "gemma", t.GemmaForCausalLM(t.GemmaConfig(**TEXT, num_key_value_heads=1, head_dim=6, **NO_IDS, **rope("default"))), {}
    yield "gemma2", t.Gemma2ForCausalLM(t.Gemma2Config(
        **TEXT, num_key_value_heads=1, head_dim=6, query_pre_attn_scalar=3, sliding_window=2, attn_logit_softcapping=1.5,
        final_logit_softcapping=4.0, **NO_IDS, **rope("default"))), {}
    yield "olmo2", t.Olmo2ForCausalLM(t.Olmo2Config(**TEXT, num_key_value_heads=1, **NO_IDS, **rope("default"))), {}
    yield "bert", t.BertModel(t.BertConfig(**TEXT, pad_token_id=None)), {}
    yield "bert-mlm", t.BertForMaskedLM(t.BertConfig(**TEXT, pad_token_id=None)), {}
    yield "bert-classes", t.BertForSequenceClassification(t.BertConfig(**TEXT, num_labels=3, pad_token_id=None)), {}
    yield "roberta", t.RobertaForMaskedLM(t.RobertaConfig(**TEXT, pad_token_id=1)), {}
    yield "roberta-classes", t.RobertaForSequenceClassification(t.RobertaConfig(**TEXT, num_labels=3, pad_token_id=1)), {}
    yield "xlm-roberta", t.XLMRobertaModel(t.XLMRobertaConfig(**TEXT, pad_token_id=1)), {}
    distil = t.DistilBertConfig(vocab_size=V, dim=D, n_heads=H, hidden_dim=F, n_layers=2, max_position_embeddings=12,
                                pad_token_id=None)
    yield "distilbert", t.DistilBertForMaskedLM(distil), {}
    distil = t.DistilBertConfig(vocab_size=V, dim=D, n_heads=H, hidden_dim=F, n_layers=2, max_position_embeddings=12,
                                num_labels=3, pad_token_id=None)
    yield "distilbert-classes", t.DistilBertForSequenceClassification(distil), {}
    modern = dict(**{k: v for k, v in TEXT.items() if k != "attn_implementation"}, num_labels=3, local_attention=4,
                  global_attn_every_n_layers=2, attn_implementation="eager", **{**NO_IDS, "pad_token_id": 0},
                  cls_token_id=None, sep_token_id=None)
    modern["num_hidden_layers"] = 3
    yield "modernbert", t.ModernBertForMaskedLM(t.ModernBertConfig(**modern)), {}
    t5 = dict(vocab_size=V, d_model=D, d_kv=3, d_ff=F, num_layers=2, num_heads=H, relative_attention_num_buckets=8,
              relative_attention_max_distance=6)
    yield "t5", t.T5EncoderModel(t.T5Config(**t5)), {}
    yield "t5-gated", t.T5EncoderModel(t.T5Config(**t5, feed_forward_proj="gated-gelu")), {}


def image_models():
    vit = dict(hidden_size=D, intermediate_size=F, num_hidden_layers=2, num_attention_heads=H, image_size=8, patch_size=4,
               num_channels=3)
    yield "vit", t.ViTForImageClassification(t.ViTConfig(**vit, num_labels=3)), {}
    yield "vit-model", t.ViTModel(t.ViTConfig(**vit, qkv_bias=False)), {}
    dino = dict(hidden_size=D, mlp_ratio=2, num_hidden_layers=2, num_attention_heads=H, image_size=8, patch_size=4, num_channels=3)
    yield "dinov2", t.Dinov2ForImageClassification(t.Dinov2Config(**dino, num_labels=3)), {}
    yield "dinov2-swiglu", t.Dinov2Model(t.Dinov2Config(**dino, use_swiglu_ffn=True)), {}


def inputs(model, generator):
    """What a model is given: token ids, none of them one that pads, or pictures."""
    if not hasattr(model.config, "image_size"):
        return dict(tokens=torch.randint(2, V, (2, 7), generator=generator))
    return dict(pixels=torch.randn(2, 3, 8, 8, generator=generator))


def run(model, given):
    """The output that a model is imported for."""
    with torch.no_grad():
        if "pixels" in given:
            result = model(pixel_values=given["pixels"].double())
        else:
            result = model(input_ids=given["tokens"])
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


def base_models():
    """All models, and some that the golden data has no directory of."""
    yield from text_models()
    yield from image_models()
    yield "bigcode-multi", t.GPTBigCodeForCausalLM(t.GPTBigCodeConfig(
        vocab_size=V, n_embd=D, n_head=H, n_layer=2, n_positions=9, multi_query=True, **NO_IDS)), {}
    yield "t5-full", t.T5ForConditionalGeneration(t.T5Config(
        vocab_size=V, d_model=D, d_kv=3, d_ff=F, num_layers=2, num_heads=H, relative_attention_num_buckets=8,
        relative_attention_max_distance=6)), {}
    yield "bert-pretraining", t.BertForPreTraining(t.BertConfig(**TEXT, pad_token_id=None)), {}
