"""`host.py evaluate`: data sets edited by workflows on real servers, spread over workers."""

from pack import load_pack

load_pack()  # so that a worker process can unpickle what `retrace` defines
