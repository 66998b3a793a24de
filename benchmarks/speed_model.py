"""What measuring costs by arithmetic: operations a token, held against a machine's matrix products."""

import time
from typing import NamedTuple

import torch

GPU_TFLOPS, UTILISATION = 989.0, 0.4
"""An NVIDIA H100 SXM's dense bf16 peak (its data sheet), and the share of it that is assumed here."""
CONTEXT, TOKENS = 256, 200_000


class Shape(NamedTuple):
    """A teacher, the layer that is read, and the SAE's features."""

    layers: int
    d_model: int
    d_mlp: int
    mlp_matrices: int
    kv_share: float
    """Key and value heads, of the query heads."""
    vocabulary: int
    layer: int
    features: int

    @property
    def of_a_layer(self) -> float:
        """Multiplications and additions a token."""
        attention = self.d_model**2 * (2 + 2 * self.kv_share)
        mlp = self.mlp_matrices * self.d_model * self.d_mlp
        return 2.0 * (attention + mlp) + 4.0 * CONTEXT * self.d_model

    @property
    def encode(self) -> float:
        return 2.0 * self.d_model * self.features

    @property
    def energy(self) -> float:
        return (self.layer + 1) * self.of_a_layer + self.encode

    @property
    def fisher(self) -> float:
        """The slopes of the weights are not asked for: a backward pass costs what a forward pass does."""
        unembed = 2.0 * self.d_model * self.vocabulary
        behind = (self.layers - self.layer - 1) * self.of_a_layer
        return self.layers * self.of_a_layer + behind + 2.0 * unembed + self.encode

    @property
    def gigabytes(self) -> float:
        """bf16 weights and an fp32 SAE."""
        layers = self.layers * (self.of_a_layer - 4.0 * CONTEXT * self.d_model) / 2.0
        return (2.0 * (layers + 2 * self.vocabulary * self.d_model) + 8.0 * self.d_model * self.features) / 1e9


SHAPES = {
    "tiny-prose": Shape(4, 256, 1024, 2, 1.0, 4096, 1, 2048),
    "smollm2": Shape(30, 576, 1536, 3, 1 / 3, 49_152, 12, 4608),
    "pythia-410m": Shape(24, 1024, 4096, 2, 1.0, 50_304, 12, 32_768),
    "7 B": Shape(32, 4096, 11_008, 3, 1.0, 32_000, 16, 131_072),
    "70 B": Shape(80, 8192, 28_672, 3, 1 / 8, 128_256, 40, 262_144),
}


def predict() -> None:
    here = gigaflops_here()
    print(f"this machine: {here:,.0f} GFLOP/s in fp32 products, {torch.get_num_threads()} threads")
    print(f"a GPU: {GPU_TFLOPS:,.0f} TFLOP/s in bf16, of which {UTILISATION:.0%} are assumed\n")
    print(f"{'':12} {'GFLOP/token':>20} {'tokens/s here':>20} {'GPU, 200,000 tokens':>22} {'GB':>6}")
    print(f"{'':12} {'energy':>10}{'fisher':>10} {'energy':>10}{'fisher':>10} {'energy':>11}{'fisher':>11}")
    for name, shape in SHAPES.items():
        flop = [shape.energy / 1e9, shape.fisher / 1e9]
        rates = "".join(f"{here / each:>10,.1f}" for each in flop)
        seconds = "".join(f"{TOKENS * each / (1e3 * GPU_TFLOPS * UTILISATION):>9,.1f} s" for each in flop)
        print(f"{name:12} {flop[0]:>10,.4f}{flop[1]:>10,.4f} {rates} {seconds} {shape.gigabytes:>6,.1f}")


def gigaflops_here() -> float:
    left, right = torch.randn(2048, 1024), torch.randn(1024, 4096)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2.0 * 2048 * 1024 * 4096 / best / 1e9
