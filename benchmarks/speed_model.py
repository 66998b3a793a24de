"""Predict the time of a measurement from the number of operations per token, for this machine and for a GPU."""

import time
from typing import NamedTuple

import torch

GPU_TFLOPS, UTILISATION = 989.0, 0.4
"""Dense bf16 peak of an NVIDIA H100 SXM (data sheet), and the share of it that is assumed to be reached."""
CONTEXT, TOKENS = 256, 200_000


class TeacherShape(NamedTuple):
    """Sizes of a teacher and an SAE. All operations are multiplications and additions per token."""

    layers: int
    d_model: int
    d_mlp: int
    mlp_matrices: int
    kv_share: float
    """Number of key-value heads divided by the number of query heads."""
    vocabulary: int
    layer: int
    """The layer after which the SAE reads the residual stream."""
    features: int

    @property
    def layer_weight_operations(self) -> float:
        """Operations with the weights of one layer."""
        attention = self.d_model**2 * (2 + 2 * self.kv_share)
        mlp = self.mlp_matrices * self.d_model * self.d_mlp
        return 2.0 * (attention + mlp)

    @property
    def layer_operations(self) -> float:
        """Operations of one layer, attention scores included."""
        return self.layer_weight_operations + 4.0 * CONTEXT * self.d_model

    @property
    def encoder_operations(self) -> float:
        """Operations of the SAE's encoder."""
        return 2.0 * self.d_model * self.features

    @property
    def energy_operations(self) -> float:
        """Operations of a measurement of `energy`: the layers up to the hook point, and the encoder."""
        return (self.layer + 1) * self.layer_operations + self.encoder_operations

    @property
    def fisher_operations(self) -> float:
        """Operations of a measurement of `fisher`: a forward pass, a backward pass to the hook point, and the encoder.

        No gradients of weights are computed, so the backward pass takes as many operations as the forward pass.
        """
        unembedding = 2.0 * self.d_model * self.vocabulary
        layers_after_hook = self.layers - self.layer - 1
        return (self.layers + layers_after_hook) * self.layer_operations + 2.0 * unembedding + self.encoder_operations

    @property
    def gigabytes(self) -> float:
        """Memory of the weights in bf16 and the SAE in fp32, in GB."""
        layer_weights = self.layers * self.layer_weight_operations / 2.0
        embeddings = 2 * self.vocabulary * self.d_model
        return (2.0 * (layer_weights + embeddings) + 8.0 * self.d_model * self.features) / 1e9


SHAPES = {
    "tiny-prose": TeacherShape(4, 256, 1024, 2, 1.0, 4096, 1, 2048),
    "smollm2": TeacherShape(30, 576, 1536, 3, 1 / 3, 49_152, 12, 4608),
    "pythia-410m": TeacherShape(24, 1024, 4096, 2, 1.0, 50_304, 12, 32_768),
    "7 B": TeacherShape(32, 4096, 11_008, 3, 1.0, 32_000, 16, 131_072),
    "70 B": TeacherShape(80, 8192, 28_672, 3, 1 / 8, 128_256, 40, 262_144),
}


def print_predictions() -> None:
    """Print operations, rates on this machine, seconds on a GPU and memory of every teacher."""
    gigaflops = measure_gigaflops()
    print(f"this machine: {gigaflops:,.0f} GFLOP/s in fp32 matrix products, {torch.get_num_threads()} threads")
    print(f"GPU: {GPU_TFLOPS:,.0f} TFLOP/s in bf16, assumed utilisation {UTILISATION:.0%}\n")
    print(f"{'':12} {'GFLOP/token':>20} {'tokens/s here':>20} {'GPU, 200,000 tokens':>22} {'GB':>6}")
    print(f"{'':12} {'energy':>10}{'fisher':>10} {'energy':>10}{'fisher':>10} {'energy':>11}{'fisher':>11}")
    for name, shape in SHAPES.items():
        per_token = [shape.energy_operations / 1e9, shape.fisher_operations / 1e9]
        rates = "".join(f"{gigaflops / each:>10,.1f}" for each in per_token)
        seconds = "".join(f"{TOKENS * each / (1e3 * GPU_TFLOPS * UTILISATION):>9,.1f} s" for each in per_token)
        print(f"{name:12} {per_token[0]:>10,.4f}{per_token[1]:>10,.4f} {rates} {seconds} {shape.gigabytes:>6,.1f}")


def measure_gigaflops() -> float:
    """Return the rate of fp32 matrix products on this machine in GFLOP/s: the best of ten runs."""
    left, right = torch.randn(2048, 1024), torch.randn(1024, 4096)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2.0 * 2048 * 1024 * 4096 / best / 1e9
