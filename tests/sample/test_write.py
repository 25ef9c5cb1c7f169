import numpy as np
import pytest

from inset_jax.core.config import CapacityConfig
from inset_jax.data.layout import Item, layout
from inset_jax.data.pack import assemble, stack
from inset_jax.model import inset
from tests.sample.small import COMPUTE, CONFIG, image, text

CONTEXTS = [(text(1, 2), image(1), text(3)), (text(9, 8, 7, 6),), (image(2, 28, 28),)]


def test_greedy_text_equals_the_training_pass_over_what_was_written(sampler):
    (written,) = sampler.write(CONTEXTS[:1], 6)
    laid = layout([[*CONTEXTS[0], Item("text", ids=written.ids)]], CONFIG)
    pack = stack([assemble(laid, CapacityConfig(32, 0, 16, 0, 1), CONFIG)])
    model = inset.bind(inset.abstract(CONFIG)[0], sampler.params["model"])
    decoded, _ = model(pack, 1.0, COMPUTE)
    end = len(laid.id)
    logits = np.asarray(model.logits(decoded.hidden["und"]))[
        0, end - len(written.ids) - 2 : end - 1
    ]
    assert logits.argmax(-1)[: len(written.ids)].tolist() == written.ids
    assert written.ended == (len(written.ids) < 6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_contexts_written_together_equal_the_singles(sampler, temperature):
    seeds = [5, 6, 7]
    together = sampler.write(CONTEXTS, 5, temperature, seeds)
    for context, seed, ours in zip(CONTEXTS, seeds, together, strict=True):
        assert sampler.write([context], 5, temperature, [seed]) == [ours]


def test_a_seed_decides_what_is_drawn(sampler):
    first, again, other = (
        sampler.write(CONTEXTS[1:2], 8, 1.0, [seed])[0].ids for seed in (1, 1, 2**40)
    )
    assert first == again != other


def test_writing_stops_at_the_end_token(sampler, monkeypatch):
    end = CONFIG.tokens.text_end
    programs = sampler.programs

    def token(params, kept, batch, turn, greedy):
        _, *rest = programs.token(params, kept, batch, turn, greedy)
        return np.full(turn.token.shape, end if turn.index == 2 else 4, np.int32), *rest

    monkeypatch.setattr(sampler, "programs", programs._replace(token=token))
    seen = []
    written = sampler.write(CONTEXTS[1:2], 8, watch=lambda word: seen.append(word.index))
    assert written == [([4, 4], True)] and seen == [0, 1, 2]
    watch = lambda word: seen.append(word.index)
    again = sampler.write(CONTEXTS[1:2], 5, watch=watch, to_the_limit=True)
    assert again == written and seen == [0, 1, 2, 0, 1, 2, 3, 4]


def test_what_cannot_be_written_is_refused(sampler):
    for contexts, limit, temperature in (([()], 4, 0.0), ([CONTEXTS[1]], 0, 0), ([], 1, -1.0)):
        with pytest.raises(ValueError, match="cannot write"):
            sampler.write(contexts, limit, temperature)
