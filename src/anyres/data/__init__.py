"""Pictures, masks and datasets: reading, writing, transforming. Nothing here sees a model."""
