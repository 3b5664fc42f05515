"""From a spec to its plan: what of it is known, what has to be assumed, and on which machine.

    plan = make_plan(load_spec("llama.yaml").spec, PlanOptions(gpus=512, gpu="H100"))
    plan["chosen"]["changes"]      # {"train.zero.stage": 3, ...}

Nothing is read but the spec, and the sizes of local files for the number of samples.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from components.errors import SpecError
from components.train.config import TrainConfig, ZeroConfig
from components.train.plan.machine import gpu_here, memory_here
from components.train.plan.memory import Setting
from components.train.plan.network import count_parameters
from components.train.plan.search import Demand, Machine, Option, Planner, gib, name_way, spec_changes, validation_batch
from components.train.plan.speed import DEFAULT_MFU, RECOMPUTATION, find_gpu
from components.train.plan.states import Sharding
from pipelines.plan_inputs import Assumptions, count_samples, make_workload, worker_count
from pipelines.spec import Spec

DEFAULT_GPU = "A100"


@dataclass(frozen=True)
class PlanOptions:
    """What the command line adds to the spec. Without `gpus` the plan is for this machine.

    Attributes:
        gpus: In all, one worker each.
        nodes: Machines they are in.
        gpu: Name in the table of peaks.
        gpu_memory: Bytes of each.
        host_memory: Bytes of each machine, for what is offloaded.
        nvme: Bytes of each machine's disk, for what is offloaded there.
        peak_tflops: Of each GPU in bf16.
        mfu: Share of the peak that is reached.
        price: Of a GPU an hour.
        samples: Of the training split.
        probe: Whether the speed is measured here.
    """

    gpus: int | None = None
    nodes: int = 1
    gpu: str | None = None
    gpu_memory: int | None = None
    host_memory: int | None = None
    nvme: int | None = None
    peak_tflops: float | None = None
    mfu: float = DEFAULT_MFU
    price: float | None = None
    samples: int | None = None
    probe: bool = False


def make_plan(spec: Spec, options: PlanOptions) -> dict[str, Any]:
    """The plan as the command line prints it with --json.

    Raises:
        SpecError: If the batch does not divide by the workers, or the options contradict each other.
    """
    assume = Assumptions()
    planner = make_planner(spec, options, assume)
    ways = planner.options()
    chosen = planner.choose(ways)
    written = planner.judge(written_setting(spec, planner))
    for name in unknown_fields(chosen.setting) if chosen else ():
        assume(f"{name} is there; this version's spec does not have it yet")
    return {
        "schema": 1,
        "status": "ok",
        "name": spec.name,
        "model": describe_model(planner),
        "machine": describe_machine(planner, options),
        "batch": {
            "global_batch_size": planner.demand.global_batch_size,
            "samples_per_worker": planner.demand.samples_per_worker,
            "tokens_per_sample": planner.demand.workload.tokens,
        },
        "options": [describe_option(option) for option in ways],
        "as_written": describe_option(written),
        "chosen": chosen
        and {**describe_option(chosen), "why": why(chosen, ways), "changes": spec_changes(chosen.setting)},
        "pace": describe_pace(spec, planner, chosen or written, options, assume),
        "assumed": assume.lines,
    }


def make_planner(spec: Spec, options: PlanOptions, assume: Assumptions) -> Planner:
    """Demand and machine of a spec."""
    workers = options.gpus or worker_count(spec)
    if workers < spec.train.workers and options.gpus is None:
        assume(f"{workers} of {workers} to {spec.train.workers} workers are left: each then needs the most memory")
    machine = machine_for(options, workers, assume)
    precision: Literal["fp32", "bf16"] = "fp32" if spec.train.precision == "fp32" else "bf16"
    if spec.train.precision == "auto" and machine.device == "cpu":
        precision = "fp32"
        assume("fp32: on a CPU `precision: auto` is settled by a few steps when the training begins")
    workload = make_workload(spec, assume)
    in_fp32 = False
    if precision == "bf16" and machine.device == "cpu":
        from components.train.fp32_products import multiplies_fp32_faster

        in_fp32 = multiplies_fp32_faster()
    demand = Demand(
        workload,
        spec.train.optimizer.name,
        precision,
        spec.train.global_batch_size,
        workers,
        averaged=spec.train.ema is not None,
        saved_beside=spec.train.saves_beside(),
        fp32_products=in_fp32,
    )
    return Planner(demand, machine)


def machine_for(options: PlanOptions, workers: int, assume: Assumptions) -> Machine:
    """What a worker gets: of the GPUs that were stated, or of this machine.

    Raises:
        SpecError: If the GPUs cannot be spread evenly over the nodes, or the GPU's name is not known.
    """
    if options.gpus is None:
        device, memory = memory_here(workers)
        return Machine(device, memory, nvme_bytes=options.nvme and options.nvme // workers)
    if options.gpus % options.nodes:
        raise SpecError(f"--gpus {options.gpus} does not divide by --nodes {options.nodes}; give every node as many.")
    each, host = options.gpus // options.nodes, None
    if options.host_memory is not None:
        host = options.host_memory // each
    else:
        assume("the machines' own memory is not checked; state it with --host-memory")
    memory = options.gpu_memory or int(known_gpu(options, assume).memory_gib * (1 << 30))
    return Machine("cuda", memory, host, options.nvme and options.nvme // each)


def known_gpu(options: PlanOptions, assume: Assumptions) -> Any:
    """The table's entry for the GPU.

    Raises:
        SpecError: If the table has none of that name.
    """
    from components.train.plan.speed import GPUS

    name = options.gpu or gpu_here() or DEFAULT_GPU
    if options.gpu is None:
        line = f"each GPU is an {name}; state another with --gpu, or --gpu-memory and --peak-tflops"
        if line not in assume.lines:
            assume(line)
    found = find_gpu(name)
    if found is None:
        raise SpecError(f"--gpu is {name!r}; known are {', '.join(GPUS)}. Give --gpu-memory and --peak-tflops instead.")
    return found


def written_setting(spec: Spec, planner: Planner) -> Setting:
    """The spec's own stage, offload, accumulation and checkpointing."""
    demand = planner.demand
    accumulation = spec.train.gradient_accumulation_steps
    micro = max(1, demand.samples_per_worker // accumulation)
    return Setting(
        optimizer=demand.optimizer,
        precision=demand.precision,
        sharding=Sharding.of(spec.train.zero, demand.workers),
        micro_batch_size=micro,
        accumulation=demand.samples_per_worker // micro,
        checkpointing=spec.train.activation_checkpointing,
        device=planner.machine.device,
        validation_batch=validation_batch(demand.workload),
        averaged=demand.averaged,
        saved_beside=demand.saved_beside,
    )


def why(chosen: Option, ways: list[Option]) -> str:
    """Why this one and none before it, in one line."""
    before = ways[: ways.index(chosen)]
    if not before:
        return f"the quickest way fits: {chosen.reason}"
    quicker = before[-1]
    said = "leaves room for a small micro batch only" if quicker.fits else "does not fit"
    return f"the quickest that fits ({chosen.reason}); {name_way(quicker.setting)} {said} ({quicker.reason})"


def unknown_fields(setting: Setting) -> list[str]:
    """Fields that would make it train so, but that this version's spec does not have."""
    known = {*(f"train.{name}" for name in TrainConfig.model_fields),
             *(f"train.zero.{name}" for name in ZeroConfig.model_fields)}  # fmt: skip
    return [name for name in spec_changes(setting) if name not in known]


def describe_model(planner: Planner) -> dict[str, Any]:
    sizes = planner.sizes
    return {
        "architecture": planner.demand.workload.model.architecture,
        "parameters": sizes.parameters,
        "modules": [asdict(module) for module in sizes.modules],
        "precision": planner.demand.precision,
        "optimizer": planner.demand.optimizer,
    }


def describe_machine(planner: Planner, options: PlanOptions) -> dict[str, Any]:
    machine = planner.machine
    return {**asdict(machine), "workers": planner.demand.workers, "nodes": options.nodes, "gpu": options.gpu}


def describe_option(option: Option) -> dict[str, Any]:
    setting, memory = option.setting, option.memory
    sharding, states = setting.sharding, memory.states
    return {
        "name": name_way(setting),
        "zero_stage": sharding.stage,
        "offload_optimizer": sharding.offload_optimizer,
        "offload_parameters": sharding.offload_parameters,
        "activation_checkpointing": setting.checkpointing,
        "micro_batch_size": setting.micro_batch_size,
        "gradient_accumulation_steps": setting.accumulation,
        "bytes": {
            "weights": states.weights,
            "gradients": states.gradients,
            "optimizer": states.optimizer,
            "activations": memory.activations,
            "buffers": memory.buffers,
            "overhead": memory.overhead,
            "process": memory.process,
            "device": memory.device_bytes,
            "host": states.host,
            "nvme": states.nvme,
        },
        "fits": option.fits,
        "reason": option.reason,
    }


def describe_pace(
    spec: Spec, planner: Planner, option: Option, options: PlanOptions, assume: Assumptions
) -> dict[str, Any] | None:
    """Speed, time to the end and cost; None where nothing says how fast the machine is."""
    from components.train.plan.speed import expected_pace

    speed = samples_per_s(spec, planner, option, options, assume)
    if speed is None:
        assume("no speed: state --peak-tflops, or measure it here with --probe")
        return None
    samples = count_samples(spec, planner.demand.workload, options.samples, assume)
    demand = planner.demand
    pace = expected_pace(
        speed, demand.workload.tokens, demand.global_batch_size, samples, demand.workers, options.price
    )
    return {**asdict(pace), "samples": samples}


def samples_per_s(
    spec: Spec, planner: Planner, option: Option, options: PlanOptions, assume: Assumptions
) -> float | None:
    """Over all workers: measured, or from the peak."""
    from components.train.plan.probe import probe_samples_per_s
    from components.train.plan.speed import flops_per_sample

    demand, setting = planner.demand, option.setting
    if options.probe:
        assume("every worker is as fast as the one that was measured here, alone and unsharded")
        return demand.workers * probe_samples_per_s(
            demand.workload, spec.train, setting.micro_batch_size, demand.workers
        )
    peak = options.peak_tflops
    if peak is None and planner.machine.device == "cuda":
        peak = known_gpu(options, assume).peak_tflops
    if peak is None:
        return None
    assume(f"{options.mfu:.0%} of {peak:g} TFLOPS a GPU is reached (--mfu, --peak-tflops)")
    work = flops_per_sample(planner.sizes, demand.workload) * (RECOMPUTATION if setting.checkpointing else 1)
    return demand.workers * peak * 1e12 * options.mfu / work


def memory_error(spec: Spec) -> SpecError | None:
    """Why the spec's training cannot fit this machine, with what would; None if it can.

    What an over-estimate without torch lets pass is not looked at closer.
    """
    from components.train.plan.rough import rough_bytes

    assume = Assumptions()
    workers = worker_count(spec)
    if spec.train.global_batch_size % workers:
        return None
    micro = max(1, spec.train.global_batch_size // workers // spec.train.gradient_accumulation_steps)
    workload = make_workload(spec, assume)
    if rough_bytes(workload, micro) <= memory_here(workers)[1]:
        return None
    planner = make_planner(spec, PlanOptions(), assume)
    written = planner.judge(written_setting(spec, planner))
    if written.fits:
        return None
    return SpecError(refusal(written, planner), field="train")


def nvme_error(spec: Spec) -> SpecError | None:
    """Why what is offloaded to NVMe has no room on this machine's disk; None if it has, or nothing is."""
    from components.train.nvme import disk_error, file_bytes, uses_nvme
    from pipelines.run_folder import penstock_home

    if not uses_nvme(spec.train.zero):
        return None
    workers = spec.train.workers
    parameters = count_parameters(make_workload(spec, Assumptions())).parameters
    return disk_error(spec.train.zero, penstock_home(), workers * file_bytes(spec.train.zero, parameters, workers))


def refusal(written: Option, planner: Planner) -> str:
    """One sentence: what is needed, what is there, and what to change."""
    chosen = planner.choose([option for option in planner.options() if not unknown_fields(option.setting)])
    needs = (
        f"This training needs {gib(written.memory.device_bytes)} a worker, but there are "
        f"{gib(planner.machine.memory_bytes)} (parameters {planner.sizes.parameters:,}, micro batch "
        f"{written.setting.micro_batch_size})"
    )
    if chosen is None:
        return f"{needs}, and no sharding or offload fits; take a smaller model, or more workers on other machines."
    changes = ", ".join(f"{name} to {value}" for name, value in spec_changes(chosen.setting).items())
    return f"{needs}; set {changes}, which needs {gib(chosen.memory.device_bytes)}."
