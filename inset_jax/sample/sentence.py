"""Sentences with pictures in them: the data room's parser, under the names used here."""

from inset_jax.data.sentence import PicturePath
from inset_jax.data.sentence import parse_sentence as parse
from inset_jax.data.sentence import read_sentence as read

__all__ = ["PicturePath", "parse", "read"]
