"""Results made up here, so that every figure of a table can be worked out by hand."""

from __future__ import annotations

from benchmarks import arena, arena_tables


def cell(
    label, seed, drop, *, network="cifar10_resnet20", passes=4.0, quantizer="W4A4 mse", top1=90.0, se=0.5, kl=None
):
    return {
        "network": network,
        "generator": label.split()[0] if label != "real images" else label,
        "label": label,
        "seed": seed,
        "count": 1000,
        "images": arena_tables.CONTESTANTS[label].count,
        "seconds": 1.0,
        "passes_per_image": passes,
        "config": arena.config_of(arena_tables.CONTESTANTS[label], seed),
        "scores": {
            quantizer: {
                "float_top1": top1,
                "drop_points": drop,
                "standard_error": se,
                "kl_to_float": drop / 10 if kl is None else kl,
            }
        },
    }


ARENA = [
    *(cell("real images", seed, drop, passes=0.0) for seed, drop in enumerate((4.0, 6.0))),
    *(cell("noise", seed, drop, passes=0.0) for seed, drop in enumerate((11.0, 11.0))),
    *(cell("dffg", seed, drop) for seed, drop in enumerate((5.0, 5.5))),
    *(cell("dffg steps 64 keep_every 4", seed, 3.0, passes=15.25) for seed in range(2)),
    *(cell("zeroq steps 16", seed, 9.0, passes=16.0) for seed in range(2)),
    *(cell("dgh", seed, 1.0, passes=500.0) for seed in range(2)),
    *(cell("genie steps 4 batch_size 64", seed, 2.0, passes=4.0) for seed in range(2)),
    *(cell("dffg variability none", seed, 0.0, kl=0.2) for seed in range(2)),
]


def judged(change, seed, *values, network="n", key="change", **figures_of):
    return {
        "network": network, key: change, "seed": seed, "factor": "f",
        "kl": {str(index): value for index, value in enumerate(values)}, **figures_of,
    }  # fmt: skip


def rows(table):
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in table.splitlines()]
    assert len({len(line) for line in lines}) == 1
    return {line[0]: line[1:] for line in lines[2:]}
