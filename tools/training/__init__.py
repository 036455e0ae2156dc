"""How the demo model was trained: pools of scenes, workers, and one module a stage."""
