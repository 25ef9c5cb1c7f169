"""Proof of equality with arrays that the PyTorch reference produced.

The one room that may import every other: a replay runs the data path, the model, the trainer and
the sampler on stored inputs and compares everything in between.
"""
