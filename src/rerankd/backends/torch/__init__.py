"""The backend of plain tensors: it runs specifications on any device, and tests hold the other backends against it."""
