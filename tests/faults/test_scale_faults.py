"""What only several processes can show of a sharded training, beside the rows of the fault matrix."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.artifacts import Artifact
from components.train.loop import train
from tests.components.train.jobs import FakeWorker, make_job, train_and_die, train_and_tell
from tests.faults.conftest import FULL

pytestmark = pytest.mark.faults


def read_slowly(rank: int) -> None:
    """Runs in each worker: rank 1 takes long for its batches."""
    from components.train.feed import Feed

    if rank == 1:
        whole = Feed.batch
        Feed.batch = lambda self, rows: (time.sleep(0.03), whole(self, rows))[1]  # type: ignore[method-assign]


@pytest.mark.skipif(not FULL, reason="test_watch.py has a slow worker as well; full counts only")
def test_a_worker_that_keeps_the_other_waiting_is_named(digits: Artifact, tmp_path: Path) -> None:
    job = make_job(digits, tmp_path, epochs=3, workers=2)
    first, second = train_and_tell(job, tmp_path / "meet", read_slowly)
    assert first["facts"]["straggler"] == 1
    assert first["warnings"] == []
    (warning,) = second["warnings"]
    assert warning.startswith("Worker 1 on ")


@pytest.mark.skipif(not FULL, reason="generating code takes minutes; full counts only")
def test_generated_code_ends_bit_for_bit_the_same_after_a_kill(
    digits: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    whole, killed = (make_job(digits, tmp_path / name, epochs=3, compile=True) for name in ("whole", "killed"))
    undisturbed = train(whole, FakeWorker())
    train_and_die(killed, die_at=13)
    resumed = train(killed, FakeWorker())
    assert resumed.facts["resumed_from_step"] == 8
    assert resumed.weights.read_bytes() == undisturbed.weights.read_bytes()


LARGE = {"architecture": "gpt", "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
TOKENS = {"vocab_size": 1000, "max_length": 64}


def build_in_a_pair(rank: int, folder: Path) -> None:
    """Builds a network sharded and writes down the most memory that took, and what is held afterwards."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", OMP_NUM_THREADS="1")
    import torch.distributed as dist

    from components.models.build import build_model, parse_model_config
    from components.train.config import TrainConfig
    from components.train.device import Hardware, plan_placement
    from components.train.engine import EngineSettings, build_sharded, make_engine
    from components.train.plan.rehearsal import Ledger
    from components.train.randomness import seed_everything

    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    config = TrainConfig.model_validate({"zero": {"stage": 3}, "workers": 2})
    settings = EngineSettings(config, plan_placement(Hardware(0, 1), 2, "fp32"), "fp32", rank, 2)
    seed_everything(0, rank=0)
    # Tensors are counted, not resident memory: the C library seldom uses a freed aligned block of its heap again.
    with Ledger(iter(()), heap=False) as ledger, build_sharded(settings):
        module = build_model(parse_model_config(LARGE), TOKENS, 10)
    peak = max(ledger.highest.values())
    held = 4 * sum(value.ds_tensor.numel() + value.data.numel() for value in module.parameters())
    make_engine(module, settings).write_weights(folder / "weights.safetensors")
    (folder / f"told.{rank}").write_text(json.dumps({"peak": peak, "held": held}))


@pytest.mark.skipif(not FULL, reason="test_sharded.py looks at smaller ones; full counts only")
def test_no_worker_ever_holds_the_whole_network(tmp_path: Path) -> None:
    from components.models.build import build_model, parse_model_config
    from components.models.folder import named_weights
    from components.train.randomness import seed_everything

    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=build_in_a_pair, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    seed_everything(0, rank=0)
    whole = named_weights(build_model(parse_model_config(LARGE), TOKENS, 10))
    size_bytes = 4 * sum(value.numel() for value in whole.values())
    for rank in (0, 1):
        told = json.loads((tmp_path / f"told.{rank}").read_text())
        assert told["held"] == pytest.approx(size_bytes / 2, rel=0.01)
        assert told["peak"] < 0.7 * size_bytes  # its half, and the largest module whole
    kept = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in whole.items())
