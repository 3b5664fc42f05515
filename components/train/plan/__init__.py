"""Memory, time and cost of a training before anything is launched: pure functions of plain values.

network.py     parameters by module, counted on the meta device
rehearsal.py   one training step on fake tensors: what a micro batch keeps alive
states.py      bytes of weights, gradients and optimizer state under ZeRO and offload
memory.py      a worker's peak: states, activations, buffers, overhead
search.py      which stage, offload, micro batch and accumulation, and why
speed.py       FLOPs, throughput, time and cost
probe.py       a few real steps, where nothing is stated about the machine
measure.py     the peak that a training really had, to stand beside the prediction
"""
