"""What a run on TPUs will need, found on a machine that has none.

The step that the run will take is compiled by libtpu for chips that are only described. Files in
the order of the flow:

    chips.py        names of slices (figures of chips: core.chips)
    program.py      the step and its arguments on a described slice; their bytes by part
    split.py        what each kind of array takes on a device, by the rules of core.mesh
    sampling.py     likewise what draws a picture: prefill, one evaluation, decoding
    child.py        one compile, in a process of its own
    compiler.py     starts that process, reads what it leaves, ends it early if that is enough
    hlo.py          the compiled program as text: computations, and how often each runs
    collectives.py  what it sends between chips, and what it computes meanwhile
    work.py         operations of a step with full packs (counted by train.work)
    estimate.py     seconds of a step, roughly
    settings.py     settings that contradict each other or have no effect
    report.py       all of it as JSON, text and a page
    drawing.py      the same for sampling
    search.py       other layouts and remat policies, ranked
"""
