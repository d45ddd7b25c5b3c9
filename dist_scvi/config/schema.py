"""The configuration of a run: its keys, their defaults and bounds."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dist_scvi.loaders.read_limits import READ_TIMEOUT_S


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


def _list_of_names(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"{value!r} is one text, a list is needed: [{value}]")  # noqa: TRY004 - pydantic reports it
    return value


_Names = Annotated[tuple[str, ...], BeforeValidator(_list_of_names)]


class SomaConfig(_Section):
    """The part of a TileDB-SOMA experiment to read."""

    measurement: str = "RNA"
    """Measurement that holds the counts."""
    var_names_column: str | None = None
    """Column of var with the gene names; by default the usual ones are tried."""
    obs_names_column: str | None = None
    """Column of obs with the cell names; by default the usual ones are tried."""
    obs_value_filter: str | None = None
    """Cells to read, as in "tissue == 'lung' and is_primary_data == True"."""
    timestamp_ms: int | None = Field(None, ge=1)
    """TileDB timestamp at which all workers and all resumed runs read, in ms; by default the time of the first start,
    which is recorded in the run."""
    tiledb_config: _Options = {}
    """TileDB settings, such as vfs.s3.region."""


class DataConfig(_Section):
    """The cells and their obs columns."""

    uri: str | tuple[str, ...]
    """AnnData in Zarr (folder or URL), annbatch collection, .h5ad or TileDB-SOMA; a list is read as one store."""
    layer: str | None = None
    """Layer to read instead of X; raw/X for the counts in raw; for SOMA the layer of X."""
    genes: tuple[str, ...] | str | None = None
    """Genes to keep, in this order: a list, or a file with one name per line."""
    skip_missing: bool = False
    """Leave out genes of data.genes that are in no store, with a message; they are refused otherwise."""
    join: Literal["inner", "outer"] = "inner"
    """For several stores: keep the genes that all of them have (inner), or that any has (outer)."""
    source_key: str | None = "source"
    """For several stores: name of the added obs column that holds the store of each cell."""
    soma: SomaConfig | None = None
    """Options of a TileDB-SOMA experiment; needed if a default does not fit or the experiment is remote."""
    storage_options: _Options = {}
    """Options of a URL: endpoint, region, skip_signature. Credentials are read from the environment."""
    allow_fractional: bool = False
    """Train on values that are not whole, as of ambient correction or Smart-seq; they are refused otherwise."""
    batch_key: str | None = None
    """obs column of the batch covariate."""
    labels_key: str | None = None
    """obs column of cell labels: SCANVI predicts them, SCVI uses them for dispersion="gene-label"."""
    unlabeled_category: str | None = None
    """SCANVI: the label of unlabelled cells; missing values count as unlabelled too."""
    size_factor_key: str | None = None
    """obs column of size factors, used instead of the total counts."""
    categorical_covariate_keys: _Names = ()
    """Additional categorical obs columns to correct for."""
    continuous_covariate_keys: _Names = ()
    """Continuous obs columns to correct for."""
    split_key: str | None = None
    """obs column with the values train, validation and test, instead of a split by the seed."""
    holdout_key: str | None = None
    """obs column, such as the donor, whose categories are held out as a whole, in about the requested shares."""
    weight_key: str | None = None
    """Numeric obs column: cells are drawn with probability proportional to it."""
    balance_key: str | None = None
    """obs column whose categories are drawn equally often."""
    memory_mib: int = Field(512, ge=1)
    """Memory in MiB for prefetched cells, over all workers."""
    block_cells: int | None = Field(None, ge=1)
    """Rows read together; by default as many as keep minibatches well mixed."""
    window_cells: int | None = Field(None, ge=1)
    """Cells shuffled together; by default as many as fit in data.memory_mib."""
    timeout_s: float = Field(READ_TIMEOUT_S, gt=0)
    """Longest time to wait for a read, in s."""


class ClassifierConfig(_Section):
    """The classifier of SCANVI; null takes the value of the encoder."""

    n_hidden: int | None = Field(None, ge=1, le=65_536)
    """Units of a hidden layer."""
    n_layers: int | None = Field(None, ge=0, le=64)
    """Hidden layers; 0 for a linear classifier."""
    dropout_rate: float | None = Field(None, ge=0, lt=1)
    """Dropout in the classifier."""


_Where = Literal["encoder", "decoder", "none", "both"]


REFERENCE: dict[str, Any] = {"encode_covariates": True, "use_layer_norm": "both", "use_batch_norm": "none"}
"""Options of a model onto which later batches are to be mapped (scArches), as ``SCVI(data, **REFERENCE)``."""


class ModelConfig(_Section):
    """The network; names and defaults of scvi-tools 1.4.2."""

    model_name: Literal["SCVI", "SCANVI", "LinearSCVI"] = "SCVI"
    """Model class. SCANVI needs data.labels_key."""
    n_hidden: int = Field(128, ge=1, le=65_536)
    """Units of a hidden layer."""
    n_latent: int = Field(10, ge=1, le=4_096)
    """Dimensions of the latent space."""
    n_layers: int = Field(1, ge=1, le=64)
    """Hidden layers of encoder and decoder."""
    dropout_rate: float = Field(0.1, ge=0, lt=1)
    """Dropout in the encoder."""
    dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene"
    """Dispersion of a gene: one value, one per batch, one per label, or decoded for each cell."""
    gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb"
    """Distribution of the counts; nb by default for LinearSCVI."""
    use_observed_lib_size: bool = True
    """Use the total count of a cell as its library size, else a latent variable; false by default for LinearSCVI."""
    latent_distribution: Literal["normal", "ln"] = "normal"
    """Normal, or logistic normal (ln), whose values add up to 1."""
    log_variational: bool = True
    """Encode log(1 + counts) instead of counts."""
    encode_covariates: bool = False
    """Pass the covariates to the encoder as well. A reference onto which later batches are mapped needs it (train
    --reference)."""
    deeply_inject_covariates: bool = True
    """Pass the covariates to every layer, else only to the first."""
    batch_representation: Literal["one-hot", "embedding"] = "one-hot"
    """How the batch enters the networks."""
    embedding_dim: int = Field(5, ge=1, le=4_096)
    """Dimensions of the embedding of a batch."""
    use_batch_norm: _Where = "both"
    """Where batch normalisation is used; LinearSCVI: both, or encoder."""
    use_layer_norm: _Where = "none"
    """Where layer normalisation is used."""
    bias: bool = False
    """LinearSCVI: add an intercept to the linear decoder."""
    linear_classifier: bool = False
    """SCANVI: classify with one linear layer."""
    classifier_parameters: ClassifierConfig = ClassifierConfig()
    """SCANVI: size of the classifier."""
    y_prior: tuple[float, ...] | None = None
    """SCANVI: prior probability of each label, uniform by default."""
    objective: Literal["scvi-tools", "conditional"] = "scvi-tools"
    """SCANVI: bound of a labelled cell over all labels, as in scvi-tools, or conditional on its own label, as in the
    paper."""

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
"""Metrics that early stopping may monitor."""


class TrainConfig(_Section):
    """Length of the training, optimizer, checkpoints; names and defaults of scvi-tools where it has them."""

    max_epochs: int | None = Field(None, ge=1)
    """Passes over the training cells; by default min(400, 400 * 20000 / cells), at least 1."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps after which the run ends, if max_epochs does not end it before."""
    batch_size: int = Field(1024, ge=2)
    """Cells of a global minibatch, over all workers. In scvi-tools it is 128 per worker."""
    lanes: int = Field(8, ge=1)
    """Streams of cells that each contribute an equal part of a minibatch; the number of workers must divide it."""
    micro_cells: int = Field(128, ge=2)
    """Cells of a micro-minibatch, over which batch normalisation computes its statistics."""
    train_size: float | None = Field(None, gt=0, le=1)
    """Share of the cells to train on; 0.9 by default."""
    validation_size: float | None = Field(None, ge=0, le=1)
    """Share of the cells to validate on; by default the rest."""
    optimizer: Literal["Adam", "AdamW"] = "Adam"
    """Optimizer; AdamW decouples the weight decay from the gradient."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate."""
    eps: float = Field(0.01, gt=0)
    """Term added to the denominator of Adam for numerical stability."""
    weight_decay: float = Field(1e-6, ge=0)
    """Weight decay; for Adam an L2 penalty."""
    gradient_clip_val: float | None = Field(None, gt=0)
    """Largest norm of the gradient over all weights; larger gradients are scaled down to it."""
    n_steps_kl_warmup: int | None = Field(None, ge=0)
    """Steps over which the weight of the KL term rises from min_kl_weight to max_kl_weight, 0 for none; by default half
    of the run, at most 400 epochs."""
    n_epochs_kl_warmup: int | None = Field(None, ge=0)
    """Length of the warm-up in epochs instead, as in scvi-tools (its default of 400 is never reached on large
    atlases)."""
    max_kl_weight: float = Field(1.0, ge=0)
    """Weight of the KL term after the warm-up."""
    min_kl_weight: float = Field(0.0, ge=0)
    """Weight of the KL term at the start of the warm-up."""
    classification_ratio: float = Field(50.0, ge=0)
    """SCANVI: weight of the classification loss."""
    n_samples_per_label: int | None = Field(None, ge=1)
    """SCANVI: labelled cells per label to classify in an epoch, drawn again in each epoch; by default all."""
    reduce_lr_on_plateau: bool = False
    """Multiply the learning rate by lr_factor when lr_scheduler_metric no longer decreases."""
    lr_factor: float = Field(0.6, gt=0, lt=1)
    """Factor by which the learning rate is reduced."""
    lr_patience: int = Field(30, ge=0)
    """Validations without a decrease after which the learning rate is reduced."""
    lr_threshold: float = Field(0.0, ge=0)
    """Smallest decrease that counts, absolute."""
    lr_scheduler_metric: _Loss = "elbo_validation"
    """Validation metric that the learning rate depends on."""
    lr_min: float = Field(0.0, ge=0)
    """Smallest learning rate."""
    early_stopping: bool = False
    """End the run when early_stopping_monitor no longer improves."""
    early_stopping_monitor: Monitor = "elbo_validation"
    """Validation metric that early stopping and load_best depend on."""
    early_stopping_mode: Literal["min", "max"] = "min"
    """Whether a lower (min) or a higher (max) value is better."""
    early_stopping_min_delta: float = Field(0.0, ge=0)
    """Smallest change that counts as an improvement, absolute."""
    early_stopping_patience: int = Field(45, ge=1)
    """Validations without improvement after which the run ends."""
    early_stopping_warmup_epochs: int = Field(0, ge=0)
    """First epochs, whose validations early stopping ignores."""
    load_best: bool = False
    """End with the weights of the validation with the best early_stopping_monitor."""
    check_val_every_n_epoch: int = Field(1, ge=0)
    """Epochs between validations; 0 for only one, after the last epoch."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """bf16-mixed multiplies matrices in bfloat16; weights, normalisation and likelihood stay float32."""
    kernels: Literal["auto", "torch", "compiled"] = "auto"
    """How a step is computed: by torch's operations, or by loops compiled for it, which takes some seconds the first
    time on a machine; the result is the same up to rounding. By default compiled if the cells times genes are at least
    10 million."""
    batch_norm: Literal["micro", "global"] = "micro"
    """Statistics of batch normalisation in training: over each micro-minibatch, or over the whole global minibatch, as
    synchronised batch normalisation does; SCANVI then keeps all cells x labels in memory at once."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Number of parts in which a worker processes its cells of a minibatch, one after the other: less memory, the same
    result."""
    gradient_compression: Literal["bf16"] | None = None
    """Send gradients between workers in bfloat16: half the bytes, and results that depend on the number of workers."""
    save_every_n_steps: int = Field(500, ge=1)
    """Steps between checkpoints; one is also written after each validation and at the end."""
    save_every_n_minutes: float | None = Field(None, gt=0)
    """Longest time between checkpoints in minutes, in addition to save_every_n_steps."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of newest checkpoints to keep."""
    log_every_n_steps: int = Field(10, ge=1)
    """Steps between lines of metrics."""
    collective_timeout_s: float = Field(300.0, gt=0)
    """Longest time that a worker waits for the others, in s; if it is not above data.timeout_s, one slow read ends the
    run of all."""
    strict_versions: bool = False
    """Refuse to resume with another minor version of torch or numpy; by default it is only warned about."""

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
    """Folder or URL (s3://, gs://) to which checkpoints, metrics and the model are written."""
    storage_options: _Options = {}
    """Options of that URL: endpoint, region. Credentials are read from the environment."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Seed of the weights, the split, the order of cells and the noise."""
    start_from: str | None = None
    """Folder of a model to start from, such as RUN/model: of the same class, or SCVI for SCANVI."""
    logger: Literal["tensorboard", "mlflow", "wandb"] | None = None
    """Service to which metrics are sent as well; a run keeps its identity there over restarts."""
    logger_options: _Options = {}
    """Options of the logger. tensorboard: dir; mlflow: tracking_uri, experiment_name, name; wandb: project, entity,
    group, name, mode, dir. Credentials are read from the environment."""
    data: DataConfig
    """The cells and their obs columns."""
    model: ModelConfig = ModelConfig()
    """The network."""
    train: TrainConfig = TrainConfig()
    """Length of the training, optimizer, checkpoints."""

    @model_validator(mode="after")
    def _classifies(self) -> "RunConfig":
        keys = [key for key in _OF_SCANVI if getattr(self.train, key) != TrainConfig.model_fields[key].default]
        if self.train.early_stopping_monitor in get_args(_OfClassifier):
            keys.append(f"early_stopping_monitor={self.train.early_stopping_monitor}")
        if keys and self.model.model_name != "SCANVI":
            raise ValueError(f"train.{', train.'.join(keys)}: SCANVI has this, {self.model.model_name} does not")
        return self


_OF_SCANVI = ("classification_ratio", "n_samples_per_label")


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section of a key of this type, or None for a plain value."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, _Section)), None)


SECTIONS = tuple(name for name, field in RunConfig.model_fields.items() if section_of(field.annotation))
"""Keys of a run that are sections."""
