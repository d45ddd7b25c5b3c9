"""Create the model that a run starts from: with new weights, or with those of another model."""

from pathlib import Path

import torch

from dist_scvi.config.schema import ModelConfig, RunConfig
from dist_scvi.loaders import CellData
from dist_scvi.loaders.library_prior import library_sums, prior_from
from dist_scvi.loaders.read_limits import READ_TIMEOUT_S
from dist_scvi.network.model_files import load_model
from dist_scvi.network.model_spec import ModelSpec, spec_of
from dist_scvi.network.vae import VAE
from dist_scvi.training.checkpoint import Checkpoint
from dist_scvi.transfer.scanvi_from_scvi import OF_SCANVI, check_options, scanvi_from
from dist_scvi.transfer.scarches import freeze
from dist_scvi.world import World


def begin(config: RunConfig, data: CellData, checkpoint: Checkpoint | None = None) -> tuple[VAE, ModelSpec]:
    """Create the network that a run begins with: from the seed, or from ``config.start_from``.

    If there is a checkpoint, ``config.start_from`` is not read again.
    """
    if config.start_from is None:
        spec = spec_of(config.model, config.seed, data)
        return spec.build(), spec
    if checkpoint is None:
        return _load_start(config, data)
    spec = ModelSpec.model_validate(checkpoint.state["spec"])
    check_options(spec, config.model, config.model.model_fields_set)
    module = spec.build()
    freeze(module, spec)
    return module, spec


def _load_start(config: RunConfig, data: CellData) -> tuple[VAE, ModelSpec]:
    """Read the model in the folder ``config.start_from``, converted if it is SCVI and SCANVI is requested."""
    assert config.start_from is not None
    module, spec = load_model(Path(config.start_from))
    requested = config.model
    if (spec.model.model_name, requested.model_name) == ("SCVI", "SCANVI"):
        check_options(spec, requested, requested.model_fields_set - OF_SCANVI)
        tree = spec.model.model_dump() | requested.model_dump(include=set(OF_SCANVI))
        return scanvi_from(module, spec, data, ModelConfig.model_validate(tree), seed=config.seed)
    if spec.model.model_name != requested.model_name:
        raise ValueError(
            f"start_from={config.start_from} holds {spec.model.model_name}, and {requested.model_name} cannot start "
            "from it (model.model_name): start with its own class, or SCANVI with SCVI"
        )
    check_options(spec, requested, requested.model_fields_set)
    freeze(module, spec)
    return module, spec


def set_library_prior(module: VAE, data: CellData, world: World, *, timeout_s: float = READ_TIMEOUT_S) -> None:
    """Read all cells once, shared among the workers, for the prior of the latent library size."""
    sums_bs = library_sums(data, rank=world.rank, world_size=world.size, timeout_s=timeout_s)
    total_bs = world.total(torch.from_numpy(sums_bs).to(world.device)).cpu().numpy()
    module.set_library_prior(*prior_from(total_bs))
