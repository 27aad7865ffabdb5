"""The oracle is checked on the CPU."""

from support.on_cpu import device as device
