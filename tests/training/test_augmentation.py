import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from normlib.errors import NormlibError
from normlib.networks import MLP
from normlib.training import AUGMENTATIONS, HorizontalFlip, Mixup, Pipeline, RandomCrop, data_order, train

G = torch.Generator().manual_seed(0)
X = torch.randn(60, 2, 6, 5, generator=G)
Y = torch.randint(4, (60,), generator=G)


def augmented(spec, seed=0, batch_size=20, epochs=1, x=X, y=Y):
    pipeline = Pipeline(spec, (x, y), batch_size, seed)
    parts = [pipeline(a, b) for _ in range(epochs) for a, b in zip(x.split(batch_size), y.split(batch_size), strict=True)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def shifts(image, padding, mode):
    """List every cut of the padded image, by loops."""
    height, width = image.shape[1:]
    padded = F.pad(image[None], [padding] * 4, mode="constant" if mode == "zeros" else mode)[0]
    corners = itertools.product(range(2 * padding + 1), repeat=2)
    return torch.stack([padded[:, row : row + height, column : column + width] for row, column in corners])


@pytest.mark.parametrize(("padding", "mode"), [(1, "zeros"), (3, "zeros"), (2, "reflect"), (4, "reflect")])
def test_each_crop_is_an_exact_shift_of_its_image(padding, mode):
    found, y = augmented(f"crop:padding={padding},mode={mode}")
    assert found.shape == X.shape
    assert torch.equal(y, Y)
    for image, cut in zip(X, found, strict=True):
        assert (shifts(image, padding, mode) == cut).flatten(1).all(1).any()


def test_the_corner_drawn_is_the_corner_cut():
    crop = RandomCrop((X, Y), padding=2)
    rows, columns = torch.arange(60) % 5, torch.arange(60) % 3
    found, _ = crop(X, Y, rows, columns)
    slow = torch.stack([shifts(image, 2, "zeros")[5 * row + column] for image, row, column in zip(X, rows, columns, strict=True)])
    assert torch.equal(found, slow)


def test_each_flip_is_the_image_or_its_mirror():
    found, _ = augmented("flip")
    same, mirrored = ((found == other).flatten(1).all(1) for other in (X, X.flip(3)))
    assert (same ^ mirrored).all()
    assert 15 < same.sum() < 45
    assert torch.equal(augmented("flip:probability=1")[0], X.flip(3))
    assert torch.equal(augmented("flip:probability=0")[0], X)


def test_places_and_flips_come_equally_often():
    rows, columns = RandomCrop((X, Y), padding=2).draw(300, 100, np.random.default_rng(0))
    counts = torch.bincount((5 * rows + columns).flatten(), minlength=25) / 30_000
    assert (counts - 1 / 25).abs().max() < 5 * (1 / 25 / 30_000) ** 0.5
    (mirrored,) = HorizontalFlip((X, Y), 0.3).draw(300, 100, np.random.default_rng(0))
    assert abs(float(mirrored.float().mean()) - 0.3) < 5 * (0.21 / 30_000) ** 0.5
    shares, _ = Mixup((X, Y), alpha=2).draw(30_000, 1, np.random.default_rng(0))
    assert float(shares.mean()) == pytest.approx(1 / 2, abs=0.01)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * 2 + 1)), abs=0.002)


def test_mixup_is_a_convex_combination_of_two_items_and_of_their_targets():
    x = torch.eye(8)  # from the mixture the two items can be read off
    y = torch.arange(8)
    found, soft = augmented("mixup:alpha=1", batch_size=4, x=x, y=y, epochs=5)
    assert torch.allclose(found, soft)
    assert torch.allclose(soft.sum(1), torch.ones(40))
    assert (soft >= 0).all()
    assert ((soft > 0).sum(1) <= 2).all()
    for batch in soft.split(4):  # one share per batch, and the partners are a permutation
        shares = batch.max(1).values[(batch > 0).sum(1) == 2]
        assert torch.allclose(shares, shares[:1].expand_as(shares))
        assert torch.allclose(batch.sum(0)[batch.sum(0) > 0], torch.ones(4))


def test_mixup_of_numbers_mixes_them_as_they_are():
    y = torch.arange(8.0)[:, None]
    found, mixed = augmented("mixup:alpha=0.5", x=y.clone(), y=y, batch_size=8)
    assert torch.equal(found, mixed)
    assert float(mixed.mean()) == pytest.approx(3.5)


def test_the_loss_of_soft_targets_is_the_mixture_of_the_losses():
    mixup, (share, partner) = Mixup((X, Y)), (torch.tensor(0.3), torch.arange(60).flip(0))
    _, soft = mixup(X, Y, share, partner)
    output = torch.randn(60, 4, generator=G)
    mixed = 0.3 * F.cross_entropy(output, Y) + 0.7 * F.cross_entropy(output, Y[partner])
    torch.testing.assert_close(F.cross_entropy(output, soft), mixed)


@pytest.mark.parametrize("spec", ["crop", "flip", "mixup", "crop:padding=2 + flip + mixup:alpha=0.4"])
def test_the_seed_sets_the_draws_and_each_epoch_has_its_own(spec):
    (x, y), again, other = augmented(spec, 3, epochs=2), augmented(spec, 3, epochs=2), augmented(spec, 4, epochs=2)
    assert torch.equal(x, again[0])
    assert torch.equal(y, again[1])
    assert not torch.equal(x, other[0])
    assert not torch.equal(x[:60], x[60:])


def test_streams_are_apart_and_run_in_the_order_of_the_spec():
    crops, _ = augmented("crop")
    both, _ = augmented("crop + flip")
    assert torch.equal(both, augmented("flip", x=crops)[0])


def test_augmentation_leaves_the_order_of_the_data_and_the_global_generator_alone():
    seen, state = [], torch.get_rng_state()

    def loss(output, target):
        seen.append(target.tolist())
        return F.cross_entropy(output, target)

    net = MLP([60, 4])
    train(net, X, Y, steps=7, batch_size=20, rate=0.1, loss=loss, augment="crop + flip", seed=5)
    order = data_order(60, 20, seed=5)
    assert seen == [Y[next(order)].tolist() for _ in range(7)]
    assert torch.equal(torch.get_rng_state(), state)


def test_training_on_all_items_at_once_draws_at_every_step():
    history = train(MLP([60, 4]), X, Y, steps=3, batch_size=None, rate=0.0, augment="crop", seed=0)
    assert len(set(history.loss)) == 3


def test_every_augmentation_is_tested_here():
    assert set(AUGMENTATIONS) == {"crop", "flip", "mixup"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("flipp", "'flip'"),
        ("crop:pad=4", "'padding'"),
        ("crop:padding=0", "expected 1 to 5"),
        ("crop:padding=5,mode=reflect", "expected 1 to 4"),
        ("crop:mode=reflct", "'reflect'"),
        ("flip:probability=2", "0 to 1"),
        ("mixup:alpha=0", "positive"),
        ("flip + flip", "twice"),
    ],
)
def test_what_is_no_augmentation_is_refused(spec, message):
    with pytest.raises(NormlibError, match=message):
        Pipeline(spec, (X, Y), 10, 0)


def test_flat_images_cannot_be_cropped_and_classes_as_numbers_cannot_be_mixed():
    with pytest.raises(NormlibError, match="Do not flatten"):
        Pipeline("crop", (X.flatten(1), Y), 10, 0)
    with pytest.raises(NormlibError, match="mixup makes probabilities"):
        train(MLP([60, 4]), X, Y, steps=1, batch_size=4, rate=0.1, loss="squared_error", augment="mixup", seed=0)
