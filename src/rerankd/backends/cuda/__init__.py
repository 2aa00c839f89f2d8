"""The backend of CUDA devices: plain tensors, with attention by one call of flash attention a layer."""
