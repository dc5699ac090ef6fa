"""The commands of `dctransformer`: a dataclass each, whose fields are the options and whose `run` does the work."""
