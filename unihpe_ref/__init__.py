"""UniHPE (Jiang et al., arXiv 2311.16477): the model, its training in three stages and its evaluation.

Install it with ``pip install 'multicontrast[unihpe]'`` and run ``unihpe lift keypoints.json`` or ``unihpe demo``. From
Python::

    import unihpe_ref
    from unihpe_ref.checkpoint import load_model

    poses = unihpe_ref.load_lifter().lift(joints_px, image_size=size)  # (N, 17, 2) pixels; the shipped lifter

    model, config = load_model("runs/demo/model.safetensors")
    joints_3d = model.lift(joints_2d, box_info)      # (B, 17, 3) metres, pelvis at the origin, camera axes

The package has three parts. The paper is ``runs -> stages -> training, evaluation -> models, diffusion``, with
``config``, ``presets``, ``checkpoint``, and ``lifter``, a trained model on pixels. ``data`` imports no model.
``applications`` holds the commands and what they need; nothing else imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unihpe_ref.lifter import load_lifter

__all__ = ["load_lifter"]


def __getattr__(name: str) -> Any:
    """Imports :func:`unihpe_ref.lifter.load_lifter` on first access, because the import is slow."""
    if name == "load_lifter":
        from unihpe_ref.lifter import load_lifter

        return load_lifter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
