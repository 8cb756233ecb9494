"""Seconds to each level of relative suboptimality in a result of benchopt: python table.py outputs/FILE.parquet"""

import sys

import pandas as pd

LEVELS = (1e-3, 1e-4, 1e-6)

runs = pd.read_parquet(sys.argv[1]).query("objective_value.notna()")
print(f"| set | solver | {' | '.join(f'{level:.0e}' for level in LEVELS)} |\n|---|---{'|---' * len(LEVELS)}|")
for data, of_data in runs.groupby("dataset_name", sort=False):
    value, best = of_data.objective_value, of_data.objective_value.min()
    gap = (value - best) / (value.max() - best)
    for solver, of_solver in of_data.groupby("solver_name", sort=False):
        seconds = [of_solver.time[gap[of_solver.index] <= level].min() for level in LEVELS]
        print(f"| {data} | {solver} | {' | '.join('-' if t != t else f'{t:.2g} s' for t in seconds)} |")
