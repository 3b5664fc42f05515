"""Seeds and states of every random number generator a training uses, kept in plain files, with the running loss."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any


def seed_everything(seed: int, rank: int) -> None:
    """Seeds Python, numpy and torch; each rank draws its own dropout."""
    import numpy as np
    import torch

    mixed = (seed * 1_000_003 + rank) % 2**32
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def current_states(loss_sum: float) -> str:
    """The states of all generators of this process, and its loss since the last validation, as JSON."""
    import numpy as np
    import torch

    legacy: Any = np.random.get_state()
    kind, keys, position, has_gauss, gauss = legacy
    version, internal, next_gauss = random.getstate()
    states: dict[str, Any] = {
        "loss_sum": loss_sum,
        "python": [version, list(internal), next_gauss],
        "numpy": [kind, keys.tolist(), position, has_gauss, gauss],
        "torch": bytes(torch.get_rng_state().numpy()).hex(),
        "cuda": [bytes(state.numpy()).hex() for state in cuda_states()],
    }
    return json.dumps(states)


def load_states(path: Path) -> float:
    """Puts every generator where `current_states` found it; gives the loss back."""
    import numpy as np
    import torch

    states = json.loads(path.read_text())
    version, internal, next_gauss = states["python"]
    random.setstate((version, tuple(internal), next_gauss))
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(from_hex(states["torch"]))
    if states["cuda"]:
        torch.cuda.set_rng_state(from_hex(states["cuda"][0]))
    return states["loss_sum"]


def read_loss_sum(path: Path) -> float:
    """The running loss alone, of a worker that is no more."""
    return json.loads(path.read_text())["loss_sum"]


def cuda_states() -> list[Any]:
    """The state of this process's GPU, if it uses one."""
    import torch

    return [torch.cuda.get_rng_state()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []


def from_hex(text: str) -> Any:
    import torch

    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
