"""Meshes of devices, several processes, and the signals that they are sent."""

from .sharding import (
    make_mesh as make_mesh,
    shard as shard,
)
