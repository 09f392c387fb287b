"""The three networks as single-device modules: denoiser, text encoder, autoencoder."""
