"""UniHPE (Jiang et al., arXiv 2311.16477), executable: model, training in three stages, evaluation.

Install it with ``pip install 'multicontrast[unihpe]'`` and run ``unihpe demo``. From Python::

    from unihpe_ref.checkpoint import load_model

    model, config = load_model("runs/demo/model.safetensors")
    joints_3d = model.lift(joints_2d, box_info)      # (B, 17, 3) metres, pelvis at the origin, camera axes

Arrows point one way: ``stages -> training, evaluation -> models, diffusion, data -> multicontrast``.
"""
