"""Predict the loss floor of a distilled language model from its teacher's sparse autoencoder.

    from tl_distill_floor import predict_floor
    floor = predict_floor(model, sae)  # HookedTransformer or TransformerBridge, and a SAELens SAE

Names are imported on first use, so that `import tl_distill_floor` loads neither torch nor TransformerLens. They are
listed in `__init__.pyi`.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
