"""A small run as a folder, written without an engine: every kind of record, and a method switched on mid-run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from modalscape.engine.core.display import Display
from modalscape.engine.core.records import Bars, Curve, Matrix, Scalar, Surface
from modalscape.engine.store.commands import Toggle, Tune, post
from modalscape.engine.store.writer import RunWriter, create

STEPS = 400
PARTS = ("image", "text", "shared")
TOGGLED_AT = 160
NEIGHBOUR = "another-run"
"""A run that was measured against, if it lies beside."""
BALANCE = (
    *(f"unimodal/{key}" for key in ("own", "inputs", "linear")),
    *("ogm_ratio", "prototype_ratio", "lead", "drift", "relative_update", "learning_speed", "overfitting"),
    *("overfitting_ratio", "shapley_share", "utilisation", "valuation", "agm_ratio"),
)
"""Numbers of each modality on the Balance page."""


def write_run(
    home: Path, *, state: str = "finished", steps: int = 1000, error: str | None = None, records: bool = True
) -> Path:
    """Write the fixture run into `home`, without `records` if so asked; return `home`."""
    home.mkdir(parents=True)
    create(home)
    config = {
        "problem": "digits_captions",
        "data": None,
        "methods": ["ogm_ge"],
        "probes": {"hessian": 100},
        "steps": steps,
        "seed": 0,
        "device": "cpu",
        "settings": {"optimizer.lr": 0.1, "optimizer.momentum": 0.9, "unimodal": "heads"},
    }
    (home / "config.json").write_text(json.dumps(config))
    writer = RunWriter(home)
    _facts(writer, config)
    _events(writer, home, error)
    rng = np.random.default_rng(0)
    for step in range(STEPS):
        writer.scalars(step, _numbers(step, rng))
    for step in range(0, STEPS + 1, 20):
        writer.scalars(step, _held_out(step, rng))
    for step in range(0, STEPS + 1, 50) if records else ():
        measured = [
            *_curvature(step, rng),
            *_landscape(step),
            *_balance(step, rng),
            *_evidence(step, rng),
            *_robustness(step),
            *_reconstruction(step),
            *_spectra(step),
            *_noise(step),
        ]
        for record in [*measured, *_reports(step, rng)]:
            writer.record(step, record)
    writer.meta("seconds", 8.0)
    writer.beat(state, STEPS, {"activity": ""})
    writer.close()
    return home


def _facts(writer: RunWriter, config: dict) -> None:
    facts = {
        "config": config,
        "steps": config["steps"],
        "title": "Digits with captions",
        "modalities": ["image", "text"],
        "parts": list(PARTS),
        "parameters": 21_578,
        "rows": {"train": 1258, "val": 180, "test": 359},
        "batch": 64,
        "layout": {"encoders.image.0.weight": [128, 64], "encoders.text.0.weight": [32, 64], "trunk.weight": [10, 128]},
        "protocol": "unimodal heads",
        "score": "accuracy",
        "device": "cpu",
        "threads": 1,
        "learning_rate": 0.1,
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "versions": {"torch": "2.13.0"},
        "methods": {"ogm_ge": {"params": {"alpha": 0.3}}, "gani": {"params": {"sigma": 1.0}}},
        "probes": {"hessian": 100},
        "pipeline": {"gradients": ["ogm_ge"], "update": ["gani"], "commit": ["gani"]},
        "settings": {"optimizer.lr": 0.1, "gani.sigma": 1.0, "unimodal": "heads"},
    }
    for key, value in facts.items():
        writer.meta(key, value)


def _events(writer: RunWriter, home: Path, error: str | None) -> None:
    writer.event(0, "started", {"seed": 0, "device": "cpu"})
    writer.event(200, "checkpoint", {"file": "00000200.pt"})
    for step, command in ((TOGGLED_AT, Toggle("gani", True)), (240, Tune("optimizer", "lr", 0.1))):
        writer.event(step, "applied", {"id": post(home, command), "command": command.to_json()})
    writer.event(300, "note", {"text": "λ has settled"})
    writer.event(300, "probe", {"name": "hessian", "seconds": 1.2, "records": 12})
    if error:
        writer.event(
            STEPS, "failed", {"error": error, "traceback": f"Traceback (most recent call last):\nRuntimeError: {error}"}
        )


def _numbers(step: int, rng) -> dict[str, float]:
    fall = np.exp(-step / 90)
    noise = 1 + 0.1 * rng.standard_normal(8)
    return {
        "loss/fused": float((0.08 + 2.2 * fall) * noise[0]),
        "loss/image": float((0.2 + 2.1 * np.exp(-step / 110)) * noise[1]),
        "loss/text": float((0.6 + 1.7 * np.exp(-step / 160)) * noise[2]),
        "accuracy/train": float(np.clip(1 - 0.88 * fall + 0.03 * rng.standard_normal(), 0, 1)),
        "grad_norm/image": float((0.1 + fall) * noise[3]),
        "grad_norm/text": float((0.05 + 0.4 * fall) * noise[4]),
        "grad_norm/shared": float((0.2 + 1.4 * fall) * noise[5]),
        "update_norm/image": float((0.01 + 0.1 * fall) * noise[6]),
        "update_norm/text": float((0.005 + 0.04 * fall) * noise[7]),
        "update_norm/shared": float(0.02 + 0.14 * fall),
        "lr": 0.1,
    }


def _held_out(step: int, rng) -> dict[str, float]:
    base = 1 - 0.88 * np.exp(-step / 90)
    return {
        "loss/val": float(0.15 + 2.1 * np.exp(-step / 85)),
        "accuracy/val": float(0.96 * base + 0.01),
        "accuracy/val/image": float(0.93 * base),
        "accuracy/val/text": float(0.71 * base),
    }


def _curvature(step: int, rng) -> list:
    top = 24 - 12 * np.exp(-step / 120) + rng.standard_normal()
    out = []
    for part, share in (("", 1.0), ("image", 0.7), ("text", 0.4), ("shared", 0.55)):
        path, about = f"hessian/{part}" if part else "hessian", {"n": 512, "mode": "hessian, Lanczos", "seconds": 0.8}
        values = share * top * 0.75 ** np.arange(5)
        grid = np.linspace(-2 * share, 1.1 * share * top, 240)
        y = sum(np.exp(-0.5 * ((grid - v) / 0.25) ** 2) for v in values) + 900 * np.exp(-0.5 * (grid / 0.4) ** 2)
        out += [
            Scalar(f"{path}/lambda_max", float(values[0]), 0.4 * share, **about),
            Scalar(f"{path}/lambda_min", -1.1 * share, 0.1, **about),
            Scalar(f"{path}/trace", float(values.sum() * 3), 2.0, **about),
            Bars(f"{path}/top", np.array([f"λ{i + 1}" for i in range(5)]), values, np.full(5, 0.2), **about),
            Curve(
                f"{path}/spectrum",
                grid,
                np.where(y > 1e-3, y, 0),
                0.1 * y,
                **about,
                display=Display(
                    x="eigenvalue", y="eigenvalues within a smoothing width", ylog=True, lines=values.tolist()
                ),
            ),
        ]
    shares = np.array([[0.7, 0.1, 0.2], [0.3, 0.5, 0.2]])
    out.append(Scalar("hessian/concentration", 0.02, n=512, mode="Hessian of the training loss"))
    out.append(Matrix("hessian/shares", np.array(["λ1", "λ2"]), np.array(PARTS), shares, n=512))
    coupling = np.array([[1.0, 0.3, 0.5], [0.3, 1.0, 0.2], [0.5, 0.2, 1.0]])
    out.append(Matrix("hessian/coupling", np.array(PARTS), np.array(PARTS), coupling, **about))
    out.append(Scalar("hessian/negative_mass", 0.4 * np.exp(-step / 100), 0.02, **about))
    return [*out, *_matrices(step, top, about), *_rises(step), *_opinion(top)]


def _matrices(step: int, top: float, about: dict) -> list:
    """The Gauss-Newton matrix, near the Hessian, and the empirical Fisher, which vanishes."""
    fade, out = float(np.exp(-step / 80)), []
    for path, share in (("ggn", 0.95), ("ggn/empirical_fisher", fade)):
        about = about | {"mode": path.replace("_", " ")}
        out += [
            Scalar(f"{path}/lambda_max", share * top, 0.1, **about),
            Scalar(f"{path}/trace", 3 * share * top, 1.0, **about),
            Bars(f"{path}/top", np.array(["λ1", "λ2"]), share * np.array([top, top / 2]), np.full(2, 0.1), **about),
        ]
    grid = np.linspace(-0.5, 1.1 * top, 240)
    y = np.exp(-0.5 * ((grid - top) / 0.25) ** 2) + 900 * np.exp(-0.5 * (grid / 0.4) ** 2)
    return [*out, Curve("ggn/spectrum", grid, np.where(y > 1e-3, y, 0), 0.1 * y, **about, display=Display(ylog=True))]


def _rises(step: int) -> list:
    fall, about = float(np.exp(-step / 150)), {"n": 512, "mode": "training loss", "seconds": 1.5}
    rise = {"display": Display(y="rise of the loss")}
    named = {"sam": 0.09, "asam": 0.2, "average": 0.01, "m": 0.15, "image/sam": 0.07, "image/asam": 0.1}
    out = [Scalar(f"sharpness/{name}", 0.01 + value * fall, 0.001, **about, **rise) for name, value in named.items()]
    for name, value in (("sam_step", 0.08), ("sam_curvature", 0.05), ("sam_bound", 0.1), ("average_trace", 0.011)):
        draw = {"display": Display(role="expected", label=name.replace("_", " "))}
        out.append(Scalar(f"sharpness/{name}", 0.01 + value * fall, 0.001, **about, **draw))
    values = np.array([0.09, 0.07, 0.03, 0.02]) * fall
    return [
        *out,
        Bars("sharpness/parts", np.array(["all", *PARTS]), values, 0.01 * values, **about, **rise),
        Curve("sharpness/by_m", np.array([32, 128, 512]), np.array([0.3, 0.12, 0.09]), np.full(3, 0.01), **about),
        Curve("sharpness/ascent", np.arange(1, 10), 0.09 - 0.02 / np.arange(1, 10), **about, **rise),
    ]


def _opinion(top: float) -> list:
    labels, values = np.array(["λ1", "λ2", "λ3"]), top * 0.75 ** np.arange(3)
    calls = np.array(["PyHessian, eigenvalues", "PyHessian, trace", "ours, both"])
    about = {"n": 512, "mode": "PyHessian 0.1, power iteration; it gives no error", "seconds": 2.0}
    ours = {"n": 512, "mode": "Hessian of the training loss, Lanczos", "seconds": 0.9}
    return [
        Bars("pyhessian/top", labels, 0.99 * values, **about),
        Bars("pyhessian/ours/top", labels, values, np.full(3, 0.01), **ours),
        Bars("pyhessian/difference", labels, -0.01 * values, np.full(3, 0.01), **about),
        Scalar("pyhessian/trace", float(values.sum() * 3.1), 4.0, **about),
        Scalar("pyhessian/ours/trace", float(values.sum() * 3), 1.0, **ours),
        Bars("pyhessian/products", calls, np.array([60, 25, 48]), **about),
    ]


def _landscape(step: int) -> list:
    x = np.linspace(-1, 1, 25)
    about = {"n": 512, "mode": "training loss, filter-normalised random directions 0", "seconds": 2.4}
    axes = Display(x="step along d1", y="step along d2")
    sharp = 1 + step / 200
    z = 0.1 + sharp * (x[None] ** 2 + 0.4 * x[:, None] ** 2) + 0.15 * np.sin(6 * x[None]) ** 2 * x[:, None] ** 2
    found = []
    for name, scale in (("", 1.0), ("image", 1.3), ("text", 1.9)):
        tail, label = (f"/{name}", "") if name else ("", "joint")
        draw = axes | Display(center=0.1 * scale, checked_error=0)
        found.append(Surface(f"landscape/2d{tail}", x, x, scale * z, **about, display=draw))
        draw = Display(x="step along d1", y="loss", label=label, checked_error=0)
        found.append(Curve(f"landscape/1d{tail}", x, scale * (0.1 + sharp * x**2), **about, display=draw))
    return found + (_path(step, x, z, about) if step else [])


def _path(step: int, x, z, about: dict) -> list:
    """The path in its plane, what it leaves out, and lines to another run."""
    steps = np.arange(0, step + 1, 25)
    t = 1 - steps / step
    loss, off = 0.1 + 2 * t**2, 0.4 * np.sin(np.pi * t)
    drawn = {"step": steps.tolist(), "x": (0.8 * t).tolist(), "y": (0.5 * t * (1 - t)).tolist()}
    drawn |= {"loss": loss.tolist(), "off": off.tolist()}
    found = [
        Surface("landscape/trajectory/2d", x, x, z, **about, display=Display(x="PC1", y="PC2", path=drawn)),
        Curve("trajectory/off_plane", steps[:-1], off[:-1], n=512, display=Display(x="step", y="share")),
        Bars("trajectory/shares", np.array(["PC1", "PC2"]), np.array([0.8, 0.1]), n=512),
    ]
    for name, scale in (("", 1.0), ("/image", 0.7), ("/text", 0.5)):
        found += [
            Curve(f"trajectory/loss{name}", steps, scale * loss, **about, display=Display(x="step", y="loss")),
            Curve(f"trajectory/distance{name}", steps, scale * (1 - t), n=512, display=Display(x="step")),
            Curve(
                f"trajectory/update{name}", steps[1:], scale * 0.01 * t[:-1] + 0.001, n=512, display=Display(x="step")
            ),
        ]
    way, marks = np.linspace(0, 1, 25), [("this run", 0.0, 0.0), (NEIGHBOUR, 0.9, 0.0)]
    line = 0.1 + 0.2 * way + 4 * way * (1 - way)
    shown = [{"text": text, "x": a, "y": b} for text, a, b in marks]
    axes = Display(x=f"towards {NEIGHBOUR}", y="random direction", checked_error=4e-4, marks=shown)
    for name, scale in (("", 1.0), ("/image", 0.7), ("/text", 0.5)):
        draw = Display(y="loss", label="" if name else "joint")
        found += [
            Curve(f"between/{NEIGHBOUR}/line{name}", way, scale * line, **about, display=draw | Display(x="")),
            Scalar(f"between/{NEIGHBOUR}/barrier{name}", scale, 0.1, **about, display=draw | Display(y="barrier")),
            Surface(f"between/{NEIGHBOUR}/plane{name}", x, x, scale * z, **about, display=axes),
        ]
    return found


def _balance(step: int, rng) -> list:
    about = {"n": 180, "mode": "validation accuracy: unimodal heads"}
    base = 1 - np.exp(-step / 90)
    return [
        Scalar("imbalance/accuracy/image", float(0.1 + 0.83 * base), **about),
        Scalar("imbalance/accuracy/text", float(0.1 + 0.6 * base), **about),
        Scalar("imbalance/gap", float(0.23 * base), **about),
        Scalar("imbalance/grad_norm_ratio", float(0.8 + 0.1 * rng.standard_normal()), **about),
        Scalar("imbalance/fisher_trace/image", float(40 * np.exp(-step / 100) + 2), 0.8, **about),
        Scalar("imbalance/fisher_trace/text", float(14 * np.exp(-step / 150) + 1), 0.4, **about),
        Bars("imbalance/shapley", np.array(["image", "text"]), np.array([0.62, 0.2]), n=180, mode="Shapley share"),
        Matrix("imbalance/protocols", np.array(["own", "inputs"]), np.array(PARTS[:2]), np.full((2, 2), base), **about),
        Matrix("imbalance/valuations", np.array(PARTS[:2]), np.array(list("012")), np.full((2, 3), 0.3), **about),
        Scalar("imbalance/chance", 0.1, **about),
        Scalar("imbalance/shapley_imbalance", 0.5, **about),
        *(
            Scalar(f"imbalance/{key}/{part}", float(lead + base), 0.02, **about)
            for part, lead in (("image", 1.2), ("text", 0.4))
            for key in BALANCE
        ),
    ]


def _evidence(step: int, rng) -> list:
    rows, about = np.array(["fused", *PARTS[:2]]), {"n": 128, "mode": "gradient of each loss, no method active"}
    fall = float(np.exp(-step / 120))
    norms = np.array([[0.4, 0.2, 0.3], [0.6, 0.0, 0.0], [0.0, 0.9, 0.0]]) * fall
    found = [
        Matrix("evidence/grad_norm", rows, np.array(PARTS), norms, **about),
        Matrix("evidence/cosines", rows, rows, np.array([[1, 0.4, 0.1], [0.4, 1, 0], [0.1, 0, 1]]), **about),
    ]
    layers, pairs = np.array([f"{part}/out" for part in PARTS]), np.array(["fused, image", "fused, text"])
    cosines = np.array([[0.5, np.nan], [np.nan, -0.1], [0.2, 0.1]])
    found += [
        Matrix("evidence/layer_norm", layers, rows, norms.T, display=Display(log=True), **about),
        Matrix("evidence/layer_cosine", layers, pairs, cosines, display=Display(signed=True), **about),
        Bars("evidence/noise_by_layer", layers, np.array([30.0, 80.0, 12.0]), np.array([5.0, np.nan, 3.0]), **about),
        Scalar("evidence/noise_scale/network", 25 / (fall + 0.1), 4.0, **about),
        Scalar("evidence/batch_cosine/network", fall, 0.1, **about),
    ]
    for part, share in (("image", 0.7), ("text", 0.3)):
        found += [
            Scalar(f"evidence/noise_scale/{part}", 25 * share / (fall + 0.1), 4.0, **about),
            Scalar(f"evidence/cosine/{part}", float(share * fall + 0.02 * rng.standard_normal()), **about),
            Scalar(f"evidence/conflict_rate/{part}", 0.1 * share, 0.05, **about),
            Scalar(f"evidence/sign_disagreement/{part}", 0.4 * share, **about),
            Matrix(f"evidence/weight_map/{part}", rows[:2], np.array(list("0123")), np.full((2, 4), 0.5), **about),
        ]
        for source in ("fused", part):
            found += [
                Scalar(f"evidence/precision/{part}/{source}", 5 + share, **about),
                Scalar(f"evidence/weight/{part}/{source}", 0.5, 0.1, **about),
                Scalar(f"evidence/uncertainty/{part}/{source}", 1 - share, **about),
            ]
    return found


def _spectra(step: int) -> list:
    place, found = np.arange(1, 17), []
    draw = Display(x="direction", y="singular value", ylog=True)
    for part, fall in (("image", 0.8), ("text", 0.6)):
        clean = 40 * fall**place
        for middle in ("", "/centred"):
            base, about = f"spectra/{part}{middle}", {"n": 256, "mode": "features, 64 wide", "seconds": 0.004}
            found += [
                Curve(f"{base}/singular", place, clean, display=draw | Display(label="clean"), **about),
                Curve(f"{base}/random", place, np.linspace(20, 8, 16), display=draw | Display(label="i.i.d."), **about),
                Scalar(f"{base}/mean_share", 0.3 * fall, **about),
                *(Scalar(f"{base}/{key}", 4 * fall, **about) for key in ("effective_rank", "sigma_1")),
            ]
            if step <= TOGGLED_AT:
                continue
            limits, noise = {"edge": 9.0, "threshold": 4.0}, 2 + 0 * place
            found += [
                Curve(f"{base}/changed/singular", place, clean + noise, display=draw | Display(limits=limits), **about),
                *(
                    Curve(f"{base}/{end}", place, clean + noise, display=draw, **about)
                    for end in ("expected", "instead")
                ),
                Curve(f"{base}/noise", place, noise, display=draw, **about),
                Curve(f"{base}/snr", clean, clean**2 / 4, display=Display(xlog=True, ylog=True), **about),
                Curve(f"{base}/kept", place, 0.9**place, display=Display(range=[0, 1]), **about),
                Curve(f"{base}/kept_by_chance", place, place / 64, display=Display(label="by chance"), **about),
                Scalar(f"{base}/hidden", 0.6, **about),
                *(Scalar(f"{base}/changed/{key}", 5 * fall, **about) for key in ("effective_rank", "sigma_1")),
            ]
    pair, about = "image-text", {"n": 256, "mode": "unit rows"}
    limits = Display(limits={"chance": 0.4}, range=[0, 1])
    found.append(Curve(f"spectra/canonical/{pair}", place, 0.9**place, display=limits, **about))
    for key in ("gap", "alignment", "uniformity", "cosine/pairs", "cosine/others"):
        found.append(Scalar(f"spectra/{key}/{pair}", 0.5 + step / 1000, **about))
    for layer in ("image/out", "text/out"):
        curve = draw | Display(limits={"edge of i.i.d.": 1.5})
        about = {"n": 2048, "mode": "weights as 32 × 64"}
        found += [
            Curve(f"spectra/weights/{layer}", place, 2 * 0.9**place, display=curve, **about),
            Curve(f"spectra/weights_random/{layer}", place, np.linspace(1.4, 0.4, 16), display=draw, **about),
            Scalar(f"spectra/weights_beyond/{layer}", 2.0, **about),
            *(Scalar(f"spectra/weights_{key}/{layer}", 6.0, **about) for key in ("stable_rank", "largest")),
        ]
    return found


def _robustness(step: int) -> list:
    about = {"n": 180, "mode": "val rows, accuracy; missing features: neutral"}
    base, x = float(1 - np.exp(-step / 90)), np.linspace(0, 1, 11)
    subsets = np.array(["image", "text", "image+text"])
    draw = Display(y="accuracy", levels={"chance": 0.12})
    found = [
        Bars("robustness/subsets", subsets, base * np.array([0.8, 0.6, 0.95]), 0.03 + 0 * x[:3], display=draw, **about),
        Curve(
            "robustness/missing",
            x / 2,
            base * (0.95 - 0.6 * x),
            0.02 + 0 * x,
            **about,
            display=draw | Display(x="realised missing rate"),
        ),
        Matrix(
            "robustness/rates/image+text",
            *(np.array(["0.000", "0.511", "1.000"]),) * 2,
            np.add.outer([0.9, 0.6, 0.3], [0.0, -0.1, -0.2]) * base + 0.1,
            np.full((3, 3), 0.02),
            **about,
            display=draw
            | Display(x="realised missing rate of text", y="realised rate of image", z="accuracy", rates=True),
        ),
        Scalar("robustness/clean", 0.95 * base, 0.02, display=draw | Display(label="clean"), **about),
        Scalar("robustness/worst", 0.6 * base, 0.03, display=draw | Display(label="worst one left out"), **about),
        Scalar("robustness/chance", 0.12, **about),
    ]
    for part, loss in (("missing", 0.6), ("image", 0.5), ("text", 0.2)):
        found += [
            Scalar(f"robustness/area/{part}", base * (0.95 - loss / 2), display=draw, **about),
            Scalar(f"robustness/retention/{part}", 1 - loss / 2, **about),
        ]
    for part, loss in (("image", 0.5), ("text", 0.2)):
        curve = draw | Display(x="severity", label="")
        found += [
            Curve(f"robustness/severity/{part}", x, base * (0.95 - loss * x), 0.02 + 0 * x, **about, display=curve),
            Scalar(f"robustness/without/{part}", base * (0.95 - loss), 0.03, display=draw, **about),
        ]
    return found


def _reconstruction(step: int) -> list:
    about = {"n": 180, "mode": "R² on val rows, ridge regression fitted on 256 training rows"}
    base, names = float(1 - np.exp(-step / 120)), np.array(PARTS[:2])
    draw = Display(y="held-out R²", levels={"the mean": 0.0}, within=[-1.0, 1.0])
    found = [
        Scalar(f"reconstruction/{key}/{part}", share * size * base - 0.05, 0.02, display=draw, **about)
        for part, share in (("image", 0.6), ("text", 0.4))
        for key, size in (("r2", 1.0), ("within", 0.2))
    ]
    values, errors = base * np.array([[np.nan, 0.6], [0.4, np.nan]]), np.full((2, 2), 0.02)
    draw = Display(title="R²", x="from", y="of", signed=True)
    return [*found, Matrix("reconstruction/matrix", names, names, values, errors, display=draw, **about)]


def _noise(step: int) -> list:
    fall, x, names = float(np.exp(-step / 150)), np.array([0.01, 0.1, 0.4, 2.0]), ["bias", "first", "second", "head"]
    draw = Display(x="mean diagonal of the Hessian", y="noise", xlog=True, ylog=True, points=names)
    found = [
        Scalar("generalization/gap/loss", 0.4 * (1 - fall), n=180, mode="loss: how much worse on val"),
        Scalar("generalization/gap/accuracy", 0.1 * (1 - fall), n=180, mode="accuracy: how much worse on val"),
    ]
    for source, size in (("added", 3.0), ("batch", 1.0)):
        found += [
            Scalar(f"escape/indicator/{source}", size * (0.1 + fall), 0.05, n=8, mode=source),
            Scalar(f"escape/alignment/{source}", 4 + size * fall, 0.4, n=8, mode=source),
            Curve(f"escape/layers/{source}", x, size * np.sqrt(x) * (0.1 + fall), n=8, mode=source, display=draw),
        ]
    return found


def _reports(step: int, rng) -> list:
    if step <= TOGGLED_AT:
        return []
    edge = {"lr": 0.1, "momentum": 0.9, "sigma": 0.6, "placement": "decoupled"}
    return [
        Scalar("gani/lambda_bound", 9.0, mode="closed loop of `second`", display=Display(edge=edge)),
        Scalar(
            "gani/noise_to_gradient/image", float(0.4 + 0.05 * rng.standard_normal()), n=1, mode="‖noise‖/‖gradient‖"
        ),
        Scalar(
            "gani/noise_to_gradient/text", float(0.3 + 0.05 * rng.standard_normal()), n=1, mode="‖noise‖/‖gradient‖"
        ),
        Scalar("gani/alignment", float(0.85 + 0.02 * rng.standard_normal()), mode="cos(step taken, -gradient)"),
        Bars("gani/noise_share", np.array(PARTS), np.array([0.5, 0.2, 0.3]), mode="share of noise power"),
    ]
