"""A copy of a model that has forgotten everything but the scale of its weights."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from tl_audit.errors import ModelError
from tl_audit.measures.sampling import generator
from tl_audit.models.model import Model


def randomised_copy(model: Model, *, seed: int, draw: int) -> Model:
    """The model with the values of every parameter tensor, and of every floating-point buffer (BatchNorm statistics), permuted inside it.

    Scale and distribution of each tensor stay as they are; what was learned is gone. The model itself is not touched.

    References
    ----------
    Adebayo et al. (2018). Sanity checks for saliency maps. arXiv:1810.03292
    """
    try:
        module = copy.deepcopy(model.module)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"{model.name}: the network cannot be copied for parameter randomisation ({error})") from error
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point() or tensor.numel() < 2:
                continue
            order = torch.as_tensor(generator(seed, "randomised copy", draw, name).permutation(tensor.numel()), device=tensor.device)
            tensor.copy_(tensor.detach().flatten()[order].reshape(tensor.shape))
        for parameter in module.parameters():
            parameter.grad = None
    return replace(model, module=module, name=f"{model.name} (weights permuted, draw {draw})")
