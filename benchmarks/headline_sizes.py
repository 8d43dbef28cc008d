"""How large the headlines of `accelerator` are, on an accelerator and without one."""

from typing import NamedTuple


SEED = 0


class Pass(NamedTuple):
    """A pass over a cache: `rows` in chunks that make it, queries, and the bar."""

    chunks: int
    chunk: int
    width: int
    dtype: str
    queries: int
    goal: str


class Sizes(NamedTuple):
    """How large everything is."""

    rounds: int
    matrix: int
    copied: int
    walkers: int
    image: tuple[int, int, int]
    batch: int
    steps: int
    series: int
    observations: int
    nodes: int
    hidden: int
    passes: dict[str, Pass]
    encoder: dict[str, int]
    rows: int
    pairs: int
    negatives: int


CHUNK = 2**16
FULL = Sizes(
    rounds=7,
    matrix=8_192,
    copied=2**31,
    walkers=4_096,
    image=(3, 32, 32),
    batch=256,
    steps=20,
    series=1_024,
    observations=100,
    nodes=10_000,
    hidden=24,
    passes={
        "G1": Pass(
            135, CHUNK, 768, "bfloat16", 256, "at most twice the roofline, 9 ms"
        ),
        "G2": Pass(1_526, CHUNK, 128, "bfloat16", 256, "at most 15 ms"),
        "G2, bytes": Pass(15_259, CHUNK, 128, "int8", 64, "at most 200 ms"),
    },
    encoder={"width": 768, "depth": 12, "num_heads": 12, "length": 64},
    rows=135 * CHUNK,
    pairs=256,
    negatives=64,
)
SMALL = Sizes(
    rounds=5,
    matrix=128,
    copied=2**16,
    walkers=8,
    image=(1, 4, 4),
    batch=8,
    steps=2,
    series=2,
    observations=4,
    nodes=10,
    hidden=2,
    passes={
        "G1": Pass(4, 64, 8, "bfloat16", 4, "none: small"),
        "G2": Pass(4, 64, 8, "int8", 4, "none: small"),
    },
    encoder={"width": 8, "depth": 1, "num_heads": 2, "length": 4},
    rows=256,
    pairs=4,
    negatives=2,
)
