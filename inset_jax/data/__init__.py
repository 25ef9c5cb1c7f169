"""From files on disk to packs in memory, in NumPy.

sources   data sets of other formats  build   records of them, sharded; jobs, shards, taken
record    what is stored              rewrite records of records; validate, report, fingerprint
headers   sizes of a data set, read once      index   lengths at a config's sizes; columns
mix       the order of examples       fill    the search for a full pack; dropout
plan      which examples make up which pack   course  a plan a stage; plan_report
prepare   a record's pixels, ids and noise; image, text, sentence, keyed
layout    tokens in reading order     pack    two padded streams
loader    batches by step; batch      pack_view  one of them for people; pack_picture, pack_page
measure_packing, measure_loader       benchmarks, with mixes and bagel_way
"""
