"""The configuration of a run: its keys, their defaults and bounds."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # YAML reads a folder or column named 3 as a number
    )


def _without_secrets(options: dict[str, str]) -> dict[str, str]:
    secret = [key for key in options if any(word in key.lower() for word in _SECRETS)]
    if secret:
        raise ValueError(
            f"{', '.join(secret)}: a configuration is stored with every result, give credentials in the environment"
        )
    return options


_SECRETS = ("secret", "token", "password", "access_key", "account_key", "credential")
_Options = Annotated[dict[str, str], AfterValidator(_without_secrets)]


class SomaConfig(_Section):
    """Which part of a TileDB-SOMA experiment is read."""

    measurement: str = "RNA"
    var_names_column: str | None = None
    """Column of var that names the genes; by default the usual ones are tried."""
    obs_names_column: str | None = None
    """Column of obs that names the cells; likewise."""
    obs_value_filter: str | None = None
    """Cells to read, as in "tissue == 'lung' and is_primary_data == True"."""
    timestamp_ms: int | None = Field(None, ge=1)
    """Moment as of which all workers, and a resumed run, read; by default that of the start, which is recorded."""
    tiledb_config: _Options = {}
    """Settings of TileDB, such as vfs.s3.region."""


class DataConfig(_Section):
    """Which cells, and what is known of them."""

    uri: str | tuple[str, ...]
    """AnnData in Zarr (folder or URL), annbatch collection, .h5ad or TileDB-SOMA; several in a list are one store."""
    layer: str | None = None
    """Read layers/LAYER instead of X; raw/X for the counts in raw; of SOMA the layer of X."""
    genes: tuple[str, ...] | str | None = None
    """Keep these genes, in this order: a list, or a file with one in a line."""
    join: Literal["inner", "outer"] = "inner"
    """Of several stores, the genes that all have, or that any has."""
    source_key: str | None = "source"
    """Of several stores, the obs column that says which one a cell is from."""
    soma: SomaConfig | None = None
    """Needed for SOMA only where a default does not fit, or the experiment is remote."""
    storage_options: _Options = {}
    """Of a URL: endpoint, region, skip_signature; credentials are taken from the environment."""
    batch_key: str | None = None
    """obs column of the batch covariate."""
    labels_key: str | None = None
    """obs column of cell labels: SCANVI learns them, SCVI uses them for dispersion="gene-label"."""
    unlabeled_category: str | None = None
    """The label of cells that have none, for SCANVI; a missing value is one as well."""
    size_factor_key: str | None = None
    """obs column of size factors, in place of the total counts."""
    categorical_covariate_keys: tuple[str, ...] = ()
    """Further categorical obs columns to correct for."""
    continuous_covariate_keys: tuple[str, ...] = ()
    """Continuous obs columns to correct for."""
    split_key: str | None = None
    """obs column whose values are train, validation and test, instead of a split by the seed."""
    holdout_key: str | None = None
    """obs column, such as the donor, of which whole categories are held out, in about the shares asked for."""
    weight_key: str | None = None
    """obs column of numbers: how often a cell is drawn, in proportion."""
    balance_key: str | None = None
    """obs column whose categories are drawn equally often."""
    memory_mib: int = Field(512, ge=1)
    """Memory for the cells a worker holds ahead, if it served all lanes."""
    block_cells: int | None = Field(None, ge=1)
    """Rows read together; by default as many as keep minibatches diverse."""
    window_cells: int | None = Field(None, ge=1)
    """Cells shuffled together; by default what data.memory_mib holds."""
    timeout_s: float = Field(240.0, gt=0)
    """Longest wait for a read."""


class ClassifierConfig(_Section):
    """The classifier of SCANVI; what is None is as in the encoder."""

    n_hidden: int | None = Field(None, ge=1, le=65_536)
    n_layers: int | None = Field(None, ge=0, le=64)
    dropout_rate: float | None = Field(None, ge=0, lt=1)


_Where = Literal["encoder", "decoder", "none", "both"]


class ModelConfig(_Section):
    """The network; names and defaults of scvi-tools 1.4.2."""

    model_name: Literal["SCVI", "SCANVI", "LinearSCVI"] = "SCVI"
    """Which model. SCANVI needs data.labels_key."""
    n_hidden: int = Field(128, ge=1, le=65_536)
    """Units of a hidden layer."""
    n_latent: int = Field(10, ge=1, le=4_096)
    """Dimensions of the latent space."""
    n_layers: int = Field(1, ge=1, le=64)
    """Hidden layers of encoder and decoder."""
    dropout_rate: float = Field(0.1, ge=0, lt=1)
    """Dropout in the encoder."""
    dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene"
    """Whether a gene's dispersion is one, one per batch, one per label, or decoded for each cell."""
    gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb"
    """Distribution of the counts; nb by default for LinearSCVI."""
    use_observed_lib_size: bool = True
    """Use a cell's total count as its library size, else a latent one; False by default for LinearSCVI."""
    latent_distribution: Literal["normal", "ln"] = "normal"
    """Normal, or logistic normal: shares that add up to 1."""
    log_variational: bool = True
    """Encode log(1 + counts) rather than counts."""
    encode_covariates: bool = False
    """Give the covariates to the encoder too."""
    deeply_inject_covariates: bool = True
    """Give them to every layer, else to the first."""
    batch_representation: Literal["one-hot", "embedding"] = "one-hot"
    """How the batch enters the networks."""
    embedding_dim: int = Field(5, ge=1, le=4_096)
    """Dimensions of the embedding of a batch."""
    use_batch_norm: _Where = "both"
    """Where batch normalisation is used; LinearSCVI: both, or encoder."""
    use_layer_norm: _Where = "none"
    """Where layer normalisation is used."""
    bias: bool = False
    """LinearSCVI: give the linear decoder an intercept."""
    linear_classifier: bool = False
    """SCANVI: classify by one linear layer."""
    classifier_parameters: ClassifierConfig = ClassifierConfig()
    """SCANVI: shape of the classifier."""
    y_prior: tuple[float, ...] | None = None
    """SCANVI: prior probability of each label, uniform by default."""
    objective: Literal["scvi-tools", "conditional"] = "scvi-tools"
    """SCANVI: whether the bound of a labelled cell is taken over all labels, as scvi-tools does, or given its own, as
    in the paper."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("model_name") == "LinearSCVI":
            return {"gene_likelihood": "nb", "use_observed_lib_size": False, **tree}
        return tree

    @model_validator(mode="after")
    def _fits_together(self) -> "ModelConfig":
        if self.y_prior is not None and (min(self.y_prior) <= 0 or abs(sum(self.y_prior) - 1) > 1e-3):
            raise ValueError(f"y_prior={self.y_prior}: probabilities above 0 that add up to 1 are needed")
        for name, only in _ONLY_OF.items():
            changed = [key for key in only if getattr(self, key) != type(self).model_fields[key].default]
            if changed and self.model_name != name:
                raise ValueError(f"{', '.join(changed)}: {name} has this, {self.model_name} does not")
        if self.model_name == "LinearSCVI":
            fixed: dict[str, tuple[Any, ...]] = {key: (type(self).model_fields[key].default,) for key in _NOT_OF_LINEAR}
            fixed |= {"use_batch_norm": ("both", "encoder"), "dispersion": ("gene", "gene-batch")}
            for key, allowed in fixed.items():
                if getattr(self, key) not in allowed:
                    raise ValueError(
                        f"{key}={getattr(self, key)!r}: LinearSCVI allows {' or '.join(map(str, allowed))}"
                    )
        return self


_ONLY_OF = {"SCANVI": ("linear_classifier", "classifier_parameters", "y_prior", "objective"), "LinearSCVI": ("bias",)}
_NOT_OF_LINEAR = (
    "encode_covariates",
    "deeply_inject_covariates",
    "batch_representation",
    "embedding_dim",
    "use_layer_norm",
)


_Loss = Literal["elbo_validation", "reconstruction_loss_validation", "kl_local_validation"]
_Score = Literal["validation_accuracy", "validation_f1_score", "validation_calibration_error"]
_OfClassifier = Literal["validation_classification_loss", _Score]
Monitor = Literal[_Loss, "validation_loss", _OfClassifier]
"""What early stopping may watch."""


class TrainConfig(_Section):
    """How long and how; names and defaults of scvi-tools where it has them."""

    max_epochs: int | None = Field(None, ge=1)
    """Passes over the training cells; by default min(400, 400 * 20000 / cells), at least 1."""
    batch_size: int = Field(1024, ge=2)
    """Cells of a global minibatch, over all workers. scvi-tools: 128 on each."""
    lanes: int = Field(8, ge=1)
    """Streams that share a minibatch; the number of workers must divide it, and may change on resume."""
    micro_cells: int = Field(128, ge=2)
    """Cells that batch normalisation sees together."""
    train_size: float | None = Field(None, gt=0, le=1)
    """Share of the cells to train on, 0.9 by default."""
    validation_size: float | None = Field(None, ge=0, le=1)
    """Share to validate on; by default the rest."""
    optimizer: Literal["Adam", "AdamW"] = "Adam"
    """AdamW keeps the weight decay apart from the gradient."""
    lr: float = Field(1e-3, gt=0)
    eps: float = Field(0.01, gt=0)
    weight_decay: float = Field(1e-6, ge=0)
    """Weight decay; of Adam an L2 penalty."""
    gradient_clip_val: float | None = Field(None, gt=0)
    """Longest gradient, over all weights; longer ones are shortened to it."""
    n_steps_kl_warmup: int | None = Field(None, ge=0)
    """Steps over which the weight of the KL term rises from the least to the greatest, 0 for none; by default half of
    the run, at most 400 epochs."""
    n_epochs_kl_warmup: int | None = Field(None, ge=0)
    """Count the warm-up in epochs instead, as scvi-tools does (its default is 400, which large atlases never reach)."""
    max_kl_weight: float = Field(1.0, ge=0)
    min_kl_weight: float = Field(0.0, ge=0)
    classification_ratio: float = Field(50.0, ge=0)
    """SCANVI: weight of the classification loss."""
    n_samples_per_label: int | None = Field(None, ge=1)
    """SCANVI: labelled cells of each label that an epoch classifies, drawn anew in each; by default all."""
    reduce_lr_on_plateau: bool = False
    """Multiply the learning rate by lr_factor when a metric of the validation no longer falls."""
    lr_factor: float = Field(0.6, gt=0, lt=1)
    lr_patience: int = Field(30, ge=0)
    """Validations without a fall that are put up with."""
    lr_threshold: float = Field(0.0, ge=0)
    lr_scheduler_metric: _Loss = "elbo_validation"
    lr_min: float = Field(0.0, ge=0)
    early_stopping: bool = False
    """End the run when a metric of the validation no longer improves."""
    early_stopping_monitor: Monitor = "elbo_validation"
    early_stopping_mode: Literal["min", "max"] = "min"
    """Whether a lower or a higher value is better."""
    early_stopping_min_delta: float = Field(0.0, ge=0)
    """A smaller change is no improvement."""
    early_stopping_patience: int = Field(45, ge=1)
    """Validations without improvement after which the run ends."""
    early_stopping_warmup_epochs: int = Field(0, ge=0)
    """First epochs, of which no notice is taken."""
    load_best: bool = False
    """End with the weights of the validation at which early_stopping_monitor was best."""
    check_val_every_n_epoch: int = Field(1, ge=0)
    """Epochs between validations; 0 for none but the last."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """bf16-mixed multiplies matrices in bfloat16; weights, normalisation and likelihood stay float32."""
    batch_norm: Literal["micro", "global"] = "micro"
    """Statistics of batch normalisation in training: of each micro-minibatch, or of the whole global minibatch,
    as synchronised batch normalisation; SCANVI then holds all cells x labels at once."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Parts in which a worker computes its cells of a minibatch, one after the other: less memory, the same result."""
    gradient_compression: Literal["bf16"] | None = None
    """Send gradients between workers in bfloat16: half the bytes, and results that depend on the number of workers."""
    save_every_n_steps: int = Field(500, ge=1)
    """Steps between checkpoints; one is also written after every epoch that validates, and at the end."""
    save_every_n_minutes: float | None = Field(None, gt=0)
    """Longest time between checkpoints, if that comes before the steps."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints kept."""
    log_every_n_steps: int = Field(10, ge=1)
    """Steps between lines of metrics."""
    collective_timeout_s: float = Field(300.0, gt=0)
    """Longest wait of one worker for the others; longer than data.timeout_s, or a slow read of one ends them all."""

    @model_validator(mode="after")
    def _warms_up(self) -> "TrainConfig":
        if self.min_kl_weight > self.max_kl_weight:
            raise ValueError(f"min_kl_weight={self.min_kl_weight} is above max_kl_weight={self.max_kl_weight}")
        if self.n_steps_kl_warmup is not None and self.n_epochs_kl_warmup is not None:
            raise ValueError("n_steps_kl_warmup and n_epochs_kl_warmup are both set: choose one")
        return self

    @model_validator(mode="after")
    def _normalises(self) -> "TrainConfig":
        if self.batch_norm == "global" and self.gradient_accumulation_steps > 1:
            raise ValueError(
                "batch_norm='global' needs all cells of a minibatch at once, and "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} computes them in parts: set one back"
            )
        return self


class RunConfig(_Section):
    """A whole run."""

    run: str = "run"
    """Folder, or URL of one (s3://, gs://), that receives checkpoints, metrics and the model."""
    storage_options: _Options = {}
    """Of such a URL: endpoint, region; credentials are taken from the environment."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Seed of weights, split, order and noise."""
    start_from: str | None = None
    """Folder of a model to begin with, such as RUN/model: of the same class, or of SCVI for SCANVI."""
    logger: Literal["tensorboard", "mlflow", "wandb"] | None = None
    """Send metrics there as well; a run keeps its identity over restarts."""
    logger_options: _Options = {}
    """Of tensorboard: dir; of mlflow: tracking_uri, experiment_name, name; of wandb: project, entity, group, name,
    mode, dir. Credentials come from the environment."""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _classifies(self) -> "RunConfig":
        keys = [key for key in _OF_SCANVI if getattr(self.train, key) != TrainConfig.model_fields[key].default]
        if self.train.early_stopping_monitor in get_args(_OfClassifier):
            keys.append(f"early_stopping_monitor={self.train.early_stopping_monitor}")
        if keys and self.model.model_name != "SCANVI":
            raise ValueError(f"train.{', train.'.join(keys)}: SCANVI has this, {self.model.model_name} does not")
        return self


_OF_SCANVI = ("classification_ratio", "n_samples_per_label")
