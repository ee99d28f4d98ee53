"""Changes of an existing model: insert and remove CBAM, freeze the rest, inspect the gates."""

from .attention import AttentionMaps, attention_maps
from .freezing import PartParameters, freeze_except, parameter_table, unfreeze
from .insertion import insert_cbam, remove_cbam

__all__ = [
    "AttentionMaps",
    "PartParameters",
    "attention_maps",
    "freeze_except",
    "insert_cbam",
    "parameter_table",
    "remove_cbam",
    "unfreeze",
]
