"""Memory, time and cost of a training before anything is launched: pure functions of plain values.

network.py     parameters by module, counted on the meta device
rehearsal.py   one training step on fake tensors: what a micro batch keeps alive
states.py      bytes of weights, gradients and optimizer state under ZeRO and offload
memory.py      a worker's peak: states, activations, buffers, overhead
search.py      which stage, offload, micro batch and accumulation, and why
speed.py       FLOPs, throughput, time and cost
probe.py       a few real steps, where nothing is stated about the machine
machine.py     the memory that a worker can have here; rough.py lets pass what needs far less
samples.py     about how many samples a file holds
measure.py     the peak that a training really had; forecast.py gives the prediction beside it
"""
