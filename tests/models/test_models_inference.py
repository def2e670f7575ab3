"""inference_copy: the same outputs sooner, or the network itself with the reason (issue 3, speed; HARDENING.md F22, 5.5)."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models.test_models_borrow import traces
from tl_audit.models import Model, small_cnn
from tl_audit.models.inference import FEWEST_EVALUATIONS, inference_copy


def trained(net: nn.Module) -> nn.Module:
    """Batch norms with statistics that a fold must get right."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.3)
            if module.affine:
                module.weight.data.copy_(torch.rand(module.weight.shape, generator=generator) * 3 - 1)
                module.bias.data.copy_(torch.randn(module.bias.shape, generator=generator))
    return net.eval()


def pictures(n: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def copied(net: nn.Module, x: torch.Tensor | None = None, **settings):
    return inference_copy(Model(net), pictures() if x is None else x, **settings)


class Body(nn.Module):
    """One convolution and one batch norm, and a ``forward`` to be put in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3)
        self.bn = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def last(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.relu().mean(dim=(2, 3)))

    def forward(self, x):
        return self.last(self.bn(self.conv(x)))


def agrees(net: nn.Module, prepared, x: torch.Tensor, tolerance: float = 1e-5) -> bool:
    with torch.no_grad():
        expected, found = net(x), prepared.net(x)
    return bool(torch.allclose(found, expected, rtol=0, atol=tolerance * float(expected.max() - expected.min())))


@pytest.mark.parametrize("seed", range(3))
def test_a_folded_copy_gives_the_logits_of_pictures_it_was_not_tried_on(seed):
    net = trained(small_cnn(4, widths=(4, 6)))
    prepared = copied(net)
    assert prepared.folded == 2
    assert prepared.channels_last
    assert not any(isinstance(m, nn.BatchNorm2d) for m in prepared.net.modules())
    assert agrees(net, prepared, pictures(9, seed=seed + 1))
    assert prepared.difference < 1e-5
    assert prepared.reason == "a copy with 2 batch norm(s) folded, channels last"


def test_tables_are_folded_and_have_no_layout():
    torch.manual_seed(0)
    net = trained(nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7, affine=False), nn.ReLU(), nn.Linear(7, 3)))
    x = torch.randn(4, 5)
    prepared = copied(net, x)
    assert (prepared.folded, prepared.channels_last) == (1, False)
    assert agrees(net, prepared, torch.randn(6, 5))


def test_double_precision_is_kept():
    net = trained(Body()).double()
    prepared = copied(net, pictures().double())
    assert prepared.dtype == torch.float64
    assert agrees(net, prepared, pictures(3, seed=2).double(), tolerance=1e-12)


@pytest.mark.parametrize("state", ["training", "eval", "frozen"])
def test_the_users_network_is_left_as_it_was(state):
    net = trained(small_cnn(4, widths=(4, 6)))
    if state == "training":
        net.train()
        net(pictures()).sum().backward()
    elif state == "frozen":
        net.requires_grad_(False)
    before = traces(net)
    prepared = copied(net)
    assert prepared.net is not None
    assert traces(net) == before
    assert not {id(t) for t in prepared.net.state_dict(keep_vars=True).values()} & {id(t) for t in net.state_dict(keep_vars=True).values()}
    assert not any(m.training for m in prepared.net.modules())
    assert not any(p.requires_grad for p in prepared.net.parameters())


def test_a_network_that_raises_raises_and_is_left_as_it_was():
    class Breaks(Body):
        def forward(self, x):
            super().forward(x)
            raise ValueError("broken")

    net = Breaks().train()
    before = traces(net)
    with pytest.raises(ValueError, match="broken"):
        copied(net)
    assert traces(net) == before


def test_shared_layers_keep_their_own_weights():
    """The convolution runs twice, once without the batch norm: nothing may be folded into it."""

    class Shared(Body):
        def forward(self, x):
            return self.last(self.bn(self.conv(x)) + self.conv(x))

    net = trained(Shared())
    prepared = copied(net)
    assert prepared.folded == 0
    assert agrees(net, prepared, pictures(4, seed=3))


def test_an_output_that_something_else_reads_is_not_folded():
    class Skip(Body):
        def forward(self, x):
            y = self.conv(x)
            return self.last(self.bn(y) + y)

    assert copied(trained(Skip())).folded == 0


def test_an_output_changed_in_place_is_not_folded():
    class InPlace(Body):
        def forward(self, x):
            y = self.conv(x)
            z = self.bn(y)
            return self.last(z + y.mul_(2))

    assert copied(trained(InPlace())).folded == 0


def test_in_place_activations_behind_a_folded_norm_are_fine():
    class InPlace(Body):
        def forward(self, x):
            return self.last(F.relu_(self.bn(self.conv(x))).add_(1))

    net = trained(InPlace())
    prepared = copied(net)
    assert prepared.folded == 1
    assert agrees(net, prepared, pictures(4, seed=3))


def test_tied_weights_are_not_folded_along():
    """Two layers hold one weight; the batch norm follows only the first."""

    class Tied(Body):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Conv2d(3, 6, 3)
            self.other.weight = self.conv.weight

        def forward(self, x):
            return self.last(self.bn(self.conv(x)) + self.other(x))

    net = trained(Tied())
    prepared = copied(net)
    assert prepared.folded == 1
    assert agrees(net, prepared, pictures(4, seed=3))


def test_a_norm_held_in_a_plain_list_is_not_run_twice():
    class Listed(Body):
        def __init__(self) -> None:
            super().__init__()
            self.order = [self.conv, self.bn]

        def forward(self, x):
            for layer in self.order:
                x = layer(x)
            return self.last(x)

    net = trained(Listed())
    prepared = copied(net)
    assert prepared.folded == 1
    assert agrees(net, prepared, pictures(4, seed=3))


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_outputs_keep_their_form(kind):
    class Wrapped(Body):
        def forward(self, x):
            logits = super().forward(x)
            return {"features": x, "logits": logits} if kind == "dict" else (logits, x)

    net = trained(Wrapped())
    prepared = copied(net)
    assert prepared.folded == 1
    assert type(prepared.net(pictures())) is {"dict": dict, "tuple": tuple}[kind]


def test_a_network_that_views_its_maps_keeps_the_plain_layout():
    class Views(Body):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6 * 14 * 14, 4)

        def forward(self, x):
            x = self.bn(self.conv(x)).relu()
            return self.head(x.view(len(x), -1))

    net = trained(Views())
    prepared = copied(net)
    assert (prepared.folded, prepared.channels_last) == (1, False)
    assert agrees(net, prepared, pictures(4, seed=3))


# ---- no copy, and why


def test_a_copy_that_disagrees_is_refused_with_the_difference():
    """A forward that also reads the weights themselves: the record of one run cannot know what that means, the logits can."""

    class Calibrated(Body):
        def forward(self, x):
            return super().forward(x) + self.conv.weight.mean()

    prepared = copied(trained(Calibrated()))
    assert prepared.net is None
    assert prepared.difference > 1e-4
    assert "differ" in prepared.reason


def test_batch_statistics_at_inference_are_not_folded():
    class Functional(Body):
        def forward(self, x):
            y = F.batch_norm(self.conv(x), None, None, training=True)
            return self.last(y)

    class Training(nn.BatchNorm2d):
        def forward(self, x):
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True)

    assert copied(Functional()).folded == 0
    net = Body()
    net.bn = Training(6)
    assert copied(net).folded == 0
    net = Body()
    net.bn = nn.BatchNorm2d(6, track_running_stats=False)
    assert copied(net).folded == 0


def test_a_forward_that_sets_training_mode_is_not_copied():
    class Stubborn(Body):
        def forward(self, x):
            self.bn.train()
            return super().forward(x)

    prepared = copied(trained(Stubborn()))
    assert prepared.net is None
    assert "state" in prepared.reason


def test_hooks_keep_their_meaning():
    net = trained(Body())
    net.conv.register_forward_hook(lambda module, args, out: out * 2)
    prepared = copied(net)
    assert prepared.net is None
    assert prepared.reason == "'conv' has hooks, which may change or read what passes"
    net = trained(Body())
    net.bn.register_forward_pre_hook(lambda module, args: None)
    assert copied(net).net is None


class Branches(Body):
    def forward(self, x):
        y = self.conv(x)
        return self.last(self.bn(y)) if bool(x.mean() > -9) else self.last(y)


class ReadsList(Body):
    def forward(self, x):
        y = self.conv(x)
        return self.last(self.bn(y)) if x.mean(dim=(1, 2, 3)).tolist()[0] > -9 else self.last(y)


class Counts(Body):
    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x)


class CountsInABuffer(Body):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Random(Body):
    def forward(self, x):
        return super().forward(x + torch.randn_like(x))


class HoldsTensor(Body):
    def __init__(self) -> None:
        super().__init__()
        self.kept = self.head.weight * 2


class NotFinite(Body):
    def forward(self, x):
        return super().forward(x) / 0.0


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Branches(), "reads values"),
        (ReadsList(), "reads values"),
        (Counts(), "state"),
        (CountsInABuffer(), "state"),
        (Random(), "differ"),
        (HoldsTensor(), "cannot be copied"),
        (NotFinite(), "not finite"),
        (nn.Sequential(nn.Linear(768, 3)), "nothing to gain"),
        (Body().half(), "float16"),
        (Body().to(torch.bfloat16), "bfloat16"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_in_doubt_there_is_no_copy_and_the_reason_is_said(net, reason):
    x = pictures() if isinstance(net, Body) else torch.randn(3, 768)
    prepared = copied(trained(net), x)
    assert prepared.net is None
    assert reason in prepared.reason


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_replaced_scripted_and_uninitialised_parts_are_not_copied():
    replaced = trained(Body())
    original = replaced.forward
    replaced.forward = lambda x: original(x) * 2
    assert "replaced" in copied(replaced).reason
    scripted = nn.Sequential(torch.jit.trace(trained(Body()), pictures()))
    assert "scripted" in copied(scripted).reason
    assert "never initialised" in copied(nn.Sequential(nn.LazyConv2d(4, 3))).reason


def test_transformers_gain_nothing_and_are_run_themselves():
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    net = VisionTransformer(image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=48, mlp_dim=192, num_classes=4).eval()
    prepared = copied(net)
    assert prepared.net is None
    assert "nothing to gain" in prepared.reason


# ---- when it is worth it


def test_a_copy_is_made_only_where_the_plan_per_sample_pays():
    net = trained(Body())
    assert copied(net, planned=FEWEST_EVALUATIONS).net is not None
    few = copied(net, planned=FEWEST_EVALUATIONS - 1)
    assert few.net is None
    assert "do not pay" in few.reason
    assert copied(net, pictures(1), planned=256).folded == copied(net, pictures(5), planned=256).folded == 1


def test_lower_precision_only_on_request():
    net = trained(Body())
    assert next(copied(net).net.parameters()).dtype == torch.float32
    asked = copied(net, precision=torch.bfloat16, tolerance=0.1)
    assert asked.dtype == torch.bfloat16
    assert "bfloat16" in asked.reason
    assert copied(net, precision=torch.bfloat16).net is None


def test_preparing_twice_gives_the_same_copy():
    net = trained(small_cnn(4, widths=(4, 6)))
    first, second = copied(net), copied(net)
    assert first.folded == second.folded
    for a, b in zip(first.net.parameters(), second.net.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("name", "folded"), [("resnet18", 20), ("mobilenet_v2", 52)])
def test_every_batch_norm_of_common_networks_is_folded(name, folded):
    from torchvision.models import get_model

    torch.manual_seed(0)
    net = trained(get_model(name, weights=None, num_classes=5))
    prepared = copied(net, torch.randn(2, 3, 48, 48))
    assert prepared.folded == folded
    assert prepared.channels_last
    assert agrees(net, prepared, torch.randn(2, 3, 48, 48), tolerance=1e-4)
