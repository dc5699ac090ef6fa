"""Generating pictures with a trained model: the engine, the decoder state, worker processes and tiles."""
