"""From files on disk to packs in memory, in NumPy.

sources   data sets of other formats  build   records of them, sharded; jobs, shards
record    what is stored              rewrite records of records; validate, report, fingerprint
index     lengths of a data set       plan    which examples make up which pack; dropout
prepare   a record's pixels, ids and noise; image, text, sentence, keyed
layout    tokens in reading order     pack    two padded streams
loader    batches of packs, by step   pack_view  one of them for people; pack_picture, pack_page
"""
