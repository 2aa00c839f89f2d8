"""GGUF files: one file with weights, configuration and tokenizer, as llama.cpp converts models."""
