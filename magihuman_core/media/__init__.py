"""Images, waveforms and video files as tensors, and back."""
