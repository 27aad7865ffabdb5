"""The ranks are processes on the CPU."""

from support.on_cpu import device as device
