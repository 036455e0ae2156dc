"""Numbers in sigma space: schedules, steps, trajectories, inversions, editing rules. Pure torch."""
