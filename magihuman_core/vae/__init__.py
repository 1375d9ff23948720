"""The video decoders and encoders, and the audio VAE."""
