"""Names of entries of config.json: those that an architecture here reads, and those without effect on a score."""

from __future__ import annotations

READ = frozenset(
    {
        *("_name_or_path", "activation", "architectures", "attention_bias", "attention_head_size", "auto_map"),
        *("classifier_activation", "classifier_bias", "classifier_from_token", "classifier_pooling"),
        *("compress_layers", "compress_ratio", "cutoff_layers", "final_logit_softcapping", "head_multi"),
        *("head_type", "layer_sep", "layer_wise", "query_pre_attn_scalar", "scale_depth", "scale_emb"),
        *("d_ff", "d_kv", "d_model", "decoder_start_token_id", "feed_forward_proj", "layer_norm_epsilon"),
        *("n_positions", "num_decoder_layers", "num_heads", "num_layers", "relative_attention_max_distance"),
        *("scale_decoder_outputs", "start_layer"),
        *("conv_kernel_size", "dim", "embedding_size", "global_attn_every_n_layers", "global_rope_theta", "head_dim"),
        *("hidden_act", "hidden_activation", "hidden_dim", "hidden_size", "id2label", "intermediate_size"),
        *("is_decoder", "is_original_qwen3_reranker", "layer_norm_eps", "layer_norm_type", "layer_types"),
        *("local_attention", "local_rope_theta", "logn_attention_scale", "max_position_embeddings"),
        *("max_relative_positions", "method", "mlp_bias", "model_type", "n_heads", "n_layers", "norm_bias"),
        *("norm_eps", "norm_rel_ebd", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "num_labels"),
        *("original_max_position_embeddings", "pack_qkv", "pad_token_id", "partial_rotary_factor"),
        *("pooler_hidden_act", "pooler_hidden_size", "pooling", "pos_att_type", "position_biased_input"),
        *("position_buckets", "position_embedding_type", "problem_type", "quantization_config", "relative_attention"),
        *("relative_attention_num_buckets", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta"),
        *("rotary_emb_dim", "sbert_ce_default_activation_function", "sentence_transformers", "share_att_key"),
        *("temperature", "text_config", "tie_word_embeddings", "type_vocab_size", "use_bidirectional_attention"),
        *("sliding_window", "use_sliding_window", "vision_config", "vocab_size"),
        *("downsample_ratio", "force_image_size", "img_context_token_id", "keep_aspect_ratio", "llm_config"),
        *("pre_feature_reduction", "prompt_template", "select_layer", "use_backbone_lora", "use_llm_lora"),
    }
)
"""Entries that at least one architecture reads."""
WITHOUT_EFFECT = frozenset(
    {
        *("_attn_implementation", "add_cross_attention", "attention_dropout", "attention_probs_dropout_prob"),
        *("attn_implementation", "bos_token_id", "chunk_size_feed_forward", "classifier_dropout", "cls_token_id"),
        *("attn_logit_softcapping", "decoder_bias", "deterministic_flash_attn", "dim_model_base", "directionality"),
        *("dense_act_fn", "dropout_rate", "initializer_factor", "is_gated_act", "task_specific_params"),
        *("dropout", "dtype", "embedding_dropout", "eos_token_id", "finetuning_task", "gradient_checkpointing"),
        *("hidden_dropout_prob", "image_token_id", "initializer_cutoff_factor", "initializer_range"),
        *("is_encoder_decoder", "label2id", "legacy"),
        *("max_window_layers", "mlp_dropout", "output_attentions", "output_hidden_states", "output_past"),
        *("pooler_dropout", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
        *("pooler_size_per_head", "pooler_type", "pretraining_tp", "qa_dropout", "reference_compile"),
        *("repad_logits_with_grad", "return_dict", "sep_token_id", "seq_classif_dropout", "sinusoidal_pos_embds"),
        *("sparse_pred_ignore_index", "sparse_prediction", "summary_activation"),
        *("summary_last_dropout", "summary_type", "summary_use_proj", "torch_dtype", "transformers_version"),
        *("unpad_inputs", "use_cache", "use_flash_attn", "use_memory_efficient_attention", "use_reg_toks"),
        *("video_token_id", "vision_end_token_id", "vision_start_token_id"),
        *("bidirectional_attention", "dynamic_image_size", "max_dynamic_patch", "max_input_tiles"),
        *("min_dynamic_patch", "mlp_checkpoint", "p_max_length", "passage_prefix", "ps_version", "q_max_length"),
        *("query_prefix", "template", "use_thumbnail"),
    }
)
"""Entries for training, for generation, for token ids, or for other implementations of the same computation."""
