def add_arguments(p):
    pass


def run_demo(options, progress):
    return 0
