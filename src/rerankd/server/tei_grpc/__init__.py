"""Text Embeddings Inference's gRPC API in front of the HTTP API, of which it has all limits and errors."""
