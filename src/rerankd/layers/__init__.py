"""Transformers as data: layer specifications, rotary arithmetic, and which packed rows attend to which."""
