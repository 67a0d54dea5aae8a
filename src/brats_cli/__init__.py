"""brats: from a folder of BraTS scans to scored segmentations and printable meshes.

Every command is also a function of the same name (`brats import` is `import_model`), with the
command's parameters:

    import brats_cli

    report = brats_cli.evaluate("predictions/", "data/")

The functions raise `BratsError` for mistakes in data, files or settings, and print nothing.
`train`, `predict` and `demo` are generators, which work as they are iterated over.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from .core.check.run import check as check
    from .core.data.splitting import split as split
    from .core.demo import demo as demo
    from .core.errors import BratsError as BratsError
    from .core.model.imported import ImportedModel as ImportedModel
    from .core.model.imported import import_model as import_model
    from .core.model.onnx_export import ExportedModel as ExportedModel
    from .core.model.onnx_export import export as export
    from .core.predict.many import predict as predict
    from .core.predict.outputs import Prediction as Prediction
    from .core.score.comparison import compare as compare
    from .core.score.evaluation import evaluate as evaluate
    from .core.surface.meshing import mesh as mesh
    from .core.train.events import Epoch as Epoch
    from .core.train.run import train as train
    from .core.view.views import view as view

_HOMES = {
    "BratsError": "errors",
    "Epoch": "train.events",
    "ExportedModel": "model.onnx_export",
    "ImportedModel": "model.imported",
    "Prediction": "predict.outputs",
    "check": "check.run",
    "compare": "score.comparison",
    "demo": "demo",
    "evaluate": "score.evaluation",
    "export": "model.onnx_export",
    "import_model": "model.imported",
    "mesh": "surface.meshing",
    "predict": "predict.many",
    "split": "data.splitting",
    "train": "train.run",
    "view": "view.views",
}
"""The module of the core that each name comes from; it is imported when the name is first used."""

__all__ = [
    "BratsError",
    "Epoch",
    "ExportedModel",
    "ImportedModel",
    "Prediction",
    "__version__",
    "check",
    "compare",
    "demo",
    "evaluate",
    "export",
    "import_model",
    "mesh",
    "predict",
    "split",
    "train",
    "view",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'brats_cli' has no attribute '{name}'")
    return getattr(importlib.import_module(f".core.{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
