"""Speed and memory, measured side by side in one run: ``python -m benchmarks`` (docs/speed.md).

Nothing of the product imports this folder. `race` (who is timed against whom), `floors` (what arithmetic
alone would take), `child` (a process of its own: cold start and memory), `report` (tables and plots).
"""
