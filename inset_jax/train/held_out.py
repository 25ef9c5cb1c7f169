"""Losses on held-out data, on the mesh that trains."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax

from inset_jax.core import mesh as meshes
from inset_jax.core.batch import Pack
from inset_jax.core.config import Config
from inset_jax.data.loader import Loader
from inset_jax.model import inset
from inset_jax.train import metrics, start, step


class HeldOut:
    """Measures them by kind of data; noise is the same each time."""

    def __init__(
        self,
        config: Config,
        mesh: jax.sharding.Mesh,
        share: meshes.Share,
        packs: Callable[[list], Pack],
    ):
        """packs: makes packs [1, P, ...] with their latents of the batches of a loader."""
        self._config, self._mesh, self._share, self._packs = config, mesh, share, packs
        self._loader: Loader | None = None  # opened when it is first asked for
        loss = step.loss_function(inset.abstract(config.model)[0], config)
        everywhere = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())

        def held_out(params, packs):
            """Sums by example of one batch [1, P, ...]."""
            one = jax.tree.map(lambda x: x[0], packs)
            return loss(params, one, step.weights(packs))[1][1]

        self._losses = jax.jit(held_out, out_shardings=everywhere)

    def measure(self, params: dict[str, Any]) -> metrics.KindSums:
        """Returns the sums of this process's packs."""
        if self._loader is None:
            share = self._share
            self._loader = Loader(self._config, "validation", share.index, share.count)
        self._loader.step = 0
        sums = metrics.KindSums()
        most = math.ceil(self._config.run.validation_packs / self._config.data.packs)
        for batch in itertools.islice(self._loader, most):
            packs = start.place(self._packs([batch]), self._mesh)
            told = jax.device_get(self._losses(params, packs))
            sums.add(metrics.rows_of(told, self._share.rows), batch.examples)
        return sums
