"""One module a benchmark, each with `main(arguments)`; run through tools/bench.py."""

from pack import load_pack

load_pack()  # so that a bench can import `retrace` like any package
