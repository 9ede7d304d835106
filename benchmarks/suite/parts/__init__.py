"""All parts, in the order of the tables."""

from benchmarks.suite.parts import adding, costs, limits, mixed, process, side, waiting, xmin

PARTS = [
    *side.PARTS,
    *waiting.PARTS,
    *adding.PARTS,
    *mixed.PARTS,
    *process.PARTS,
    *costs.PARTS,
    *limits.PARTS,
    *xmin.PARTS,
]
