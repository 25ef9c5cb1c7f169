"""From files on disk to packs in memory, in NumPy.

record    what is stored              jsonl   records from what a person writes; sentence
index     lengths of a data set       plan    which examples make up which pack; dropout
prepare   a record's pixels, ids and noise; image, text, keyed
layout    tokens in reading order     pack    two padded streams
loader    batches of packs, by step
"""
