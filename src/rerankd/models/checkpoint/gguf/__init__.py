"""GGUF files: the format of llama.cpp, in which one file holds weights, configuration and tokenizer."""
