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
        if name in (getattr(model, "_keys_to_ignore_on_save", None) or ()):
            continue  # what is not saved is as the library makes it
        if p.dim() == 1:
            x = (1 if "norm" in name.lower() or "ln_" in name else 0) + 0.3 * x
            if name.endswith("bias"):
                x = 0.3 * torch.randn(p.shape, generator=g)
        elif p.dim() == 0:
            x = 0.3 * x
        elif "embed" in name or "wte" in name or "wpe" in name or "shared" in name or "relative" in name:
            x = 0.7 * x
        else:
            x = x / p.shape[-1] ** 0.5
        with torch.no_grad():
            p.copy_(x)


def decoders():
    """Decoders beside Llama and GPT-2."""
    yield "llama-classes", t.LlamaForSequenceClassification(t.LlamaConfig(
        **TEXT, num_labels=3, **{**NO_IDS, "pad_token_id": 0}, **rope("default"))), {}
    yield "llama-token-classes", t.LlamaForTokenClassification(t.LlamaConfig(
        **TEXT, num_labels=3, **NO_IDS, **rope("default"))), {}
    yield "llama-answers", t.LlamaForQuestionAnswering(t.LlamaConfig(**TEXT, **NO_IDS, **rope("default"))), {}
    gpt2 = dict(vocab_size=V, n_embd=D, n_head=H, n_layer=2, n_positions=9, num_labels=3, **{**NO_IDS, "pad_token_id": 0})
    yield "gpt2-classes", t.GPT2ForSequenceClassification(t.GPT2Config(**gpt2)), {}
    yield "gpt2-token-classes", t.GPT2ForTokenClassification(t.GPT2Config(**gpt2)), {}
    yield "arcee", t.ArceeForCausalLM(t.ArceeConfig(**TEXT, num_key_value_heads=1, mlp_bias=True, **NO_IDS, **rope("default"))), {}
    yield "granite", t.GraniteForCausalLM(t.GraniteConfig(
        **TEXT, num_key_value_heads=1, embedding_multiplier=1.5, residual_multiplier=0.7, attention_multiplier=0.3,
        logits_scaling=2.5, **NO_IDS, **rope("default"))), {}
    yield "starcoder2", t.Starcoder2ForCausalLM(t.Starcoder2Config(
        **TEXT, num_key_value_heads=1, sliding_window=3, **NO_IDS, **rope("default"))), {}
    yield "starcoder2-no-bias", t.Starcoder2Model(t.Starcoder2Config(**TEXT, use_bias=False, **NO_IDS, **rope("default"))), {}
    smol = {**TEXT, "num_hidden_layers": 4}
    yield "smollm3", t.SmolLM3ForCausalLM(t.SmolLM3Config(
        **smol, num_key_value_heads=1, use_sliding_window=True, sliding_window=2, **NO_IDS, **rope("default"))), {}
    yield "smollm3-listed", t.SmolLM3ForCausalLM(t.SmolLM3Config(
        **TEXT, num_key_value_heads=2, no_rope_layers=[0, 1], mlp_bias=True, **NO_IDS,
        **rope("yarn", factor=2.0, original_max_position_embeddings=6))), {}
    gemma3 = dict(**TEXT, num_key_value_heads=1, head_dim=6, query_pre_attn_scalar=3, sliding_window=2, **NO_IDS)
    yield "gemma3_text", t.Gemma3ForCausalLM(t.Gemma3TextConfig(
        **gemma3, final_logit_softcapping=4.0, layer_types=["sliding_attention", "full_attention"], rope_parameters=dict(
            full_attention=dict(rope_type="linear", factor=4.0, rope_theta=100.0),
            sliding_attention=dict(rope_type="yarn", factor=2.0, original_max_position_embeddings=6, rope_theta=30.0)))), {}
    gemma3["num_hidden_layers"] = 3
    yield "gemma3_text-pattern", t.Gemma3TextModel(t.Gemma3TextConfig(**gemma3, sliding_window_pattern=3)), {}
    glm = dict(**TEXT, num_key_value_heads=1, head_dim=8, **NO_IDS)
    yield "glm", t.GlmForCausalLM(t.GlmConfig(**glm, **rope("default", partial_rotary_factor=0.5))), {}
    yield "glm4", t.Glm4ForCausalLM(t.Glm4Config(**glm, attention_bias=False, **rope("default", partial_rotary_factor=0.25))), {}
    yield "helium", t.HeliumForCausalLM(t.HeliumConfig(**TEXT, num_key_value_heads=1, head_dim=4, **NO_IDS, **rope("default"))), {}
    yield "olmo", t.OlmoForCausalLM(t.OlmoConfig(**TEXT, num_key_value_heads=1, **NO_IDS, **rope("default"))), {}
    half = rope("default", partial_rotary_factor=0.5)
    yield "stablelm", t.StableLmForCausalLM(t.StableLmConfig(**TEXT, num_key_value_heads=1, use_qkv_bias=True, **NO_IDS, **half)), {}
    yield "stablelm-parallel", t.StableLmForCausalLM(t.StableLmConfig(
        **TEXT, num_key_value_heads=2, use_parallel_residual=True, qk_layernorm=True, **NO_IDS, **half)), {}
    yield "phi", t.PhiForCausalLM(t.PhiConfig(**TEXT, **NO_IDS, **half)), {}
    yield "phi-normed", t.PhiForCausalLM(t.PhiConfig(**TEXT, num_key_value_heads=1, qk_layernorm=True, **NO_IDS, **half)), {}
    yield "cohere", t.CohereForCausalLM(t.CohereConfig(**TEXT, num_key_value_heads=1, logit_scale=0.4, **NO_IDS, **rope("default"))), {}
    yield "cohere-normed", t.CohereForCausalLM(t.CohereConfig(
        **TEXT, use_qk_norm=True, attention_bias=True, tie_word_embeddings=False, **NO_IDS, **rope("default"))), {}
    yield "neox", t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**TEXT, **NO_IDS, **half)), {}
    yield "neox-in-turn", t.GPTNeoXForTokenClassification(t.GPTNeoXConfig(
        **TEXT, use_parallel_residual=False, attention_bias=False, num_labels=3, **NO_IDS,
        **rope("linear", factor=2.0, partial_rotary_factor=1.0))), {}
    gptj = dict(vocab_size=V, n_embd=D, n_head=H, n_layer=2, n_positions=9, rotary_dim=2, attn_implementation="eager")
    yield "gptj", t.GPTJForCausalLM(t.GPTJConfig(**gptj, **NO_IDS)), {}
    falcon = {k: v for k, v in TEXT.items() if k != "intermediate_size"}
    yield "falcon", t.FalconForCausalLM(t.FalconConfig(**falcon, **NO_IDS, **rope("default"))), {}
    falcon["num_attention_heads"] = 4
    yield "falcon-new", t.FalconForCausalLM(t.FalconConfig(
        **falcon, new_decoder_architecture=True, num_kv_heads=2, bias=True, ffn_hidden_size=5, **NO_IDS, **rope("default"))), {}
    yield "falcon-one-norm", t.FalconForCausalLM(t.FalconConfig(
        **falcon, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1, **NO_IDS, **rope("default"))), {}
    yield "falcon-in-turn", t.FalconForQuestionAnswering(t.FalconConfig(
        **falcon, parallel_attn=False, multi_query=False, **NO_IDS, **rope("default"))), {}
    mpt = dict(vocab_size=V, d_model=D, n_layers=2, max_seq_len=12, attn_implementation="eager")
    yield "mpt", t.MptForCausalLM(t.MptConfig(**mpt, n_heads=2, **NO_IDS)), {}
    mpt["d_model"] = 12
    yield "mpt-three-heads", t.MptForCausalLM(t.MptConfig(**mpt, n_heads=3, attn_config=dict(softmax_scale=0.4), **NO_IDS)), {}
    bloom = dict(vocab_size=V, n_layer=2, attn_implementation="eager", **{**NO_IDS, "pad_token_id": 0})
    yield "bloom", t.BloomForCausalLM(t.BloomConfig(**bloom, hidden_size=D, n_head=2)), {}
    yield "bloom-on-norms", t.BloomForSequenceClassification(t.BloomConfig(
        **bloom, hidden_size=12, n_head=3, apply_residual_connection_post_layernorm=True, num_labels=3, seq_length=12)), {}
    opt = dict(**{k: v for k, v in TEXT.items() if k != "intermediate_size"}, ffn_dim=F, **{**NO_IDS, "pad_token_id": 1})
    yield "opt", t.OPTForCausalLM(t.OPTConfig(**opt)), {}
    yield "opt-narrow", t.OPTForCausalLM(t.OPTConfig(**opt, do_layer_norm_before=False, word_embed_proj_dim=5)), {}
    yield "opt-plain", t.OPTForSequenceClassification(t.OPTConfig(
        **opt, enable_bias=False, layer_norm_elementwise_affine=False, num_labels=3)), {}
    yield "neo", t.GPTNeoForCausalLM(t.GPTNeoConfig(
        vocab_size=V, hidden_size=D, num_heads=H, num_layers=2, max_position_embeddings=12, window_size=3,
        attention_types=[[["global", "local"], 1]], attn_implementation="eager", **NO_IDS)), {}


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


def encoders():
    """Encoders of text."""
    electra = dict(**TEXT, embedding_size=6, pad_token_id=None)
    yield "electra", t.ElectraForMaskedLM(t.ElectraConfig(**electra)), {}
    yield "electra-classes", t.ElectraForSequenceClassification(t.ElectraConfig(**{**electra, "embedding_size": D}, num_labels=3)), {}
    yield "electra-found", t.ElectraForPreTraining(t.ElectraConfig(**electra)), {}
    albert = dict(**{**TEXT, "num_hidden_layers": 3}, embedding_size=6, num_hidden_groups=2, inner_group_num=2, pad_token_id=None)
    yield "albert", t.AlbertForMaskedLM(t.AlbertConfig(**albert)), {}
    yield "albert-classes", t.AlbertForSequenceClassification(t.AlbertConfig(**{**albert, "inner_group_num": 1}, num_labels=3)), {}
    yield "camembert", t.CamembertForMaskedLM(t.CamembertConfig(**TEXT, pad_token_id=1)), {}
    yield "camembert-tokens", t.CamembertForTokenClassification(t.CamembertConfig(**TEXT, num_labels=3, pad_token_id=1)), {}
    yield "xlm-roberta-answers", t.XLMRobertaForQuestionAnswering(t.XLMRobertaConfig(**TEXT, pad_token_id=1)), {}
    yield "mpnet", t.MPNetForMaskedLM(t.MPNetConfig(**TEXT, pad_token_id=1)), {}
    yield "mpnet-classes", t.MPNetForSequenceClassification(t.MPNetConfig(**TEXT, num_labels=3, pad_token_id=1)), {}
    esm = dict(**TEXT, pad_token_id=1, mask_token_id=0)
    yield "esm", t.EsmForMaskedLM(t.EsmConfig(**esm, position_embedding_type="rotary", token_dropout=True)), {}
    yield "esm-classes", t.EsmForSequenceClassification(t.EsmConfig(**esm, emb_layer_norm_before=True, num_labels=3)), {}
    yield "nomic", t.NomicBertForMaskedLM(t.NomicBertConfig(**TEXT, head_dim=6, **rope("default"))), {}
    yield "nomic-classes", t.NomicBertForSequenceClassification(t.NomicBertConfig(**TEXT, num_labels=3)), {}
    modern = dict(**TEXT, num_labels=3, local_attention=4, **{**NO_IDS, "pad_token_id": 0}, cls_token_id=None, sep_token_id=None)
    yield "modernbert-mean", t.ModernBertForSequenceClassification(t.ModernBertConfig(**modern, classifier_pooling="mean")), {}
    clip = dict(**TEXT, bos_token_id=0, eos_token_id=1)
    yield "clip-text", t.CLIPTextModel(t.CLIPTextConfig(**clip)), {}
    yield "siglip-text", t.SiglipTextModel(t.SiglipTextConfig(**clip, projection_size=5)), {}


def image_models():
    vit = dict(hidden_size=D, intermediate_size=F, num_hidden_layers=2, num_attention_heads=H, image_size=8, patch_size=4,
               num_channels=3)
    yield "vit", t.ViTForImageClassification(t.ViTConfig(**vit, num_labels=3)), {}
    yield "vit-model", t.ViTModel(t.ViTConfig(**vit, qkv_bias=False)), {}
    dino = dict(hidden_size=D, mlp_ratio=2, num_hidden_layers=2, num_attention_heads=H, image_size=8, patch_size=4, num_channels=3)
    yield "dinov2", t.Dinov2ForImageClassification(t.Dinov2Config(**dino, num_labels=3)), {}
    yield "dinov2-swiglu", t.Dinov2Model(t.Dinov2Config(**dino, use_swiglu_ffn=True)), {}
    yield "dinov2-registers", t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**dino, num_register_tokens=2)), {}
    yield "deit", t.DeiTForImageClassification(t.DeiTConfig(**vit, num_labels=3)), {}
    yield "vit-msn", t.ViTMSNForImageClassification(t.ViTMSNConfig(**vit, num_labels=3)), {}
    yield "ijepa", t.IJepaForImageClassification(t.IJepaConfig(**vit, num_labels=3)), {}
    yield "clip-vision", t.CLIPVisionModel(t.CLIPVisionConfig(**vit)), {}
    yield "siglip-vision", t.SiglipVisionModel(t.SiglipVisionConfig(**vit, vision_use_head=False)), {}
    yield "siglip-head", t.SiglipVisionModel(t.SiglipVisionConfig(**vit)), {}
    yield "clip-embeds", t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(**vit, projection_dim=5)), {}
    tower = dict(hidden_size=D, intermediate_size=F, num_hidden_layers=1, num_attention_heads=H)
    both = dict(text_config=dict(**tower, vocab_size=V, max_position_embeddings=12, bos_token_id=0, eos_token_id=1),
                vision_config=dict(**tower, image_size=8, patch_size=4))
    yield "clip-classes", t.CLIPForImageClassification(t.CLIPConfig(**both, num_labels=3)), {}
    yield "siglip-classes", t.SiglipForImageClassification(t.SiglipConfig(**both, num_labels=3)), {}
    # One of two inputs, named behind the dot.
    yield "clip.text", t.CLIPModel(t.CLIPConfig(**both, projection_dim=5)), {}
    yield "clip.vision", t.CLIPModel(t.CLIPConfig(**both, projection_dim=5)), {}
    both["text_config"]["projection_size"] = 5
    yield "siglip.text", t.SiglipModel(t.SiglipConfig(**both)), {}
    yield "siglip.vision", t.SiglipModel(t.SiglipConfig(**both)), {}


def later():
    """Models behind all others, so that the others keep their seeds."""
    half = rope("default", partial_rotary_factor=0.5)
    yield "persimmon", t.PersimmonForCausalLM(t.PersimmonConfig(**TEXT, **NO_IDS, **half)), {}
    yield "persimmon-classes", t.PersimmonForTokenClassification(t.PersimmonConfig(
        **TEXT, num_labels=3, qk_layernorm=False, hidden_act="gelu", **NO_IDS, **half)), {}
    yield "seed_oss", t.SeedOssForCausalLM(t.SeedOssConfig(**TEXT, num_key_value_heads=1, head_dim=6, **NO_IDS, **rope("default"))), {}
    # The encoders of models that have a decoder too.
    pair = dict(vocab_size=V, d_model=D, encoder_layers=2, decoder_layers=1, encoder_attention_heads=H, decoder_attention_heads=H,
                encoder_ffn_dim=F, decoder_ffn_dim=F, max_position_embeddings=12, pad_token_id=0, bos_token_id=1, eos_token_id=1,
                decoder_start_token_id=1, attn_implementation="eager")
    yield "bart", t.BartForConditionalGeneration(t.BartConfig(**pair)), {}
    yield "m2m_100", t.M2M100ForConditionalGeneration(t.M2M100Config(**pair)), {}
    yield "marian", t.MarianMTModel(t.MarianConfig(**pair, scale_embedding=True, activation_function="swish")), {}
    yield "marian-apart", t.MarianModel(t.MarianConfig(
        **pair, decoder_vocab_size=7, share_encoder_decoder_embeddings=False, tie_word_embeddings=False)), {}
    yield "mbart", t.MBartModel(t.MBartConfig(**pair, scale_embedding=True)), {}
    yield "pegasus", t.PegasusForConditionalGeneration(t.PegasusConfig(**pair, activation_function="relu")), {}
    tower = dict(hidden_size=D, intermediate_size=F, num_hidden_layers=1, num_attention_heads=H)
    chinese = t.ChineseCLIPConfig(projection_dim=5, text_config=dict(**tower, vocab_size=V, max_position_embeddings=12),
                                  vision_config=dict(**tower, image_size=8, patch_size=4))
    yield "chinese_clip.text", t.ChineseCLIPModel(chinese), {}
    yield "chinese_clip.vision", t.ChineseCLIPModel(chinese), {}
    yield "chinese_clip-text", t.ChineseCLIPTextModel(chinese.text_config), {}
    yield "ministral", t.MinistralForCausalLM(t.MinistralConfig(
        **TEXT, num_key_value_heads=1, head_dim=6, sliding_window=2, layer_types=["full_attention", "sliding_attention"], **NO_IDS,
        **rope("default"))), {}


def processors():
    """What turns images of 0…255 into what some models read, saved beside them."""
    shift = dict(do_resize=False, do_center_crop=False, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3])
    return {"deit": t.ViTImageProcessor(**shift), "clip-vision": t.CLIPImageProcessor(**shift, rescale_factor=1 / 128),
            "siglip-vision": t.SiglipImageProcessor(do_resize=False, do_normalize=False)}


def inputs(model, part, generator):
    """What a model is given: token ids, none of them one that pads, or pictures."""
    if part == "vision" or part is None and model.main_input_name == "pixel_values":
        return dict(pixels=torch.randn(2, 3, 8, 8, generator=generator))
    return dict(tokens=torch.randint(2, V, (2, 7), generator=generator))


def processed(processor, generator):
    """Images of 0…255, as pixels in [0, 1], and what the processor makes of them."""
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return dict(pixels=images / 255), dict(pixels=processor(images=list(images), return_tensors="pt").pixel_values)


def run(model, part, given):
    """The output that a model is imported for."""
    with torch.no_grad():
        if part:
            one = model.vision_model if part == "vision" else model.text_model
            if part == "vision" and hasattr(model, "visual_projection"):
                return model.get_image_features(pixel_values=given["pixels"].double()).pooler_output
            if part == "text" and (not hasattr(model, "text_projection") or isinstance(model, t.ChineseCLIPModel)):
                return model.get_text_features(input_ids=given["tokens"]).pooler_output
            return one(*[x.double() if x.is_floating_point() else x for x in given.values()]).last_hidden_state
        if model.config.is_encoder_decoder and not isinstance(model, t.T5EncoderModel):
            return model.get_encoder()(input_ids=given["tokens"]).last_hidden_state
        if "pixels" in given:
            result = model(pixel_values=given["pixels"].double())
        else:
            result = model(input_ids=given["tokens"])
    if type(model).__name__ == "ElectraForPreTraining":
        return result.logits[..., None]  # one score for each token
    if hasattr(result, "start_logits"):
        return torch.stack([result.start_logits, result.end_logits], -1)
    if hasattr(result, "image_embeds"):
        return result.image_embeds
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


def base_models():
    """All models, and some that the golden data has no directory of."""
    yield from text_models()
    yield from image_models()
    yield from decoders()
    yield "bigcode-multi", t.GPTBigCodeForCausalLM(t.GPTBigCodeConfig(
        vocab_size=V, n_embd=D, n_head=H, n_layer=2, n_positions=9, multi_query=True, **NO_IDS)), {}
    yield "t5-full", t.T5ForConditionalGeneration(t.T5Config(
        vocab_size=V, d_model=D, d_kv=3, d_ff=F, num_layers=2, num_heads=H, relative_attention_num_buckets=8,
        relative_attention_max_distance=6)), {}
    yield "bert-pretraining", t.BertForPreTraining(t.BertConfig(**TEXT, pad_token_id=None)), {}
    yield from encoders()
