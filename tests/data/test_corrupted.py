"""Noise on inputs: as much as asked for, in training and validation rows of any data set, sized by each feature."""

import numpy as np
import pytest
import torch

from modalscape.engine.catalog import catalog
from modalscape.engine.config import RunConfig, validated
from modalscape.engine.core.rng import Rng
from modalscape.engine.data.dataset import Dataset, corrupted
from modalscape.engine.errors import InputError
from modalscape.engine.runtime.session import Training
from tests.methods.several import data_file


def dataset(rows: int = 3000, shape: tuple[int, ...] = (4,)) -> Dataset:
    draw = np.random.default_rng(0)
    split = np.repeat(np.array([0, 1, 2], np.int8), rows // 3)
    image = draw.standard_normal((rows, *shape)).astype(np.float32)
    image *= 10.0 ** np.arange(shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
    image[:, 0] = 7.0
    return Dataset("some", "Some", {"image": image, "text": image[:, 1:]}, np.arange(rows) % 3, split)


@pytest.mark.parametrize("shape", [(4,), (3, 5, 5)])
def test_noise_has_the_size_asked_for_in_each_feature_and_channel(shape):
    clean = dataset(shape=shape)
    noisy = corrupted(clean, "image=2.0", Rng(0))
    added = (noisy.x["image"] - clean.x["image"]).astype(np.float64)
    assert (added[clean.split == 2] == 0).all() and (added[:, 0] == 0).all()
    for part in (0, 1):
        for channel in range(1, shape[0]):
            found = added[clean.split == part, channel].std() / clean.x["image"][clean.split == 0, channel].std()
            assert found == pytest.approx(2.0, rel=5 / np.sqrt(2000))


def test_other_modalities_stay_and_no_noise_changes_nothing():
    clean = dataset()
    assert corrupted(clean, "image=1", Rng(0)).x["text"] is clean.x["text"]
    for nothing in ("", "image=0"):
        assert (corrupted(clean, nothing, Rng(0)).x["image"] == clean.x["image"]).all()


def test_more_noise_scales_the_same_draws_which_follow_seed_and_modality():
    clean = dataset()

    def added(noise, seed=0, of="image"):
        return corrupted(clean, noise, Rng(seed)).x[of].astype(np.float64) - clean.x[of]

    once, both = added("image=1"), added("image=3, text=1")
    np.testing.assert_allclose(both, 3 * once, atol=2e-3)
    assert (added("image=1", seed=1) != once).any()
    assert (added("image=3, text=1", of="text") != once[:, 1:]).any()


@pytest.mark.parametrize("problem", ["digits_captions", "planted", "file"])
def test_a_run_sets_it_for_any_data_and_inputs_do_not_grow(problem, tmp_path):
    source = {"data": data_file(tmp_path)} if problem == "file" else {"problem": problem}
    name = "vision" if problem == "planted" else "image"
    clean, noisy = (
        Training(validated(RunConfig(**source, device="cpu", settings={"corrupt": noise}), catalog())).problem.rows
        for noise in ("", f"{name}=1.0")
    )
    assert not torch.equal(clean["val"].x[name], noisy["val"].x[name])
    sizes = [float(rows["train"].x[name].square().mean()) for rows in (clean, noisy)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


@pytest.mark.parametrize(
    ("noise", "sentence"),
    [
        ("images=1", "corrupt names 'images', which data does not have; did you mean image"),
        ("image", "corrupt has 'image'; write a name and its number"),
        ("image=-1", "corrupt has 'image=-1'"),
        ("image=nan", "corrupt has 'image=nan'"),
    ],
)
def test_what_it_cannot_do_is_refused(noise, sentence, tmp_path):
    config = RunConfig(data=data_file(tmp_path), device="cpu", settings={"corrupt": noise})
    with pytest.raises(InputError, match=sentence):
        Training(validated(config, catalog()))


def test_token_ids_are_refused():
    config = RunConfig(
        problem="digits_captions", device="cpu", settings={"corrupt": "text=1", "digits_captions.inputs": "raw"}
    )
    with pytest.raises(
        InputError, match="corrupt adds noise to numbers, but text of Digits with captions is token ids"
    ):
        Training(validated(config, catalog()))
