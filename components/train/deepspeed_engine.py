"""ZeRO 0 to 3 on any number of workers, by DeepSpeed."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from components.imports import hidden
from components.models.folder import named_tensors, save_weights, stream_weights
from components.train.compiling import Compiling
from components.train.config import RESHARDED_OPTIMIZERS, ZeroConfig
from components.train.engine import EngineSettings, Update, judge_step
from components.train.fp32_products import multiply_in_fp32
from components.train.loss_scale import LossScale
from components.train.nvme import (
    Swap,
    close_folder,
    fp32_buffers,
    nvme_settings,
    read_swapped,
    stop_reading_ahead,
    write_swapped,
)
from components.train.optimizer import make_optimizer, parameter_groups
from components.train.plan.memory import CPU_BUCKET_ELEMENTS
from components.train.torch_engine import copy_to_host, hold_whole, load_whole, plain_weights, unscale, write_torch

TAG = "deepspeed"
COMMON_NAME = "common.safetensors"
STEP = "optimizer.step"
MOMENTS = ("exp_avg", "exp_avg_sq")
NEVER = 1 << 40
"""Steps between two of DeepSpeed's own log lines."""


def deepspeed_config(settings: EngineSettings) -> dict[str, Any]:
    """DeepSpeed's settings; unknown top-level keys would be ignored in silence, so only known ones are here."""
    train = settings.train
    micro = train.global_batch_size // (train.gradient_accumulation_steps * settings.world_size)
    return {
        "train_batch_size": train.global_batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "gradient_clipping": train.gradient_clipping,
        "zero_optimization": zero_config(train.zero, settings.placement.device, settings.swap),
        "zero_allow_untested_optimizer": True,
        # Momentum and the like have no DeepSpeed form; torch's updates on the host too.
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {"enabled": settings.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": NEVER,
    }


def zero_config(zero: ZeroConfig, device: str, swap: Swap | None = None) -> dict[str, Any]:
    """The `zero_optimization` part."""
    values: dict[str, Any] = {"stage": zero.stage}
    if zero.stage in (1, 2):
        # What DeepSpeed calls scattering is an all-reduce here as well, of a copy that is copied back.
        values["reduce_scatter"] = False
        if device == "cpu":
            values["reduce_bucket_size"] = CPU_BUCKET_ELEMENTS
    if zero.offload_optimizer != "none":
        values["offload_optimizer"] = {"device": zero.offload_optimizer}
    if zero.offload_parameters != "none":
        values["offload_param"] = {"device": zero.offload_parameters}
    return values if swap is None else {**values, **nvme_settings(zero, swap)}


def choose_optimizer(settings: EngineSettings, module: nn.Module) -> Any:
    """torch's optimizer, or for state in the host's memory DeepSpeed's vectorised one (its own Adam and Adagrad)."""
    train = settings.train
    if train.zero.offload_optimizer == "none" or train.optimizer.name not in ("adam", "adamw"):
        return make_optimizer(train, module)
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    adamw = train.optimizer.name == "adamw"
    groups = parameter_groups(module, train.regularize.weight_decay if adamw else 0.0)
    options = train.optimizer
    return DeepSpeedCPUAdam(
        groups, lr=train.learning_rate, betas=options.betas, eps=options.eps, adamw_mode=adamw, bias_correction=True
    )


def count_steps(optimizer: Any) -> None:
    """Brings DeepSpeed's Adam to where the steps of its restored state left it.

    It multiplies the powers of its betas in float32, step by step; in a new process it would begin with `pow`, and a
    resumed training would not be the same bit for bit.
    """
    steps = max((int(state["step"]) for state in optimizer.state.values() if "step" in state), default=0)
    group, nothing = optimizer.param_groups[0], [torch.zeros(1) for _ in range(4)]
    for step in range(1, steps + 1):
        optimizer.ds_opt_adam.adam_update(
            optimizer.opt_id, step, 0.0, *group["betas"], group["eps"], 0.0, group["bias_correction"], *nothing
        )


class DeepSpeedEngine:
    """See `Engine`."""

    def __init__(self, module: nn.Module, settings: EngineSettings) -> None:
        self.rank, self.stage = settings.rank, settings.train.zero.stage
        self.cleanup = ExitStack()
        self.cleanup.enter_context(_environment(_rank_variables(settings)))
        deepspeed = start_deepspeed(settings)
        module = module.to(settings.placement.device)
        share_whole_weights(module)
        self.loss_scale = LossScale() if settings.precision == "fp16" else None
        if self.loss_scale is not None:
            # DeepSpeed's own fp16 under autocast neither keeps its scale in checkpoints nor heeds it when it clips.
            device_type = settings.placement.device.split(":")[0]
            module.forward = torch.autocast(device_type, torch.float16)(module.forward)
        with fp32_buffers() if settings.swap is not None else nullcontext():
            self.engine, *_ = deepspeed.initialize(
                model=module,
                optimizer=choose_optimizer(settings, module),
                config=deepspeed_config(settings),
                dist_init_required=False,
            )
        if settings.train.zero.offload_parameters == "nvme":
            stop_reading_ahead(self.engine.optimizer)
        self.module = self.engine.module
        if settings.fp32_products and self.stage < 3:
            multiply_in_fp32(self.module)
        self.compiling = Compiling(self.module, settings.train.compile)
        # Converters that it drops beside every checkpoint; ours is read by this run alone.
        self.engine._copy_recovery_script = lambda folder: None
        zero, self.swap = settings.train.zero, settings.swap
        self.counts_in_int = zero.offload_optimizer != "none" and settings.train.optimizer.name in RESHARDED_OPTIMIZERS

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        with self.compiling.forward(inputs):
            return self.engine(**inputs).float()

    def backward(self, loss: torch.Tensor) -> None:
        if self.loss_scale is not None:
            if self.stage == 0:
                loss = loss * self.loss_scale.scale
            else:
                self.engine.optimizer.override_loss_scale(self.loss_scale.scale)
        self.engine.backward(loss)

    def step(self, learning_rate: float) -> Update:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        last = self.engine.is_gradient_accumulation_boundary()
        if last and self.stage == 0 and self.loss_scale is not None:
            unscale(self.module, self.loss_scale)
        # ZeRO looks at the gradient itself. Without it all ranks have the whole one here, and so agree.
        spoilt = last and self.stage == 0 and not self._gradient_is_finite()
        if spoilt:
            self.module.zero_grad(set_to_none=True)
        self.engine.step()
        if not last:
            return Update.WAITING
        return judge_step(not spoilt and self.engine.was_step_applied(), self.loss_scale)

    def _gradient_is_finite(self) -> bool:
        gradients = [value.grad for value in self.module.parameters() if value.grad is not None]
        return math.isfinite(float(nn.utils.get_total_norm(gradients)))

    def write_weights(self, path: Path) -> None:
        if self.stage < 3:
            if self.rank == 0:
                save_weights(path, plain_weights(self.module))
            return
        tensors = named_tensors(self.module)
        shapes = {name: tuple(getattr(tensor, "ds_shape", tensor.shape)) for name, tensor in tensors.items()}
        whole = gather_each(tensors.values())
        if self.rank == 0:
            try:
                stream_weights(path, shapes, whole)
            finally:
                exhaust(whole)
        else:
            exhaust(whole)

    def hold_state(self, folder: Path, copy: bool) -> Callable[[], None]:
        if self.stage == 0:
            if self.rank > 0:
                return lambda: None
            return hold_whole(self.module, self.engine.optimizer, folder, copy)
        if self.swap is not None:
            return self._hold_swapped(folder, copy)
        held = HeldState(self.engine.checkpoint_engine, copy)
        self.engine.checkpoint_engine = held
        self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
        self.engine.checkpoint_engine = held.writer
        if self.rank == 0:
            held.writes.append(partial(save_weights, folder / COMMON_NAME, self._common()))
        return held.write

    def _hold_swapped(self, folder: Path, copy: bool) -> Callable[[], None]:
        """DeepSpeed's own checkpoint would lack the step counter and what is too small to be swapped."""
        assert not copy, "a copy in memory of what memory has no room for; see TrainConfig.saves_beside"
        common = self._common() if self.rank == 0 else None

        def write() -> None:
            write_swapped(self.engine.optimizer, self._names(), folder, self.rank)
            if common is not None:
                save_weights(folder / COMMON_NAME, common)

        return write

    def _load_swapped(self, folder: Path) -> None:
        """Any number of workers may have written it."""
        optimizer = self.engine.optimizer
        common = load_file(folder / COMMON_NAME)
        step = int(common.pop(STEP))
        optimizer.checkpoint_event_prologue()
        read_swapped(optimizer, self._names(), folder, step)
        optimizer.checkpoint_event_epilogue()
        self.module.load_state_dict(common, strict=False)

    def _names(self) -> dict[nn.Parameter, str]:
        return {value: name for name, value in self.module.named_parameters()}

    def _common(self) -> dict[str, torch.Tensor]:
        """A copy of what is not sharded, for another number of workers to read: buffers, the optimizer's counter."""
        names = {name for name, _ in self.module.named_buffers()}
        common = {name: value.cpu().clone() for name, value in self.module.state_dict().items() if name in names}
        steps = [state["step"] for state in self.engine.optimizer.state.values() if "step" in state]
        return {**common, STEP: torch.tensor(float(steps[0]) if steps else 0.0)}

    def load(self, folder: Path, universal: bool = False) -> None:
        if self.stage == 0:
            load_whole(self.module, self.engine.optimizer, folder)
            return
        if self.swap is not None:
            self._load_swapped(folder)
        elif universal:
            self._load_universal(folder)
        else:
            self._load_tag(folder)
        if self.counts_in_int:
            count_steps(self.engine.optimizer.optimizer)

    def _load_tag(self, folder: Path) -> None:
        from components.errors import CheckpointError

        # It returns (None, None) without raising when it finds nothing.
        path, _ = self.engine.load_checkpoint(str(folder), tag=TAG)
        if path is None:
            raise CheckpointError(f"DeepSpeed found no state in {folder}; start the run anew with --fresh.")

    def _load_universal(self, folder: Path) -> None:
        """Takes this worker's share of everything, and what DeepSpeed leaves out: it loads no buffers."""
        common = load_file(folder / COMMON_NAME)
        step = common.pop(STEP)
        if self.stage == 3:
            self._load_shares_stage3(folder)
        else:
            self._load_shares(folder, step)
        self.module.load_state_dict(common, strict=False)

    def _load_shares(self, folder: Path, step: torch.Tensor) -> None:
        """DeepSpeed's own way fails where a worker has no share of a small parameter group."""
        optimizer, names = self.engine.optimizer, {value: name for name, value in self.module.named_parameters()}
        for flat, parameters in zip(optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups, strict=True):
            moments = {kind: torch.zeros_like(flat) for kind in MOMENTS}
            for parameter in (value for value in parameters if value._hp_mapping is not None):
                part, place = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.get_hp_fragment_address()
                for kind, share in {"fp32": flat.data, **moments}.items():
                    file = folder / TAG / "zero" / names[parameter] / f"{kind}.pt"
                    whole = torch.load(file, weights_only=True)["param"].flatten()
                    share.narrow(0, place.start, place.numel).copy_(whole.narrow(0, part.start, part.numel))
            counter = int(step) if self.counts_in_int else step.to(flat.device, copy=True)
            optimizer.state[flat] = {**moments, "step": counter}
        optimizer.update_lp_params()

    def _load_shares_stage3(self, folder: Path) -> None:
        """DeepSpeed's own way, put right.

        It gives every parameter group the options of the first one, so that biases would be decayed too, and all of
        them one step counter, which would then run as many times too fast.
        """
        optimizer = self.engine.optimizer
        options = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]
        self.engine._config.load_universal_checkpoint = True
        self._load_tag(folder)
        self.engine._config.load_universal_checkpoint = False
        for group, kept in zip(optimizer.param_groups, options, strict=True):
            group.update(kept)
        for state in optimizer.state.values():
            if isinstance(state["step"], torch.Tensor):
                state["step"] = state["step"].clone()

    def close(self) -> None:
        self.engine.destroy()
        self.cleanup.close()
        if self.swap is not None:
            close_folder(self.swap.folder)


class HeldState:
    """Takes a checkpoint's state dicts in the place of DeepSpeed's writer, which `write` hands them to.

    So nothing is written between DeepSpeed's collective calls, where one worker's full disk would hang the others.
    """

    def __init__(self, writer: Any, copy: bool) -> None:
        self.writer, self.copy = writer, copy
        self.writes: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Folders are made when there is something to write into them."""

    def save(self, state_dict: Mapping[str, Any], path: str) -> None:
        self.writes.append(partial(write_below, copy_to_host(state_dict) if self.copy else state_dict, Path(path)))

    def write(self) -> None:
        for write in self.writes:
            write()


def write_below(state: Mapping[str, Any], path: Path) -> None:
    """`write_torch` into a folder that is made."""
    path.parent.mkdir(exist_ok=True)
    write_torch(state, path)


def exhaust(whole: Iterator[torch.Tensor]) -> None:
    """Takes part in the gatherings that are left: each is a collective call."""
    for _ in whole:
        pass


def gather_each(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """One whole tensor after the other, on every rank; those that are not sharded as they are."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    for tensor in tensors:
        with GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
            yield tensor


@contextmanager
def sharded_building(settings: EngineSettings) -> Iterator[None]:
    """See `engine.build_sharded`; begins the process group, which a sharded network needs before there is an engine."""
    from components.models.sharded import sharding

    with _environment(_rank_variables(settings)):
        start_deepspeed(settings)
        with sharding(deepspeed_config(settings)):
            yield


def share_whole_weights(module: nn.Module) -> None:
    """Gives every rank the weights of rank 0 that were not made sharded (a classifier on top of a network that was).

    Reading pretrained weights draws numbers on rank 0 alone, so that what is drawn after it may differ.
    """
    import torch.distributed as dist

    parameters = list(module.parameters())
    if any(hasattr(value, "ds_id") for value in parameters):
        for value in parameters:
            if not hasattr(value, "ds_id"):
                dist.broadcast(value.data, src=0)


def start_deepspeed(settings: EngineSettings) -> Any:
    """The library with its process group; may be called again."""
    deepspeed = _import_deepspeed(settings.placement.device)
    _start_group(settings)
    deepspeed.init_distributed(dist_backend=settings.placement.backend, verbose=False)
    return deepspeed


def _rank_variables(settings: EngineSettings) -> dict[str, str]:
    """What DeepSpeed reads from the environment, also between steps; launchers of several workers have set it."""
    values = {"RANK": str(settings.rank), "WORLD_SIZE": str(settings.world_size), "LOCAL_RANK": "0"}
    return {name: os.environ.get(name, value) for name, value in values.items()}


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables and puts back what was there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _import_deepspeed(device: str) -> Any:
    """Imports DeepSpeed without what it would do on its own: seconds for each worker that starts.

    On a CPU it must be told so first. TORCHDYNAMO_DISABLE saves the import of inductor, which its Muon would trigger
    as soon as an engine is made, so that is imported here; the flag is read when dynamo is imported, so it is taken
    back for whoever compiles or exports here later. Its tuner would import mlflow where there is one. Its shared-memory
    op, which only inference calls, would be compiled on first use, after a compiler was tried for each of its ops: that
    table is given, empty.
    """
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    asked = os.environ.get("TORCHDYNAMO_DISABLE", "1")
    with _environment({"TORCHDYNAMO_DISABLE": asked}), hidden("mlflow"):
        import deepspeed
        import deepspeed.ops
        import deepspeed.runtime.zero.muon.muon_optimizer

        config: Any = importlib.import_module("torch._dynamo.config")
    deepspeed.ops.__compatible_ops__ = {}
    if "TORCHDYNAMO_DISABLE" not in os.environ:
        config.disable = False
    return deepspeed


def _start_group(settings: EngineSettings) -> None:
    """Makes the process group of a single worker, in memory: no port is opened. More workers have theirs already."""
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group(settings.placement.backend, store=dist.HashStore(), rank=0, world_size=1)
