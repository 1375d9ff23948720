"""What the product costs: modules with a function rows(quick) that measures and gives rows of figures.

    python -m benchmarks            all of them, and one report page
    python -m benchmarks.network    one of them
    python -m benchmarks.card       what a graphics card does: correctness, speed and memory, for a report in an issue
    python -m benchmarks.gpu_table  README's table of graphics cards
"""
