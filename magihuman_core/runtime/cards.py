"""What graphics cards can do: how fast they compute and move numbers.

Peaks are those that makers publish: dense bf16 products added up in fp32, and the bandwidth of the memory. What
kernels reach of them is an assumption, the same for all cards of a class, under which the times that others
published for this model come out within about a quarter (tests/core/test_work.py).
"""

import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Efficiency:
    """Shares of a published peak."""

    matrix: float
    attention: float
    convolution: float
    bandwidth: float = 0.85
    link: float = 0.8


# Large accelerators hold their clock back under full load, and PyTorch's attention uses them least.
SERVER = Efficiency(matrix=0.71, attention=0.46, convolution=0.25)
DESKTOP = Efficiency(matrix=0.92, attention=0.83, convolution=0.4)
PCIE_3, PCIE_4_HALF, PCIE_4, PCIE_5 = 16e9, 16e9, 32e9, 64e9  # bytes a second in one direction


@dataclass(frozen=True)
class Card:
    """A graphics card. Rates are those that are expected, in operations and bytes a second."""

    name: str  # as a part of what the driver calls it
    memory: int  # bytes
    peak: float  # published operations a second
    peak_bandwidth: float
    peak_link: float  # to main memory
    reached: Efficiency

    @property
    def matrix(self) -> float:
        return self.peak * self.reached.matrix

    @property
    def attention(self) -> float:
        return self.peak * self.reached.attention

    @property
    def convolution(self) -> float:
        return self.peak * self.reached.convolution

    @property
    def bandwidth(self) -> float:
        return self.peak_bandwidth * self.reached.bandwidth

    @property
    def link(self) -> float:
        return self.peak_link * self.reached.link


def _card(name: str, gigabytes: int, teraflops: float, gigabytes_a_second: float, link: float,
          reached: Efficiency) -> Card:
    return Card(name, gigabytes << 30, teraflops * 1e12, gigabytes_a_second * 1e9, link, reached)


# NVIDIA's data sheets and architecture papers (GA102, AD102, GB202, A100, H100). GeForce cards of the RTX 30, 40 and
# 50 series do two dense bf16 operations with fp32 sums for each of fp32, their professional siblings four.
CARDS = (
    _card("RTX 3060", 12, 25.5, 360, PCIE_4, DESKTOP),
    _card("RTX 3070", 8, 40.6, 448, PCIE_4, DESKTOP),
    _card("RTX 3080", 10, 59.5, 760, PCIE_4, DESKTOP),
    _card("RTX 3090", 24, 71, 936, PCIE_4, DESKTOP),
    _card("RTX 4060 Ti", 16, 44.1, 288, PCIE_4_HALF, DESKTOP),
    _card("RTX 4070", 12, 58.3, 504, PCIE_4, DESKTOP),
    _card("RTX 4070 Ti SUPER", 16, 88.2, 672, PCIE_4, DESKTOP),
    _card("RTX 4080", 16, 97.5, 717, PCIE_4, DESKTOP),
    _card("RTX 4080 SUPER", 16, 104.4, 736, PCIE_4, DESKTOP),
    _card("RTX 4090", 24, 165.2, 1008, PCIE_4, DESKTOP),
    _card("RTX 5060 Ti", 16, 47.4, 448, PCIE_5 / 2, DESKTOP),
    _card("RTX 5070", 12, 61.7, 672, PCIE_5, DESKTOP),
    _card("RTX 5070 Ti", 16, 87.9, 896, PCIE_5, DESKTOP),
    _card("RTX 5080", 16, 112.6, 960, PCIE_5, DESKTOP),
    _card("RTX 5090", 32, 209.5, 1792, PCIE_5, DESKTOP),
    _card("RTX 6000 Ada", 48, 364, 960, PCIE_4, SERVER),
    _card("L40S", 48, 362, 864, PCIE_4, SERVER),
    _card("RTX PRO 6000 Blackwell", 96, 503.8, 1792, PCIE_5, SERVER),
    _card("A100-SXM4-40GB", 40, 312, 1555, PCIE_4, SERVER),
    _card("A100-SXM4-80GB", 80, 312, 2039, PCIE_4, SERVER),
    _card("A100 80GB PCIe", 80, 312, 1935, PCIE_4, SERVER),
    _card("H100 PCIe", 80, 756, 2000, PCIE_5, SERVER),
    _card("H100 80GB HBM3", 80, 989, 3350, PCIE_5, SERVER),
    _card("H200", 141, 989, 4800, PCIE_5, SERVER),
    _card("B200", 180, 2250, 8000, PCIE_5, SERVER),
)
VARIANT = r"(?!\w|\s*(?:Ti|SUPER|D\b|Laptop|Max-Q|NVL))"  # of another speed, which its own entry would have to tell


def find_card(name: str) -> Card | None:
    """The card that a driver calls by this name; None where it is not in the list."""
    return next((card for card in CARDS if re.search(rf"\b{re.escape(card.name)}{VARIANT}", name)), None)


def this_card(device: str | torch.device) -> Card | None:
    """The card that a device is; None for a CPU and for cards that are not in the list."""
    device = torch.device(device)
    return find_card(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
