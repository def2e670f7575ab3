"""Where memory runs out the batch is halved, the result is the same, and the result says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.attribution.attribution_fakes import ASKING, image_inputs
from tl_audit.attribution import explain_inputs
from tl_audit.errors import ModelError
from tl_audit.models import Model


class Small(nn.Module):
    """A device that holds a few rows."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError(f"{len(x)} rows")
        return x


@pytest.mark.parametrize("method", ASKING)
def test_an_explainer_that_runs_out_of_memory_halves_its_batch_and_says_so(method, small_net):
    x = torch.as_tensor(np.random.default_rng(0).uniform(size=(6, 1, 16, 16))).float()
    roomy, tight = small_net(), small_net()
    tight.insert(0, Small(3))
    roomy.insert(0, nn.Identity())
    targets = np.array([0, 1, 2, 0, 1, 2])
    run = {"method": method, "targets": targets, "budget": 40, "batch_size": 24}
    # the layer is named: a layer inserted before the first shifts the names of both alike
    inputs = image_inputs(x, cell=8 if method == "exact_shap" else 4)
    expected = explain_inputs(Model(roomy), inputs, **run)
    found = explain_inputs(Model(tight), inputs, **run)
    assert found.values == pytest.approx(expected.values, abs=1e-5)
    assert any("out of memory" in caveat for caveat in found.caveats), found.caveats


def test_a_device_that_holds_no_row_is_named(small_net):
    net = small_net()
    net.insert(0, Small(0))
    with pytest.raises(ModelError, match="out of memory"):
        explain_inputs(Model(net), image_inputs(torch.rand(2, 1, 16, 16)), method="kernel_shap", targets=np.array([0, 1]), budget=16)
