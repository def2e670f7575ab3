"""Every explainer against the bare model evaluations it needs, and against captum, shap, lime, grad-cam and torchcam as their users call them.

The ratio is our time over that of the same number of forward (and backward) passes of the user's own network in the same batches; below 1 where
a prepared copy of the network stood in for it. A small network of 32 px shows overhead, ResNet-18 at 224 px what it means in practice (both
with random weights). With a GPU the same table is made there as well. Peers are timed on few samples; "x faster" is per sample.

    python -m benchmarks attribution
    python -m benchmarks.attribution resnet lime      # rows whose name holds all of these words
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import tl_audit as ta
from benchmarks.contest import Ours, Peer, Values, contest
from tl_audit.attribution import METHODS, Attribution, Inputs, Targets, batch_size_for, explain, explain_inputs
from tl_audit.attribution.removal import STEPS, Ranking, relevance_orders, removal_curves
from tl_audit.modality import TENSOR

TARGET = 3


@dataclass(frozen=True)
class Setting:
    """A network with pictures. ``layers``: the last is explained alone, all of them for several layers; ``large``: one repeat, few samples."""

    name: str
    model: ta.Model
    pictures: torch.Tensor
    inputs: Inputs
    layers: tuple[str, ...]
    large: bool

    @property
    def net(self) -> nn.Module:
        return self.model.module

    @property
    def device(self) -> torch.device:
        return self.pictures.device

    @property
    def repeats(self) -> int:
        return 1 if self.large and self.device.type == "cpu" else 3

    def first(self, n: int) -> Setting:
        rows = np.arange(n)
        return replace(self, pictures=self.pictures[:n], inputs=self.inputs.select(rows))

    def batch(self) -> int:
        return batch_size_for(self.pictures, self.model)

    def rows(self) -> torch.Tensor:
        """Enough rows for any batch of bare evaluations."""
        times = -(-self.batch() // len(self.pictures))
        return self.pictures.repeat(times, 1, 1, 1)[: self.batch()].contiguous()

    def layer(self) -> nn.Module:
        return self.net.get_submodule(self.layers[-1])


def settings(device: torch.device) -> Iterator[Setting]:
    from torchvision.models import get_model

    torch.manual_seed(0)
    small = ta.models.small_cnn(10)
    torch.manual_seed(0)
    resnet = get_model("resnet18", weights=None)
    for name, net, side, layers in (
        ("small CNN 32 px", small, 32, ("block1", "block2", "block3")),
        ("ResNet-18 224 px", resnet, 224, ("layer2", "layer3", "layer4")),
    ):
        net = net.eval().to(device)
        pictures = smooth(64, side).to(device)
        model = ta.Model(net, classes=tuple(f"class {i}" for i in range(10 if side == 32 else 1000)))
        parts = TENSOR.players(pictures.cpu(), None)
        inputs = Inputs(tensor=pictures, ids=tuple(map(str, range(64))), modality=TENSOR, spec=None, players=parts)
        yield Setting(f"{name}, {device.type}" if device.type != "cpu" else name, model, pictures, inputs, layers, side > 100)


def smooth(n: int, side: int) -> torch.Tensor:
    """Pictures with structure that superpixels can follow: smoothed noise, in the range of normalised pictures."""
    noise = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return F.interpolate(noise, size=(side, side), mode="bicubic", align_corners=False).clamp(-2, 2)


def explained(setting: Setting, method: str, **wanted: Any) -> Callable[[], Attribution]:
    targets = np.full(len(setting.inputs), TARGET)
    size = setting.batch()
    return lambda: explain_inputs(setting.model, setting.inputs, method=method, targets=targets, batch_size=size, **wanted)


def ours(
    setting: Setting, work: Callable[[], Attribution], *, evaluations: int | None = None, backwards: int = 0, maps: bool = False
) -> Ours:
    """Evaluations per sample as the result reports them, unless given."""
    n = len(setting.inputs)
    return Ours(
        n,
        work,
        (lambda a: list(a.values)) if maps else (lambda a: list(a.player_values)),
        lambda a: n * (a.budget if evaluations is None else evaluations),
        lambda a: n * backwards,
    )


# ---- what users of other packages write


def numpy_probabilities(setting: Setting) -> Callable[[np.ndarray], np.ndarray]:
    """A classifier function of pictures (N, H, W, 3), as lime and shap want it."""

    def predict(pictures: np.ndarray) -> np.ndarray:
        x = torch.as_tensor(np.asarray(pictures).transpose(0, 3, 1, 2), dtype=torch.float32, device=setting.device)
        with torch.no_grad():
            return np.asarray(setting.net(x).softmax(dim=1).cpu().numpy())

    return predict


def hwc(setting: Setting, i: int) -> np.ndarray:
    return np.ascontiguousarray(setting.pictures[i].permute(1, 2, 0).cpu().double().numpy())


def lime_image(setting: Setting, samples: int, budget: int) -> Peer:
    def work() -> Any:
        from lime.lime_image import LimeImageExplainer

        predict = numpy_probabilities(setting)
        out = []
        for i in range(samples):
            segments = setting.inputs.players.assignment[i].numpy()
            found = LimeImageExplainer(random_state=0).explain_instance(
                hwc(setting, i), predict, labels=(TARGET,), top_labels=None, hide_color=0, num_samples=budget, segmentation_fn=lambda picture, s=segments: s
            )  # fmt: skip
            out.append(found)
        return out

    def values(found: Any) -> Values:
        return [np.array([v for _, v in sorted(one.local_exp[TARGET])]) for one in found]

    return Peer("lime (our superpixels)", samples, quietly(work), values)


def lime_image_default(setting: Setting, budget: int) -> Peer:
    def work() -> Any:
        from lime.lime_image import LimeImageExplainer

        predict = numpy_probabilities(setting)
        return LimeImageExplainer(random_state=0).explain_instance(hwc(setting, 0), predict, hide_color=0, num_samples=budget)

    return Peer("lime (quickshift, its default)", 1, quietly(work))


def captum_game(setting: Setting, name: str, samples: int, budget: int, at_once: int = 1) -> Peer:
    def work() -> list[torch.Tensor]:
        import captum.attr

        method = getattr(captum.attr, name)(setting.net)
        return [
            method.attribute(
                setting.pictures[i : i + 1], baselines=0.0, target=TARGET, n_samples=budget, perturbations_per_eval=at_once,
                feature_mask=setting.inputs.players.assignment[i][None, None].to(setting.device),
            )
            for i in range(samples)
        ]  # fmt: skip

    def values(found: list[torch.Tensor]) -> Values:
        out = []
        for i, one in enumerate(found):
            parts = setting.inputs.players.assignment[i].reshape(-1).numpy()
            flat = one[0, 0].detach().cpu().double().reshape(-1).numpy()
            out.append(np.bincount(parts, flat) / np.bincount(parts))
        return out

    return Peer(f"captum {name} ({at_once} at once)", samples, quietly(work), values)


def shap_kernel(setting: Setting, samples: int, budget: int) -> Peer:
    def work() -> Any:
        import shap

        out = []
        for i in range(samples):
            picture, parts = setting.pictures[i], setting.inputs.players.assignment[i].to(setting.device)
            d = int(setting.inputs.players.count[i])

            def score(z: np.ndarray, picture: torch.Tensor = picture, parts: torch.Tensor = parts) -> np.ndarray:
                kept = torch.as_tensor(z, dtype=torch.float32, device=setting.device)[:, parts]
                with torch.no_grad():
                    return np.asarray(setting.net(picture[None] * kept[:, None])[:, TARGET].cpu().numpy())

            with numpy_seeded():
                out.append(shap.KernelExplainer(score, np.zeros((1, d))).shap_values(np.ones(d), nsamples=budget, silent=True))
        return out

    return Peer("shap KernelExplainer", samples, quietly(work), lambda found: found)


@contextlib.contextmanager
def numpy_seeded() -> Iterator[None]:
    """shap draws from NumPy's global state."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def shap_partition(setting: Setting, samples: int, budget: int) -> Peer:
    def work(evaluations: int = budget) -> Any:
        import shap

        pictures = np.stack([hwc(setting, i) for i in range(samples)]).astype(np.float32)
        side = pictures.shape[1]

        def score(x: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return np.asarray(setting.net(torch.as_tensor(x, device=setting.device).permute(0, 3, 1, 2).contiguous()).cpu().numpy())

        masker = shap.maskers.Image(f"blur({side // 4},{side // 4})", pictures[0].shape)
        return shap.Explainer(score, masker)(pictures, max_evals=evaluations, batch_size=50, outputs=[TARGET], silent=True)

    def values(found: Any) -> Values:
        out = []
        for i in range(samples):
            parts = setting.inputs.players.assignment[i].reshape(-1).numpy()
            out.append(np.bincount(parts, found.values[i, ..., 0].sum(axis=-1).reshape(-1)))
        return out

    return Peer("shap Partition (blur)", samples, quietly(work), values, quietly(lambda: work(20)))


def captum_cam(setting: Setting, layers: Sequence[str]) -> Peer:
    def work() -> torch.Tensor:
        from captum.attr import LayerGradCam

        found = [
            torch.cat([
                LayerGradCam(setting.net, setting.net.get_submodule(layer)).attribute(x, target=TARGET, relu_attributions=True).detach()
                for x in setting.pictures.split(setting.batch())
            ])
            for layer in layers
        ]  # fmt: skip
        return found[-1]

    side = setting.pictures.shape[-1]
    return Peer(
        "captum LayerGradCam", len(setting.pictures), quietly(work),
        lambda cam: list(F.interpolate(cam, size=(side, side), mode="bilinear", align_corners=False)[:, 0].cpu().numpy()),
    )  # fmt: skip


def grad_cam_package(setting: Setting, layers: Sequence[str]) -> Peer:
    def work() -> np.ndarray:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        with GradCAM(model=setting.net, target_layers=[setting.net.get_submodule(layer) for layer in layers]) as cam:
            return np.concatenate(
                [cam(input_tensor=x, targets=[ClassifierOutputTarget(TARGET)] * len(x)) for x in setting.pictures.split(setting.batch())]
            )

    # of several layers it gives one map, the mean of theirs
    return Peer("grad-cam", len(setting.pictures), quietly(work), (lambda maps: list(maps)) if len(layers) == 1 else None)


def torchcam_package(setting: Setting, layers: Sequence[str]) -> Peer:
    def work() -> torch.Tensor:
        from torchcam.methods import GradCAM

        with GradCAM(setting.net, target_layer=list(layers)) as cam:
            return torch.cat([cam([TARGET] * len(x), setting.net(x))[-1] for x in setting.pictures.split(setting.batch())])

    side = setting.pictures.shape[-1]
    return Peer(
        "torchcam", len(setting.pictures), quietly(work),
        lambda cam: list(F.interpolate(cam[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0].detach().cpu().numpy()),
    )  # fmt: skip


def captum_gradients(setting: Setting, name: str, samples: int, **wanted: Any) -> Peer:
    def work() -> torch.Tensor:
        import captum.attr

        torch.manual_seed(0)
        return getattr(captum.attr, name)(setting.net).attribute(setting.pictures[:samples].clone(), target=TARGET, **wanted).detach()

    return Peer(f"captum {name}", samples, quietly(work), lambda found: list(found.sum(dim=1).cpu().numpy()))


def quietly(work: Callable[[], Any]) -> Callable[[], Any]:
    def silent() -> Any:
        # progress bars and advice would hide the table
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return work()

    return silent


# ---- the rows


def lime_rows(s: Setting) -> None:
    n, budget, peers = (1, 256, 1) if s.large else (8, 1000, 2)
    s = s.first(n)
    there = [lime_image(s, peers, budget), captum_game(s, "Lime", 1, budget)]
    if not s.large:
        there.append(lime_image_default(s, budget))
    compare(s, f"LIME image, {n} pictures x {budget}", ours(s, explained(s, "lime", budget=budget)), there)
    if not s.large:
        user = ours(s, lambda: explain(s.model, s.pictures, method="lime", target=TARGET, budget=budget))
        compare(s, f"LIME image through explain(), superpixels included, {n} x {budget}", user, [])


def kernel_shap_rows(s: Setting) -> None:
    n, budget, peers = (1, 256, 1) if s.large else (8, 1000, 2)
    s = s.first(n)
    there = [shap_kernel(s, peers, budget), captum_game(s, "KernelShap", 1, budget)]
    compare(s, f"kernel SHAP, {n} pictures x {budget}", ours(s, explained(s, "kernel_shap", budget=budget)), there)


def partition_rows(s: Setting) -> None:
    if missing(s, "partition SHAP", "partition_shap"):
        return
    n, budget = (2, 256) if s.large else (4, 500)
    s = s.first(n)
    compare(s, f"partition SHAP, {n} x {budget}", ours(s, explained(s, "partition_shap", budget=budget)), [shap_partition(s, 1, budget)])


def cam_rows(s: Setting) -> None:
    n = 16 if s.large else 64
    s = s.first(n)
    one = ours(s, explained(s, "grad_cam", layer=s.layers[-1]), evaluations=1, maps=True)
    compare(
        s, f"Grad-CAM, {n} pictures, one layer", one, [f(s, s.layers[-1:]) for f in (captum_cam, grad_cam_package, torchcam_package)], 7
    )


def cam_pass_rows(s: Setting) -> None:
    if "hires_cam" not in METHODS:
        print(f"{s.name}: several CAM methods in one pass: not there yet")
        return
    from tl_audit.attribution.cam import cam_pass

    n = 16 if s.large else 64
    s = s.first(n)
    five = [m for m in ("grad_cam", "grad_cam++", "hires_cam", "xgrad_cam", "layer_cam", "eigen_cam") if m in METHODS][:5]

    def run(methods: Sequence[str], classes: Sequence[int], layers: Sequence[str], features: bool) -> Ours:
        return Ours(
            n,
            lambda: cam_pass(
                s.model, s.pictures, methods=methods, targets=list(classes), layers=list(layers), features=features, batch_size=s.batch()
            ),
            lambda found: list(found.maps[methods[0], layers[-1], len(classes) - 1].cpu().numpy()),
            lambda found: n,
        )

    peers = [grad_cam_package(s, s.layers), captum_cam(s, s.layers)]
    compare(s, f"Grad-CAM, {n} pictures, {len(s.layers)} layers", run(["grad_cam"], [TARGET], s.layers, False), peers, 7)
    alone = [k for k in range(5) if k != TARGET] + [TARGET]
    mine = run(five, alone, s.layers[-1:], True)
    compare(s, f"{len(five)} CAM methods x 5 classes + features + probabilities, {n} pictures", mine, [many_cams(s.first(n // 8))], 7)


def many_cams(setting: Setting) -> Peer:
    """Five methods of grad-cam, class after class."""

    def work() -> np.ndarray:
        import pytorch_grad_cam as package
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        found = None
        for name in ("GradCAM", "GradCAMPlusPlus", "HiResCAM", "XGradCAM", "LayerCAM"):
            with getattr(package, name)(model=setting.net, target_layers=[setting.layer()]) as cam:
                for k in range(5):
                    made = cam(input_tensor=setting.pictures, targets=[ClassifierOutputTarget(k)] * len(setting.pictures))
                    found = made if name == "GradCAM" and k == TARGET else found
        assert found is not None
        return found

    return Peer("grad-cam, five methods x five classes", len(setting.pictures), quietly(work), lambda maps: list(maps))


def ablation_cam_rows(s: Setting) -> None:
    if missing(s, "ablation-CAM", "ablation_cam"):
        return
    s = s.first(1 if s.large else 8)
    with torch.no_grad():
        seen: list[int] = []
        handle = s.layer().register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
        s.net(s.pictures[:1])
        handle.remove()
    mine = ours(s, explained(s, "ablation_cam", layer=s.layers[-1]), evaluations=seen[0] + 1, maps=True)

    def package() -> np.ndarray:
        from pytorch_grad_cam import AblationCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        with AblationCAM(model=s.net, target_layers=[s.layer()]) as cam:
            return np.asarray(cam(input_tensor=s.pictures[:1], targets=[ClassifierOutputTarget(TARGET)]))

    peers = [Peer("grad-cam AblationCAM", 1, quietly(package), lambda maps: list(maps))]
    compare(s, f"ablation-CAM by the head alone, {len(s.pictures)} pictures, against {seen[0] + 1} full forwards each", mine, peers)


def occlusion_rows(s: Setting) -> None:
    if missing(s, "occlusion", "occlusion"):
        return
    window, stride, n = (56, 24, 1) if s.large else (8, 4, 16)
    s = s.first(n)

    def captums() -> torch.Tensor:
        from captum.attr import Occlusion

        found = Occlusion(s.net).attribute(
            s.pictures, sliding_window_shapes=(3, window, window), strides=(3, stride, stride), baselines=0.0, target=TARGET
        )
        return found[:, 0].detach()

    mine = ours(s, explained(s, "occlusion", window=window, stride=stride), maps=True)
    compare(
        s,
        f"occlusion, {n} pictures, window {window}, step {stride}",
        mine,
        [Peer("captum Occlusion", n, quietly(captums), lambda m: list(m.cpu().numpy()))],
    )


def rise_rows(s: Setting) -> None:
    if missing(s, "RISE", "rise"):
        return
    n, budget = (1, 256) if s.large else (8, 1000)
    s = s.first(n)
    compare(s, f"RISE, {n} pictures x {budget}", ours(s, explained(s, "rise", budget=budget), maps=True), [])


def audit_rows(s: Setting) -> None:
    """Maps by every default method and the checks of their quality: what is not inside a network is ours."""
    import captum.attr  # noqa: F401  imports are not the audit's
    import shap  # noqa: F401

    from benchmarks.audit import Clock, measured
    from tl_audit.auditing import DEFAULT_METHODS

    n = 3 if s.large and s.device.type == "cpu" else 64
    classes = tuple(f"class {i}" for i in range(10))
    torch.manual_seed(1)
    adapted = type(s.net)(10) if not s.large else None
    if adapted is None:
        from torchvision.models import get_model

        adapted = get_model("resnet18", weights=None, num_classes=10)
    adapted = adapted.eval()
    with torch.no_grad():
        labels = [classes[int(k)] for k in adapted(s.pictures[:n].cpu()).argmax(dim=1)]
    subject = ta.Subject(
        adapted=ta.Model(adapted, classes=classes),
        base=s.model,
        target=ta.Domain("pictures", s.pictures[:n].cpu(), labels=labels, kind="tensor", classes=classes),
    )
    codes = tuple(f"TLA{k}" for k in range(701, 712))
    clock = Clock()
    with measured(clock, own_line=codes):
        ta.audit(subject, select=["TLA7"], methods=DEFAULT_METHODS, attribution_samples=n, device=s.device.type)
        clock.stop()
    whole, inside = sum(clock.wall.values()), sum(clock.model.values())
    print(
        f"{s.name}: {n} pictures, {', '.join(DEFAULT_METHODS)} and TLA701 to 711: {whole:.1f} s, of which {1 - inside / whole:.1%} is not the model's "
        f"({sum(clock.samples.values())} samples through networks)"
    )
    print("\n".join(clock.lines()), flush=True)


def integrated_rows(s: Setting) -> None:
    n, steps = (2, 16) if s.large else (8, 50)
    s = s.first(n)
    mine = ours(s, explained(s, "integrated_gradients", steps=steps), evaluations=steps + 2, backwards=steps, maps=True)
    compare(
        s, f"integrated gradients, {n} pictures, {steps} steps", mine, [captum_gradients(s, "IntegratedGradients", n, n_steps=steps)], 3
    )


def removal_rows(s: Setting) -> None:
    n = 2 if s.large else 16
    s = s.first(n)
    targets = Targets(np.full(n, TARGET))
    values = tuple(np.random.default_rng(i).normal(size=int(c)) for i, c in enumerate(s.inputs.players.count))
    orders = relevance_orders(values, s.inputs.players, key=(0,), ids=s.inputs.ids)
    rankings = {f"map {k}": Ranking([np.roll(o, 7 * k) for o in orders], STEPS) for k in range(4)}
    passes = [0]

    def curves() -> list[np.ndarray]:
        found = removal_curves(s.model, s.inputs, targets, rankings, seed=0, batch_size=s.batch())
        passes[0] = n * (4 * 2 * len(STEPS) + 2)  # nothing and everything removed are the same for all orders
        return [np.stack([found["map 0"].most_first[i], found["map 0"].least_first[i]]) for i in range(n)]

    def step_by_step() -> list[np.ndarray]:
        """A loop over pictures, orders and steps, one masked picture at a time: what one writes without a library."""
        out = []
        means = s.pictures.mean(dim=(2, 3), keepdim=False)[:, :, None]
        with torch.no_grad():
            for i in range(1):
                areas, parts = s.inputs.players.areas(i), s.inputs.players.assignment[i].to(s.device)
                both = []
                for ranking in rankings.values():
                    for order in (ranking.orders[i], ranking.orders[i][::-1]):
                        reached = np.concatenate([[0.0], np.cumsum(areas[order])]) / areas.sum()
                        curve = []
                        for share in (0.0, *STEPS, 1.0):
                            gone = order[: int(np.argmin(np.abs(reached - share)))].copy()
                            x = s.pictures[i].clone()
                            x[:, torch.isin(parts, torch.as_tensor(gone, device=s.device))] = means[i]
                            curve.append(float(s.net(x[None]).softmax(dim=1)[0, TARGET]))
                        both.append(curve)
                out.append(np.array(both[:2]))
        return out

    mine = Ours(n, curves, lambda found: found, lambda found: passes[0])
    compare(s, f"removal curves of 4 maps, {n} pictures", mine, [Peer("a loop step by step", 1, step_by_step, lambda found: found)])


# ---- tables


@dataclass(frozen=True)
class Table:
    """A perceptron over 12 columns, trained briefly, with rows to explain and rows to compare with."""

    model: ta.Model
    rows: torch.Tensor
    background: torch.Tensor

    @property
    def net(self) -> nn.Module:
        return self.model.module


def table(device: torch.device, rows: int = 200, columns: int = 12) -> Table:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1500, columns, generator=generator)
    y = (x[:, 0] + x[:, 1] * x[:, 2] - 0.5 * x[:, 3].abs() > 0).long()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(columns, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
    steps = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(100):
        steps.zero_grad()
        F.cross_entropy(net(x), y).backward()
        steps.step()
    return Table(ta.Model(net.eval().to(device), classes=("no", "yes")), x[:rows].to(device), x[500:1000].to(device))


def tables_row(device: torch.device) -> None:
    t = table(device)
    train, n = t.background.cpu().double().numpy(), 10

    def probabilities(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(t.net(torch.as_tensor(x, dtype=torch.float32, device=device)).softmax(dim=1).cpu().numpy())

    def lime_package() -> Any:
        from lime.lime_tabular import LimeTabularExplainer

        theirs = LimeTabularExplainer(train, random_state=0)
        return [
            theirs.explain_instance(row, probabilities, labels=(1,), num_features=train.shape[1])
            for row in t.rows[:n].cpu().double().numpy()
        ]

    def values(found: Any) -> Values:
        return [np.array([dict(one.local_exp[1])[k] for k in range(train.shape[1])]) for one in found]

    mine = Ours(
        len(t.rows),
        lambda: explain(t.model, t.rows, method="lime", target="yes", background=t.background),
        lambda a: list(a.player_values),
        lambda a: a.budget * len(a),
    )
    peers = [Peer("lime", n, quietly(lime_package), values)]
    contest(f"LIME tables, {len(t.rows)} rows, {device.type}", t.net, t.rows.repeat(3, 1)[:512], mine, peers, batch=512)


def gradient_table_rows(device: torch.device) -> None:
    """Expected gradients and DeepLIFT-SHAP of a perceptron, against all rows of a background."""
    t = table(device)
    background, n = t.background[:50], 10

    def compare_with(method: str, what: str, peers: Sequence[Peer], budget: int) -> None:
        if method not in METHODS:
            print(f"{what}: not there yet")
            return
        mine = Ours(
            len(t.rows),
            lambda: explain(t.model, t.rows, method=method, target="yes", background=background, budget=budget),
            lambda a: list(a.player_values),
            lambda a: a.budget * len(a) // 2,
            lambda a: a.budget * len(a) // 2,
        )
        contest(f"{what}, {device.type}", t.net, t.rows.repeat(3, 1)[:512], mine, peers, batch=512)

    def shap_gradients() -> Any:
        import shap

        return shap.GradientExplainer(t.net, background).shap_values(t.rows[:n], nsamples=200, rseed=0)[..., 1]

    def captum_gradients() -> Any:
        from captum.attr import GradientShap

        torch.manual_seed(0)
        return GradientShap(t.net).attribute(t.rows[:n].clone(), background, n_samples=200, target=1).detach().cpu().numpy()

    def shap_deep() -> Any:
        import shap

        return shap.DeepExplainer(t.net, background).shap_values(t.rows[:n])[..., 1]

    def captum_deep() -> Any:
        from captum.attr import DeepLiftShap

        # captum's refuses a batch whose rows times background it cannot keep apart: one row at a time, as its example does
        lift = DeepLiftShap(t.net)
        return np.concatenate([lift.attribute(row[None].clone(), background, target=1).detach().cpu().numpy() for row in t.rows[:n]])

    gradients = [
        Peer("shap GradientExplainer", n, quietly(shap_gradients), list),
        Peer("captum GradientShap", n, quietly(captum_gradients), list),
    ]
    compare_with("gradient_shap", f"expected gradients, table, {len(t.rows)} rows x 200 draws", gradients, 451)
    deep = [Peer("shap DeepExplainer", n, quietly(shap_deep), list), Peer("captum DeepLiftShap", n, quietly(captum_deep), list)]
    compare_with("deep_lift_shap", f"DeepLIFT-SHAP, table, {len(t.rows)} rows x {len(background)} of a background", deep, 102)


ROWS: tuple[tuple[str, Callable[[Setting], None]], ...] = (
    ("lime", lime_rows),
    ("kernel_shap", kernel_shap_rows),
    ("partition_shap", partition_rows),
    ("cam", cam_rows),
    ("cam pass", cam_pass_rows),
    ("ablation_cam", ablation_cam_rows),
    ("occlusion", occlusion_rows),
    ("rise", rise_rows),
    ("integrated_gradients", integrated_rows),
    ("removal", removal_rows),
    ("audit", audit_rows),
)

TABLE_ROWS: tuple[tuple[str, Callable[[torch.device], None]], ...] = (("lime", tables_row), ("gradients", gradient_table_rows))


def compare(s: Setting, what: str, mine: Ours, peers: Sequence[Peer], repeats: int | None = None) -> None:
    contest(f"{s.name}: {what}", s.net, s.rows(), mine, peers, batch=s.batch(), repeats=repeats or s.repeats)


def missing(s: Setting, what: str, method: str) -> bool:
    if method in METHODS:
        return False
    print(f"{s.name}: {what}: not there yet")
    return True


def main(words: Sequence[str] = ()) -> None:
    # imports are nobody's time
    import captum.attr  # noqa: F401
    import lime.lime_image  # noqa: F401
    import shap  # noqa: F401

    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    for device in devices:
        for name, alone in TABLE_ROWS:
            if all(word.lower() in f"table {name}" for word in words):
                alone(device)
        for setting in settings(device):
            for name, row in ROWS:
                if all(word.lower() in f"{setting.name} {name}".lower() for word in words):
                    row(setting)


if __name__ == "__main__":
    main(sys.argv[1:])
