"""The compiled engine of the CPU runs on it."""

from support.on_cpu import device as device
