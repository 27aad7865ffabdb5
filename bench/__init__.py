"""The benchmark: one command, `python -m bench`, sets pairops beside what people use today.

`__main__` lists its commands. Each is a file with `options` and `run` in the folder of what it
measures: `cpu`, `memory`, `distributed`, `gpu`. The files beside `__main__` serve several of them.
"""
