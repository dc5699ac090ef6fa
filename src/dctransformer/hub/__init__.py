"""Models on disk and on the Hugging Face hub: loading, saving, model cards and uploads."""
