"""Half of the captions belong to another digit, and the evidence finds out which gradient not to lean on.

Digits with captions, a loss on each modality beside the fused one, BOGC-MML on. Each encoder hears two losses. A text
loss that is told wrong captions stays unsure of itself: its gradients are large and vary with the head, so its
precision falls by orders of magnitude and the text encoder listens to the fused loss more. On the image encoder the
reverse happens, since the fused loss now rests on a worse partner.

That is so of evidence by precision, which all arms set. By SNR, the default, it is the other way round: the gradients
of a loss that cannot be fitted are larger in mean as well, and the text's own loss gains weight, from 0.58 with clean
captions to 0.65 with wrong ones (seeds 1000 and 1001, each). That evidence asks how surely a gradient points somewhere,
not whether its labels are right.

*Source*: BOGC-MML as reconstructed here, arXiv 2505.23071. Model, data, rates and the statistic are ours.
"""

from __future__ import annotations

from typing import Any

from modalscape.engine.core.lesson import Lesson

_SETTINGS: dict[str, Any] = {
    "digits_captions.inputs": "flat",
    "digits_captions.missing_caption": 0.0,
    "unimodal": "heads",
    "fusion": "concat",
    "hidden": 32,
    "width": 16,
    "optimizer.name": "sgd",
    "optimizer.momentum": 0.0,
    "optimizer.lr": 0.1,
    "batch": 64,
    "evaluate": 50,
    "bogc.evidence": "relative",
    "evidence.evidence": "relative",
}


def _arm(wrong: float, methods: tuple[str, ...] = ("bogc",)) -> dict[str, Any]:
    return {
        "problem": "digits_captions",
        "methods": list(methods),
        "probes": {"evidence": 50},
        "steps": 300,
        "device": "cpu",
        "settings": _SETTINGS | {"digits_captions.wrong_caption": wrong},
    }


class BogcNoise(Lesson):
    """Wrong captions cost the text's own loss its weight."""

    name = "bogc_noise"
    title = "Whom to believe?"
    words = (
        "Half of the captions belong to another digit. Two losses pull at the text encoder: the text's own and the "
        "fused one. Watch the precision of both on the Gradients page: that of the text's own loss falls by a factor "
        "of a thousand, and BOGC-MML takes weight away from it. Start the clean arm to see it keep most of its say; "
        "the arm with the method off shows the same evidence, unused. Weight is not accuracy: compare that too."
    )
    claim = (
        "With half of the captions wrong, the text's own loss has a smaller share of the weight on the text encoder "
        "than with clean captions."
    )
    arms = {"wrong_captions": _arm(0.5), "clean_captions": _arm(0.0), "method_off": _arm(0.5, ())}
    control = "clean_captions"
    scalar = "evidence/weight/text/text"
    number = "weight of the text's own loss on its encoder"
    expect = "lower"
    show = ("gradients", "methods", "live")
