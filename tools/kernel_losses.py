"""Bytes and temporaries of the two losses, forward and backward, beside their plain forms."""

from __future__ import annotations

import functools
import pathlib

from tools import bundles, hlo_bytes

TOKENS, MODEL, LATENT = 16384, 3584, 64
TARGETS, VOCABULARY, CHUNK = 4096, 152064, 2048
FLOW_BAR_MB = 260


def report(chips: list[str], dump: pathlib.Path) -> tuple[dict, list[str]]:
    """Compiles both losses in both forms, prints what they move and need, and returns it."""
    figures, missed = {}, []
    for chip in chips:
        figures[chip] = {}
        cases = {
            "flow loss, fused": _flow("fused"),
            "flow loss, plain": _flow("plain"),
            "cross entropy, chunked": _entropy(chunked=True),
            "cross entropy, plain": _entropy(chunked=False),
        }
        for name, (function, shapes) in cases.items():
            found = bundles.compile_for(chip, function, shapes, dump)
            moved = hlo_bytes.moved(found.executable.as_text()) / 1e6
            temporary = found.executable.memory_analysis().temp_size_in_bytes / 1e6
            milliseconds = 1e3 * moved * 1e6 / bundles.BANDWIDTH[chip]
            print(
                f"{chip} {name}: {moved:,.0f} MB moved ({milliseconds:.2f} ms at full bandwidth), "
                f"{temporary:,.0f} MB of temporaries",
                flush=True,
            )
            figures[chip][name] = {"moved_mb": moved, "temporaries_mb": temporary}
        fused = figures[chip]["flow loss, fused"]["moved_mb"]
        if fused > FLOW_BAR_MB:
            missed.append(f"flow loss {chip}: {fused:.0f} MB moved, at most {FLOW_BAR_MB}")
    return {"losses": figures}, missed


def _flow(form: str):
    """The flow loss of a pack's gen stream with its gradient, and its arguments' shapes."""
    import jax
    import jax.numpy as jnp

    from inset_jax.kernels import flow_kernel, flow_loss

    run = {"fused": flow_kernel.fused, "plain": flow_loss.plain}[form]

    def gradients(hidden, head, target):
        # as in a training step: the weight of the loss over the sum of all weights
        coefficient = 1.0 / jnp.sum(target.weight)
        loss = functools.partial(
            run, target=target, coefficient=coefficient, form=flow_loss.FlowForm(1e-6, "velocity")
        )
        return jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, head)

    array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
    head = flow_loss.FlowHead(array(MODEL), array(MODEL, LATENT), array(LATENT))
    latent = array(1, TOKENS, LATENT)
    target = flow_loss.FlowTarget(latent, latent, array(1, TOKENS))
    return gradients, (array(1, TOKENS, MODEL, dtype=jnp.bfloat16), head, target)


def _entropy(chunked: bool):
    """The cross entropy of a pack's targets with its gradient, and its arguments' shapes."""
    import jax
    import jax.numpy as jnp

    from inset_jax.kernels.cross_entropy import chunked_cross_entropy

    def plain(hidden, head, label):
        logits = jnp.einsum("pcm,mv->pcv", hidden, head, preferred_element_type=jnp.float32)
        of_label = jnp.take_along_axis(logits, label[..., None], -1)[..., 0]
        return jax.nn.logsumexp(logits, -1) - of_label

    def gradients(hidden, head, label, weight):
        run = functools.partial(chunked_cross_entropy, chunk=CHUNK) if chunked else plain
        loss = lambda hidden, head: jnp.sum(run(hidden, head, label) * weight)
        return jax.value_and_grad(loss, (0, 1))(hidden, head)

    array = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype)
    label, weight = array(1, TARGETS, dtype=jnp.int32), array(1, TARGETS, dtype=jnp.float32)
    return gradients, (array(1, TARGETS, MODEL), array(MODEL, VOCABULARY), label, weight)
