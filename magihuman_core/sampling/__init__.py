"""Noise levels, solvers, guidance and frozen content: from the network to a clip's latents."""
