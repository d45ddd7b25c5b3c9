"""Some steps of each kind, taken alone or by workers that `torch.distributed.run` starts with this file."""

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import anndata as ad
import torch
import torch.distributed as dist

from dist_scvi.config.schema import ModelConfig, TrainConfig
from dist_scvi.loaders import make_plan, open_data
from dist_scvi.loaders.labelled_stream import labelled_plan, labelled_stream
from dist_scvi.loaders.stream import train_stream
from dist_scvi.network.model_spec import spec_of
from dist_scvi.training.step import average_gradients, take_step
from dist_scvi.world import World, process_group

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "parts": {"gradient_accumulation_steps": 3},
    "mixed": {"precision": "bf16-mixed"},
    "global": {"batch_norm": "global"},
    "compressed": {"gradient_compression": "bf16"},
}
MODELS = ("SCVI", "SCANVI")


def take_steps(cells: Path, name: str, case: str, world: World) -> dict[str, Any]:
    """Take the six steps of an epoch; what they leave."""
    torch.set_num_threads(1)
    data = open_data(ad.read_h5ad(cells), batch_key="batch", labels_key="label", unlabeled_category="unknown")
    plan = make_plan(n_cells=data.n_cells, n_entries=9, n_genes=50, batch_size=60, lanes=4, micro_cells=8)
    where, n_steps = {"rank": world.rank, "world_size": world.size}, plan.steps_per_epoch
    beside: Any = [None] * n_steps
    if name == "SCANVI":
        beside = labelled_stream(data, labelled_plan(data, plan), **where, first_step=0, n_steps=n_steps)
    settings = dict(CASES[case])
    if case == "parts" and world.rank:  # only the first worker computes in parts
        settings = {}
    options = TrainConfig.model_validate(settings)
    module = spec_of(ModelConfig.model_validate({"model_name": name, "n_hidden": 16}), 0, data).build().train()
    model = average_gradients(module, world, options)
    optimizer = torch.optim.SGD([value for value in module.parameters() if value.requires_grad], lr=1e-3)
    given = {"seed": 0, "kl_weight": 0.5, "world": world, "requests": (float(world.rank), 0.0)}
    stream = train_stream(data, plan, **where, epoch=0, step=0, n_epochs=1)
    steps = [
        take_step(model, module, optimizer, *parts, options, **given)
        for parts in zip(islice(stream, n_steps), beside, strict=True)
    ]
    return {
        "sums": torch.stack([step.sums for step in steps]),
        "requests": torch.stack([step.requests for step in steps]),
        "weights": {key: value.clone() for key, value in module.state_dict().items()},
    }


def main(cells: Path, out: Path) -> None:
    """Take the steps of all cases, and write what each leaves and how many messages a step took."""
    sent, all_reduce = [], dist.all_reduce

    def counted(*args: Any, **options: Any) -> Any:
        sent.append(args)
        return all_reduce(*args, **options)

    dist.all_reduce = counted
    with process_group(torch.device("cpu"), timeout_s=60) as world:
        found = {}
        for name in MODELS:
            for case in CASES:
                sent.clear()
                found[name, case] = take_steps(cells, name, case, world) | {"messages": len(sent)}
        torch.save(found, out / f"{world.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
