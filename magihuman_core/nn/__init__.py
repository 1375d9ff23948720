"""Layers without a model: norms, activations, linear layers in 8 bits."""
