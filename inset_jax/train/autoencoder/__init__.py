"""Training of the autoencoder alone: python -m inset_jax.train.autoencoder."""
