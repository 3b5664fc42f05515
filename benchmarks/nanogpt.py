"""The shakespeare recipe against nanoGPT's own train.py at its published CPU setting. `make bench-nanogpt`.

Both train the same network (4 layers, 4 heads, 128 wide, context 64) on the first nine tenths of the text, in turn, and
are scored by one function: nats a character, mean over windows of 64 that do not overlap, of the last tenth.

    PENSTOCK_DATA   folder with tinyshakespeare.txt
    NANOGPT         a checkout of github.com/karpathy/nanoGPT (MIT licence), which is not part of this repository
    ROUNDS          5; each takes about five minutes on two quiet cores, three of them nanoGPT's

Asked for: a loss of at most 1.88 and at most nanoGPT's, in at most a third of its time. Theirs is the time of the whole
process, ours the seconds of the train stage, start-up included.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.command import kept_run

CONTEXT = 64
TAIL = 0.1
PUBLISHED = {
    "device": "cpu",
    "compile": False,
    "eval_iters": 20,
    "log_interval": 100,
    "block_size": CONTEXT,
    "batch_size": 12,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "max_iters": 2000,
    "lr_decay_iters": 2000,
    "dropout": 0.0,
}
"""The README's "I only have a macbook", with fewer log lines."""

Logits = Callable[[torch.Tensor], torch.Tensor]


def tail_loss(logits: Logits, tokens: np.ndarray) -> float:
    """Nats a token over the windows of the last tenth; `logits` maps ids (B, T) to (B, T, V)."""
    tail = torch.from_numpy(tokens.astype(np.int64))
    starts = torch.arange(0, len(tail) - CONTEXT - 1, CONTEXT)
    windows = tail[starts[:, None] + torch.arange(CONTEXT + 1)]
    losses = []
    with torch.no_grad():
        for part in windows.split(256):
            flat = logits(part[:, :-1].contiguous()).flatten(0, 1)
            losses.append(torch.nn.functional.cross_entropy(flat, part[:, 1:].flatten(), reduction="none"))
    return float(torch.cat(losses).mean())


def run_nanogpt(folder: Path, text: str) -> tuple[float, float]:
    """Trains nanoGPT; gives the loss of its checkpoint and the seconds of its process."""
    data = folder / "data" / "shakespeare_char"
    (data / "input.txt").write_text(text)
    subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, capture_output=True)
    output = folder / "out-bench"
    options = [f"--{name}={value}" for name, value in PUBLISHED.items()]
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *options, f"--out_dir={output}"]
    started = time.monotonic()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    seconds = time.monotonic() - started
    return score_nanogpt(folder, output / "ckpt.pt", text), seconds


def score_nanogpt(folder: Path, checkpoint_path: Path, text: str) -> float:
    """The loss of a checkpoint, by nanoGPT's own network."""
    sys.path.insert(0, str(folder))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    checkpoint = torch.load(checkpoint_path, weights_only=True)
    model = GPT(GPTConfig(**checkpoint["model_args"]))
    model.load_state_dict(checkpoint["model"])
    model.eval()
    place = {sign: index for index, sign in enumerate(sorted(set(text)))}
    tail = np.array([place[sign] for sign in text[int(len(text) * (1 - TAIL)) :]])
    # Without targets it gives the last position alone; the targets' values do not matter here.
    return tail_loss(lambda ids: model(ids, ids)[0], tail)


def run_penstock(source: Path) -> tuple[float, float]:
    """Trains the recipe; gives the loss of its Model and the seconds of its train stage."""
    from components.artifacts.local_store import local_path
    from components.models import load_model_folder
    from components.models.folder import load_preprocessing

    with kept_run(["shakespeare", "--set", f"data.source={source}", "--until", "train"]) as run:
        folder = local_path(run.result["model"]["uri"])
        module, values = load_model_folder(folder)
        text = source.read_text()
        tail = text[int(len(text) * (1 - TAIL)) :]
        (tokens,) = load_preprocessing(folder, values).encode({"text": [tail]})["input_ids"]
        return tail_loss(lambda ids: module(input_ids=ids), np.array(tokens)), run.result["stages"]["train"]["seconds"]


def main() -> None:
    folders = [os.environ.get(name) for name in ("PENSTOCK_DATA", "NANOGPT")]
    if None in folders:
        sys.exit("Set PENSTOCK_DATA to a folder with tinyshakespeare.txt, and NANOGPT to a checkout of nanoGPT.")
    source, peer = Path(str(folders[0])) / "tinyshakespeare.txt", Path(str(folders[1])).absolute()
    print("run  nanoGPT loss  seconds   penstock loss  seconds   time ratio")
    rows = []
    for number in range(int(os.environ.get("ROUNDS", "5"))):
        theirs, ours = run_nanogpt(peer, source.read_text()), run_penstock(source)
        rows.append((*theirs, *ours, ours[1] / theirs[1]))
        print(
            f"{number:3}  {theirs[0]:12.4f}  {theirs[1]:7.1f}   {ours[0]:13.4f}  {ours[1]:7.1f}   {rows[-1][4]:10.3f}",
            flush=True,
        )
    print("median  " + "  ".join(f"{statistics.median(column):.4f}" for column in zip(*rows, strict=True)))


if __name__ == "__main__":
    main()
