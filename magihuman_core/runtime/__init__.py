"""How a network is run: streamed weights, LoRA, memory."""
