"""What each part of ModalImmune is worth, on two bits seen by three modalities of unequal noise."""

import pytest
import torch
from torch import nn

from modalscape.engine.core.optimizer import Settings
from modalscape.engine.core.problem import Batch, Multimodal
from modalscape.engine.core.rng import Rng
from modalscape.engine.methods.modalimmune.method import ModalImmune
from tests import tiny
from tests.methods.immune import FORMER

NOISE = {"t": 0.25, "a": 0.6, "v": 0.8}
SEEDS = range(2)


def rows(seed: int) -> dict[str, Batch]:
    draw = torch.Generator().manual_seed(seed)
    views = {m: torch.randn(2, 20, generator=draw) / 20**0.5 for m in NOISE}

    def some(count: int) -> Batch:
        bits = torch.randint(2, (count, 2), generator=draw).float() * 2 - 1
        x = {m: bits @ views[m] + s * torch.randn(count, 20, generator=draw) for m, s in NOISE.items()}
        return Batch(x, (bits[:, 0] > 0).long() * 2 + (bits[:, 1] > 0).long())

    return {"train": some(2000), "val": some(1000), "test": some(4000)}


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.fused = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, features):
        return {"fused": self.fused(torch.cat([features[m] for m in NOISE], -1))}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        encoder = lambda: nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16))  # noqa: E731
        self.encoders = nn.ModuleDict({m: encoder() for m in NOISE})
        self.trunk = Head()

    def part_of(self, name):
        return name.split(".")[1] if name.startswith("encoders.") else "shared"


@torch.no_grad()
def scores(problem, theta) -> dict[str, float]:
    """Accuracy clean and without t, and the mean accuracy under noise up to 3 on one modality."""
    batch = problem.rows["test"]

    def accuracy(x, gone=()):
        features = problem.encode(theta, Batch(x, batch.y))
        features = {m: torch.zeros_like(z) if m in gone else z for m, z in features.items()}
        return (problem.logits(theta, features)["fused"].argmax(1) == batch.y).double().mean().item()

    found = {"clean": accuracy(batch.x), "without t": accuracy(batch.x, ("t",))}
    draw = torch.Generator().manual_seed(5)
    for m in NOISE:
        noise = torch.randn(batch.x[m].shape, generator=draw)
        curve = [accuracy(batch.x | {m: batch.x[m] + level * noise}) for level in torch.linspace(0, 3, 7).tolist()]
        found[f"noise {m}"] = (sum(curve) - (curve[0] + curve[-1]) / 2) / 6
    return found


def trained(**values) -> tuple[dict[str, float], float]:
    """Mean scores over the seeds, and the share of the attacks that hit t."""
    found, share = [], []
    for seed in SEEDS:
        problem = Multimodal("toy", "Toy", rows(seed), Net, tiny.CrossEntropy(), Rng(seed), batch=64)
        plain = FORMER | {"gate": "off", "meta_every": 0, "warmup": 100, "ramp": 1}
        methods = [ModalImmune(ModalImmune.Params(**(plain | values)))] if values else []
        state, _, stack = tiny.train(problem, methods, 1500, Settings(name="adam", lr=1e-3))
        found.append(scores(problem, state.theta))
        drawn = stack.methods["modalimmune"].state["drawn"] if values else torch.ones(3)
        share.append((drawn[0] / drawn.sum()).item())
    return {name: sum(f[name] for f in found) / len(found) for name in found[0]}, sum(share) / len(share)


@pytest.mark.slow
def test_omission_the_controller_and_the_collapse_each_do_their_part():
    plain, _ = trained()
    uniform, _ = trained(collapse=0.0, controller="uniform")
    chosen, share = trained(collapse=0.0)
    collapsed, _ = trained(adaptive=False, clip=10.0)
    assert uniform["without t"] > plain["without t"] + 0.05
    assert uniform["noise t"] > plain["noise t"] + 0.04
    assert share > 0.6
    assert chosen["noise t"] > uniform["noise t"] + 0.02
    assert collapsed["noise t"] > chosen["noise t"] + 0.02
    # and the price
    assert collapsed["noise a"] < chosen["noise a"] < uniform["noise a"]
    assert min(f["clean"] for f in (plain, uniform, chosen, collapsed)) > 0.98


@pytest.mark.slow
def test_a_collapse_without_clip_and_floor_destroys():
    gone, _ = trained(collapse=5.0, adaptive=False, clip=10.0, floor=0.0)
    held, _ = trained(collapse=5.0, adaptive=False, floor=0.5)
    assert gone["clean"] < held["clean"] - 0.02
