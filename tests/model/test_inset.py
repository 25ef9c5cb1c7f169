"""The model as a whole: full-size tracing, padding, streams that are absent, remat policies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inset_jax.core.batch import NULL_TEXT, Pack, Visibility
from inset_jax.core.config import ComputeConfig, Config, ModelConfig, edit
from inset_jax.model import inset, layers
from inset_jax.model.decoder import REMAT
from inset_jax.train import step

TINY = edit(
    ModelConfig(),
    llm__vocab_size=97,
    llm__model_dim=32,
    llm__layers=2,
    llm__query_heads=4,
    llm__kv_heads=2,
    llm__head_dim=8,
    llm__mlp_dim=48,
    vit__width=24,
    vit__layers=1,
    vit__heads=2,
    vit__mlp_dim=32,
    vit__patch=2,
    vit__side=4,
    connector_side=4,
    latents__max_side=4,
    vae__latent_channels=2,
)
COMPUTE = ComputeConfig(dtype="float32", remat="none", attention="reference")


def pack_shapes(config: ModelConfig, und: int, gen: int, vit: int, targets: int = 8) -> Pack:
    """One pack of these capacities as shapes."""
    shape = lambda size, dtype: jax.ShapeDtypeStruct((1, *size), dtype)
    ids = lambda *size: shape(size, jnp.int32)
    numbers = lambda *size: shape(size, jnp.float32)
    seen = lambda size: Visibility(ids(size), ids(size))
    return Pack(
        *(ids(und), ids(und), ids(1, und), ids(und)),
        *(numbers(gen, config.latent_dim), numbers(gen, config.latent_dim), numbers(gen)),
        *(ids(gen), ids(1, gen), ids(gen), numbers(gen)),
        visibility={"und": seen(und + gen), "gen": seen(und + gen)},
        vit_patch=shape((vit, config.vit.patch_dim), jnp.uint8),
        vit_place=ids(vit),
        vit_visibility=seen(vit),
        **{f"ce_{name}": ids(targets) for name in ("index", "label", "example")},
        ce_weight=numbers(targets),
    )


def random_pack(config: ModelConfig, und: int, gen: int, vit: int) -> Pack:
    """A pack of one example in which everything is visible to everything."""
    random = np.random.default_rng(0)

    def fill(leaf):
        if leaf.dtype == jnp.float32:
            return random.standard_normal(leaf.shape).astype(np.float32)
        return random.integers(0, 4, leaf.shape).astype(leaf.dtype)

    pack = jax.tree.map(fill, pack_shapes(config, und, gen, vit))
    patch = np.where(np.arange(und) < vit, np.arange(und), -1)[None]
    everything = lambda queries, keys: Visibility(
        np.zeros((1, keys), np.int32), np.full((1, keys), queries, np.int32)
    )
    seen = {"und": everything(und, und + gen), "gen": everything(gen, und + gen)}
    return pack._replace(
        und_patch=patch, visibility=seen, vit_visibility=everything(max(vit, 1), vit)
    )


@pytest.fixture(scope="module")
def tiny():
    definition, params = inset.create(TINY, seed=0)
    head = params["latent_out"]["kernel"]
    params["latent_out"]["kernel"] = jnp.ones_like(head) / 10  # the initial head predicts zero
    return definition, params


@pytest.fixture
def nothing_allocated():
    """Arrays on the devices take no more memory after a test than before."""
    held = lambda: sum(array.nbytes for array in jax.live_arrays())
    before = held()
    yield
    assert held() - before < 1e6


def test_seven_billion_active_parameters_trace_and_lower_without_memory(nothing_allocated):
    config, compute = ModelConfig(), ComputeConfig(attention="chunked")
    definition, shapes = inset.abstract(config)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 14_607_260_128

    def forward(params, pack):
        model = inset.bind(definition, params)
        decoded, _ = model(pack, 4.0, compute)
        return decoded.hidden | {"latent": model.predict(decoded.hidden["gen"])}

    pack = pack_shapes(config, und=1024, gen=1024, vit=512)
    ends = jax.eval_shape(forward, shapes, pack)
    assert {name: leaf.shape for name, leaf in ends.items()} == {
        "und": (1, 1024, 3584),
        "gen": (1, 1024, 3584),
        "latent": (1, 1024, 64),
    }
    text = jax.jit(forward).lower(shapes, pack).as_text()
    assert "28x3584x18944" in text  # the stacked layers enter whole and are scanned


@pytest.mark.parametrize("prediction", ["velocity", "clean"])
def test_losses_of_the_seven_billion_trace_and_lower_without_memory(prediction, nothing_allocated):
    """Through both heads: to the error of every latent and to the loss of every next token."""
    targets, chunk, latents = 512, 128, 1024
    model = edit(ModelConfig(), prediction=prediction)
    compute = ComputeConfig(attention="chunked", flow_loss="plain", cross_entropy_chunk=chunk)
    config = edit(Config(model=model, compute=compute), data__capacity__examples=4)
    definition, shapes = inset.abstract(model)
    pack = pack_shapes(model, und=1024, gen=latents, vit=512, targets=targets)
    of = step.loss_function(definition, config)
    loss = lambda params, pack: of(params, pack, step.weights(pack))
    total, (losses, by_example, _) = jax.eval_shape(loss, shapes, pack)
    assert {leaf.shape for leaf in (total, *losses)} == {()}
    assert {leaf.shape for leaf in by_example} == {(1, 4)}
    text = jax.jit(loss).lower(shapes, pack).as_text()
    assert f"1x{latents}x64xf32" in text and f"{chunk}x152064xf32" in text
    assert f"{targets}x152064" not in text  # the logits of a pack never exist at once


def test_logical_axes_name_every_dimension_of_every_parameter():
    _, shapes = inset.abstract(TINY)
    axes = inset.logical_axes(TINY)
    jax.tree.map(lambda leaf, names: None, shapes, axes, is_leaf=lambda x: isinstance(x, tuple))
    flat = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    assert [len(names) for names in flat] == [leaf.ndim for leaf in jax.tree.leaves(shapes)]


def test_every_remat_policy_gives_the_same_gradient(tiny):
    definition, params = tiny
    pack = random_pack(TINY, und=12, gen=6, vit=4)

    def loss(params, policy):
        compute = ComputeConfig(dtype="float32", remat=policy, attention="reference")
        decoded, _ = inset.bind(definition, params)(pack, 1.0, compute)
        return sum(jnp.sum(jnp.sin(x)) for x in decoded.hidden.values())

    gradients = [jax.jit(jax.grad(loss), static_argnums=1)(params, name) for name in REMAT]
    for other in gradients[1:]:
        for a, b in zip(jax.tree.leaves(gradients[0]), jax.tree.leaves(other)):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def kept_by_a_layer(tiny, policy: str, attention: str, in_float32: bool = False) -> int:
    """Numbers that a layer keeps for its backward pass, and a few that each policy has alike."""
    definition, params = tiny
    pack = random_pack(TINY, und=24, gen=16, vit=0)
    compute = ComputeConfig(dtype="float32", remat=policy, attention=attention)

    def loss(params):
        model = inset.bind(definition, params)
        if in_float32:
            layers.sum_in_float32(model)
        hidden = model(pack, 1.0, compute)[0].hidden
        return sum(jnp.sum(jnp.sin(x)) for x in hidden.values())

    jaxpr = jax.make_jaxpr(jax.grad(loss))(params)
    forward = next(eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan")
    return sum(var.aval.size for var in forward.outvars) // TINY.llm.layers  # the carry too


@pytest.mark.parametrize("attention", ["reference", "whole", "chunked"])
def test_remat_policy_attention_keeps_each_result_of_attention_once(tiny, attention):
    kept = lambda policy: kept_by_a_layer(tiny, policy, attention)
    heads, width = TINY.llm.query_heads, TINY.llm.head_dim
    a_row = {"reference": 0, "whole": 2, "chunked": 1}[attention]  # numbers beside the result
    extra = 40 * heads * (width + a_row)
    assert kept("attention") - kept("full") == extra


@pytest.mark.parametrize("policy", ["full", "dots"])
def test_gradients_summed_in_float32_keep_what_others_keep(tiny, policy):
    usual, wide = (kept_by_a_layer(tiny, policy, "reference", flag) for flag in (False, True))
    assert usual == wide


def test_bfloat16_is_near_float32_and_what_leaves_is_float32(tiny):
    definition, params = tiny
    pack = random_pack(TINY, und=24, gen=16, vit=8)

    def run(dtype: str):
        def loss(params):
            model = inset.bind(definition, params)
            compute = ComputeConfig(dtype=dtype, remat="none", attention="reference")
            hidden = model(pack, 1.0, compute)[0].hidden
            outputs = model.predict(hidden["gen"]), model.logits(hidden["und"])
            return sum(jnp.mean(x * x) for x in outputs), outputs

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    (slope, exact), (rough_slope, rough) = run("float32"), run("bfloat16")
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((rough, rough_slope)))
    distance = lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a))
    flat = lambda tree: jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])
    assert distance(flat(exact), flat(rough)) < 0.02
    assert distance(flat(slope), flat(rough_slope)) < 0.02


def test_a_pack_without_images_or_without_targets_runs(tiny):
    definition, params = tiny

    def widths(und, gen, vit):
        pack = random_pack(TINY, und, gen, vit)
        decoded, _ = inset.bind(definition, params)(pack, 1.0, COMPUTE)
        assert all(bool(jnp.isfinite(x).all()) for x in decoded.hidden.values())
        return {name: x.shape[1] for name, x in decoded.hidden.items()}

    assert widths(und=8, gen=4, vit=0) == {"und": 8, "gen": 4}
    assert widths(und=8, gen=0, vit=2) == {"und": 8}


def test_kept_keys_continue_a_context_exactly(tiny):
    """Text in two halves over kept keys equals the text in one piece."""
    definition, params = tiny
    model = inset.bind(definition, params)
    token = jnp.asarray(np.random.default_rng(1).integers(0, 97, (1, 10)), jnp.int32)
    x = model.embed_und(token, jnp.full((1, 10), -1), None, COMPUTE)
    position = jnp.arange(10, dtype=jnp.int32)[None, None]
    causal = lambda first, last, keys: Visibility(
        jnp.maximum(jnp.arange(keys, dtype=jnp.int32)[None] - first, 0),
        jnp.full((1, keys), last - first, jnp.int32),
    )
    run = lambda a, b, kept: model.decode(
        {"und": x[:, a:b]},
        {"und": position[..., a:b]},
        {"und": causal(a, b, b)},
        COMPUTE,
        kept,
        ("kept",),
    )
    whole, first = run(0, 10, None), run(0, 6, None)
    second = run(6, 10, first.kept)
    joined = jnp.concatenate([first.hidden["und"], second.hidden["und"]], axis=1)
    np.testing.assert_allclose(joined, whole.hidden["und"], rtol=1e-4, atol=1e-5)


def test_a_null_token_stands_for_a_dropped_modality():
    config = edit(TINY, null_token=True)
    definition, params = inset.create(config, seed=0)
    model = inset.bind(definition, params)
    x = model.embed_und(jnp.asarray([[5, 0]]), jnp.asarray([[-1, NULL_TEXT]]), None, COMPUTE)
    np.testing.assert_array_equal(x[0, 0], params["llm"]["embed"]["table"][5])
    np.testing.assert_array_equal(x[0, 1], params["null"]["table"][0])


def test_position_tables_of_small_pictures_may_have_shorter_waves_and_more_weight():
    near = lambda config: np.asarray(inset.create(config, 0)[1]["latent_position"]["table"])
    usual, short = near(TINY), near(edit(TINY, position_ratio=2.0, position_scale=3.0))
    distance = lambda table: np.linalg.norm(table[0] - table[1])  # of neighbours in a row
    assert distance(short / 3) > 1.5 * distance(usual)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 3 * np.linalg.norm(usual, axis=1))


def test_places_of_small_pictures_may_be_told_apart_along_all_of_a_side():
    def rank(**changes):
        config = edit(TINY, position_ratio=4.0, llm__model_dim=128, latents__max_side=8, **changes)
        table = np.asarray(inset.create(config, 0)[1]["latent_position"]["table"])
        row = table[:8] - table[:8].mean(0)
        singular = np.linalg.svd(row, compute_uv=False)
        return int((singular > 0.2 * singular[0]).sum())

    assert rank() == 3
    assert rank(position_step=2.8) == 7  # of eight places about their mean: all there are


def test_a_time_scale_turns_the_waves_of_timesteps_faster():
    waves = lambda config, t: inset.bind(*inset.create(config, 0)).time(jnp.array([t]), jnp.float32)
    fast = edit(TINY, time_scale=30.0)
    np.testing.assert_allclose(waves(fast, 0.02), waves(TINY, 0.6), rtol=1e-5)
    assert not np.allclose(waves(fast, 0.02), waves(TINY, 0.02))
