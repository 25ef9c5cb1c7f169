import dataclasses

import jax
import numpy as np
import pytest

from inset_jax.core.config import edit
from inset_jax.kernels import attend
from inset_jax.sample import attention, sampler, trace
from inset_jax.sample.plan import Request, plan
from tests.sample.small import CONFIG, image, make_sampler, picture, text

LAYERED = edit(CONFIG, llm__layers=2)
SENTENCE = Request((text(1, 2), image(1), text(3), image(2, 28, 28)), (picture(1),), (4.0, 1.5))
EDIT = Request((image(3, 32, 32, "clean"), image(3, 28, 28), text(5, 6)), (picture(4, 2, 2),))


@pytest.fixture(scope="module")
def deep():
    return make_sampler(LAYERED)


@pytest.mark.parametrize("request_", [SENTENCE, EDIT], ids=["sentence", "edit"])
def test_weights_times_values_in_reading_order_are_the_attention_of_the_reference(deep, request_):
    """The reference is called by the model itself, in the same step; values come from `trace`."""
    calls = []
    gen = request_.pictures[0].noise
    laid = plan([request_._replace(scales=(1.0, 1.0))], "none", LAYERED)
    wide = laid.plain.source.shape[1]

    def spy(query, key, value, visibility, scale):
        out = attend.reference(query, key, value, visibility, scale)
        note = lambda *arrays: calls.append([np.asarray(array)[0] for array in arrays])
        jax.debug.callback(note, value, out, ordered=True)
        return out

    compute = dataclasses.replace(deep.compute, attention=spy)
    step = sampler.programs(LAYERED, compute).step
    now = sampler.Now(np.float32(0.5), np.float32(0.1), np.float32(0))
    state = np.zeros_like(laid.state)
    state[0, : len(gen)] = gen
    step(deep.params["model"], deep.keep(laid.still), laid.plain, state, now, "none")
    jax.effects_barrier()
    ours = attention.attended(deep, request_, gen, 0.5)
    calls = [call for number, call in enumerate(calls) if number % 2]  # und, gen, und, gen
    assert len(calls) == LAYERED.llm.layers
    (still,) = trace.kept(deep, [request_.items])
    und = laid.plain.token.shape[1]
    group = LAYERED.llm.query_heads // LAYERED.llm.kv_heads
    for layer, (value, out) in enumerate(calls):
        own = value[-und - wide :]
        values = np.concatenate(
            [still.value[layer], own[:1], own[und : und + len(gen)], own[1:2]]
        ).repeat(group, axis=1)
        mixed = np.einsum("hgk,khd->ghd", ours.weight[layer], values)
        np.testing.assert_allclose(mixed, out[: len(gen)], atol=2e-5)


def test_rows_are_shares_and_spans_cover_the_sentence_but_its_markers(deep):
    ours = attention.attended(deep, SENTENCE, SENTENCE.pictures[0].noise, 0.25)
    np.testing.assert_allclose(ours.weight.sum(-1), 1, atol=1e-5)
    assert (ours.weight > 0).all()  # a picture sees its whole sentence and itself
    assert [span.stop - span.start for span in ours.spans] == [2, 6, 1, 4]
    assert [span.start for span in ours.spans] == [1, 5, 13, 16]
    assert ours.picture == slice(22, 28) and ours.weight.shape[2:] == (6, 29)


def test_weights_do_not_depend_on_guidance_and_follow_the_state_and_the_time(deep):
    noise = SENTENCE.pictures[0].noise
    early = attention.attended(deep, SENTENCE, noise, 0.9).weight
    unguided = SENTENCE._replace(scales=(1.0, 1.0))
    np.testing.assert_array_equal(early, attention.attended(deep, unguided, noise, 0.9).weight)
    for state, t in ((noise / 2, 0.9), (noise, 0.2)):
        other = attention.attended(deep, SENTENCE, state, t).weight
        assert np.abs(early - other).max() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pictures": (picture(1), picture(2))}, "not of 2 pictures and 0 dropped"),
        ({"items": (text(1)._replace(dropped=True),)}, "1 dropped items"),
        ({"pictures": (picture(1, 3, 3),)}, r"state \(6, "),
    ],
)
def test_what_cannot_be_shown_is_refused(deep, change, message):
    with pytest.raises(ValueError, match=message):
        attention.attended(deep, SENTENCE._replace(**change), SENTENCE.pictures[0].noise, 0.5)
