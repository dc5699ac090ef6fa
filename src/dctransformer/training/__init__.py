"""Training a model: the trainer, its settings, the optimisers and several processes."""
