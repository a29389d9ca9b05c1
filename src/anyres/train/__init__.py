"""Training and distillation: configuration, recipes, loop, checkpoints."""
