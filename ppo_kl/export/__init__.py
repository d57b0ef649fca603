"""A trained agent as files that others act with: a safetensors folder with a model card, and an ONNX graph."""

from ppo_kl.export.folder import Exported, export_run, load

__all__ = ["Exported", "export_run", "load"]
