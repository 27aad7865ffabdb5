"""The benchmark chooses its device itself."""

from support.on_cpu import device as device
