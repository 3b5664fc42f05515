"""The `train` section of the spec."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema, model_validator

from components.config import Config

RESHARDED_OPTIMIZERS = ("adam", "adamw")
"""Whose state DeepSpeed divides among another number of workers."""

NETWORK_VARIABLES = ("NCCL_", "TORCH_NCCL_", "GLOO_", "FI_", "UCX_")
"""How the names of those begin that tell the libraries between the workers how to talk."""

Workers = Annotated[
    int,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {
                    "type": "object",
                    "properties": {name: {"type": "integer", "minimum": 1} for name in ("min", "max")},
                    "required": ["min", "max"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]


class OptimizerConfig(Config):
    """The update rule; the learning rate is `train.learning_rate`."""

    name: Literal["sgd", "momentum", "adagrad", "adam", "adamw", "muon"] = "adamw"
    """muon: orthogonalised momentum for the hidden matrices (Jordan et al. 2024), adamw for all else; one worker."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Used by `momentum` and `muon`."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Used by `adam`, `adamw` and `muon`."""
    eps: float = Field(1e-8, gt=0)


class ScheduleConfig(Config):
    """How the learning rate moves over the steps of the whole training."""

    name: Literal["constant", "cosine", "linear", "step"] = "cosine"
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of all steps in which the rate rises linearly from 0."""
    final: float = Field(0.0, ge=0, le=1)
    """Rate at the end as a share of the peak (`cosine`, `linear`)."""
    step_epochs: int = Field(10, ge=1)
    """Epochs between two drops (`step`)."""
    gamma: float = Field(0.1, gt=0, le=1)
    """Factor of each drop (`step`)."""


class RegularizeConfig(Config):
    """What keeps the weights small and the targets soft. Dropout belongs to the model."""

    l1: float = Field(0.0, ge=0)
    """Added to the loss: l1 x sum of absolute weights."""
    l2: float = Field(0.0, ge=0)
    """Added to the loss: l2 / 2 x sum of squared weights."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled decay of `adamw` and `muon`."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class EarlyStopConfig(Config):
    """Stops when the deciding validation metric no longer improves."""

    patience: int = Field(5, ge=1)
    """Epochs without improvement."""
    min_delta: float = Field(0.0, ge=0)
    """Smallest change that counts as improvement."""


class EmaConfig(Config):
    """An exponential moving average of the weights, validated and kept in their place."""

    decay: float = Field(0.999, gt=0, lt=1)
    """Share of the average that a step keeps; after n steps at most (1 + n) / (10 + n)."""


class ZeroConfig(Config):
    """DeepSpeed ZeRO (Rajbhandari et al. 2019): what is sharded over the workers."""

    stage: Literal[0, 1, 2, 3] = 0
    """0 nothing, 1 optimizer state, 2 and gradients, 3 and weights."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """cpu keeps the optimizer's state in the host's memory and updates there (ZeRO-Offload); needs stage 1 or more.
    nvme keeps it on a disk of the worker (ZeRO-Infinity); needs stage 3 and adam or adamw."""
    offload_parameters: Literal["none", "cpu", "nvme"] = "none"
    """cpu keeps the weights in the host's memory between their uses; needs stage 3. nvme keeps them on a disk of the
    worker; needs the optimizer's state there, too."""
    nvme_path: str | None = None
    """Folder on a fast disk that each worker has for itself; None is one in the run's work folder. What is offloaded
    there is removed at the end."""

    @model_validator(mode="after")
    def _rules(self) -> ZeroConfig:
        if self.offload_optimizer != "none" and self.stage == 0:
            raise ValueError("zero.offload_optimizer needs sharded optimizer state; set zero.stage to 1, 2 or 3")
        if self.offload_parameters != "none" and self.stage != 3:
            raise ValueError(f"zero.offload_parameters needs sharded weights; zero.stage is {self.stage}, set it to 3")
        if self.offload_optimizer == "nvme" and self.stage != 3:
            raise ValueError(
                f"zero.offload_optimizer nvme needs stage 3; zero.stage is {self.stage}, set it to 3 or offload to cpu"
            )
        if self.offload_parameters == "nvme" and self.offload_optimizer != "nvme":
            raise ValueError(
                "zero.offload_parameters nvme leaves the larger part, the optimizer's state, in memory; set "
                "zero.offload_optimizer to nvme, too"
            )
        if self.nvme_path is not None and not self.nvme_path.startswith("/"):
            raise ValueError(f"zero.nvme_path is {self.nvme_path!r}; give an absolute path, the same on every machine")
        if self.nvme_path is not None and self.offload_optimizer != "nvme":
            raise ValueError("zero.nvme_path is used by offload to nvme only; set zero.offload_optimizer to nvme")
        return self


class AugmentConfig(Config):
    """Random changes of training images, drawn anew for each batch."""

    rotation: float = Field(0.0, ge=0, le=180)
    """Largest turn in degrees, either way."""
    shift: float = Field(0.0, ge=0, lt=1)
    """Largest shift as a share of the image size, each sample by itself."""
    crop: float = Field(0.0, ge=0, lt=1)
    """Largest share of the area that a random resized crop removes."""
    flip: bool = False
    """Whether images are mirrored left to right half of the time."""
    color: float = Field(0.0, ge=0, le=1)
    """Strength of brightness and contrast changes."""
    noise: float = Field(0.0, ge=0, le=1)
    """Standard deviation of Gaussian noise, in units of the normalised pixels."""


class TrainConfig(Config):
    """How the network is trained."""

    epochs: int = Field(10, ge=1)
    """Passes over the training split."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps of the whole training, in place of `epochs`."""
    validate_every_steps: int | None = Field(None, ge=1)
    """Steps between two validations; None validates after each epoch."""
    seq_len: int | None = Field(None, ge=2, le=1 << 20)
    """Tokens a sample of a language model, and the context it is built for; None is 256."""
    global_batch_size: int = Field(64, ge=1)
    """Samples per optimizer step, over all workers and accumulation steps."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Forward and backward passes per optimizer step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak rate."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    regularize: RegularizeConfig = RegularizeConfig()
    max_skipped_steps: int = Field(5, ge=0)
    """Steps in a row without a finite gradient that are left out; after one more, a checkpoint is taken back."""
    gradient_clipping: float = Field(1.0, ge=0)
    """Largest norm of the gradient; 0 does not clip."""
    early_stop: EarlyStopConfig | None = None
    """None trains all epochs."""
    ema: EmaConfig | None = None
    """None keeps the weights as they are; an average costs 4 bytes a parameter on every worker."""
    augment: AugmentConfig = AugmentConfig()
    activation_checkpointing: bool = False
    """Whether activations inside a Transformer's layers are computed again in the backward pass instead of kept."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on a GPU that has it (else fp16), on a CPU what probe steps find faster. fp16 scales the loss."""
    compile: bool = False
    """Whether forward and backward pass are compiled (torch.compile): half a minute at the start for quicker steps."""
    workers: Workers = Field(1, ge=1)
    """Processes that train together, one GPU each where there are GPUs. {min, max} goes on with fewer when machines are
    lost, and with more when they return."""
    min_workers: int | None = Field(None, ge=1)
    """What the spec's `workers: {min, max}` sets; None needs all."""
    max_restarts: int = Field(3, ge=0)
    """How often training goes on after a worker was lost without reaching another checkpoint."""
    zero: ZeroConfig = ZeroConfig()
    environment: dict[str, str] = {}
    """Variables of NCCL, gloo and their networks in each worker of several, such as NCCL_SOCKET_IFNAME; no secrets."""
    checkpoint_every_epochs: int = Field(1, ge=1)
    """Validations between two checkpoints; the last one is always kept."""
    checkpoint_every_steps: int | None = Field(None, ge=1)
    """Steps between two checkpoints, in place of `checkpoint_every_epochs`: for epochs that take hours."""
    checkpoint_in_background: bool = True
    """Whether checkpoints of `checkpoint_every_steps` are copied and written while training goes on; a copy of weights
    and optimizer state in the machine's memory."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints that are kept."""

    def saves_beside(self) -> bool:
        """Whether checkpoints are written while training goes on, from a copy in the machine's memory."""
        room = self.zero.offload_optimizer != "nvme"
        return room and self.checkpoint_every_steps is not None and self.checkpoint_in_background

    def world_sizes(self) -> range:
        """Numbers of workers that training may run on."""
        return range(self.min_workers or self.workers, self.workers + 1)

    @model_validator(mode="after")
    def _rules(self) -> TrainConfig:
        self._check_workers()
        if foreign := [name for name in self.environment if not name.startswith(NETWORK_VARIABLES)]:
            raise ValueError(f"environment sets {', '.join(foreign)}; it is for variables that begin with "
                             f"{', '.join(NETWORK_VARIABLES)}, others belong to the Ray nodes")  # fmt: skip
        if self.optimizer.name == "muon" and (self.workers > 1 or self.zero.stage):
            raise ValueError("optimizer muon needs whole matrices; set workers to 1 and zero.stage to 0, or take adamw")
        if self.ema is not None and self.zero.stage == 3:
            raise ValueError("ema averages whole weights, which zero.stage 3 shards; set zero.stage to 2 or less, or "
                             "leave ema out")  # fmt: skip
        if self.compile and self.zero.stage == 3:
            raise ValueError("compile needs whole weights, which zero.stage 3 gathers layer by layer; set zero.stage "
                             "to 2 or less, or compile to false")  # fmt: skip
        if self.zero.offload_optimizer == "nvme" and self.optimizer.name not in RESHARDED_OPTIMIZERS:
            raise ValueError(
                f"zero.offload_optimizer nvme is for {' and '.join(RESHARDED_OPTIMIZERS)}; optimizer is "
                f"{self.optimizer.name}, take one of these, or offload to cpu"
            )
        if self.zero.stage == 3 and (self.regularize.l1 or self.regularize.l2):
            raise ValueError("regularize.l1 and l2 need whole weights, which zero.stage 3 shards; use weight_decay")
        return self

    def _check_workers(self) -> None:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"workers.min {self.min_workers} is more than workers.max {self.workers}; swap them")
        accumulation = self.gradient_accumulation_steps
        uneven = [size for size in self.world_sizes() if self.global_batch_size % (size * accumulation)]
        if uneven and self.min_workers is None:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} does not divide by workers x gradient_accumulation_steps "
                f"= {self.workers * accumulation}; make it a multiple"
            )
        if uneven:
            whole = math.lcm(*self.world_sizes()) * accumulation
            raise ValueError(
                f"global_batch_size {self.global_batch_size} does not divide among {', '.join(map(str, uneven))} "
                f"workers (x gradient_accumulation_steps {accumulation}), and any number from {self.min_workers} to "
                f"{self.workers} may be left; make it a multiple of {whole}, or the range narrower"
            )
        if self.min_workers is not None and self.zero.stage and self.optimizer.name not in RESHARDED_OPTIMIZERS:
            raise ValueError(
                f"workers {{min, max}} with zero.stage {self.zero.stage} divides the optimizer's state anew, which "
                f"{self.optimizer.name} does not allow; take {' or '.join(RESHARDED_OPTIMIZERS)}, zero.stage 0, or one "
                "number of workers"
            )
