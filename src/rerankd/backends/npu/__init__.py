"""The backend of Ascend NPUs: plain tensors, with attention by one fused call a layer, or a few."""
