"""Photos for pretraining: views depend on (seed, epoch, photo) alone, and every photo is seen once per epoch."""

import hashlib
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from twinsight.data import ImageFolder, SimCLRViews
from twinsight.errors import UserError
from twinsight.pretrain import PretrainDataModule
from twinsight.pretrain.data import AugmentedPairs, EpochSampler

VIEWS = SimCLRViews(32, first="augmented", strength=0.5, blur=0)


def module(root, views=VIEWS, limit=None, **options):
    train, test = (ImageFolder(root, split, limit=limit) for split in ("train", "test"))
    return PretrainDataModule(train, test, views, **{"batch_size": 8, "num_workers": 0, **options})


def epoch_of(data, epoch=0):
    """The batches of an epoch, as Lightning asks for them."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def assert_equal_batches(some, others):
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def seed_by_hand(*parts):
    return int(hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:16], 16) // 2


# What is drawn


@pytest.mark.parametrize("epoch", [0, 3])
def test_an_epoch_is_the_same_again_and_with_workers(shapes, epoch):
    expected = epoch_of(module(shapes), epoch)
    assert_equal_batches(epoch_of(module(shapes), epoch), expected)
    assert_equal_batches(epoch_of(module(shapes, num_workers=2), epoch), expected)


def test_an_epoch_does_not_depend_on_the_ones_before(shapes):
    data = module(shapes)
    loader = data.train_dataloader()
    for epoch in (0, 1, 5):
        loader.sampler.set_epoch(epoch)
        assert_equal_batches(list(loader), epoch_of(module(shapes), epoch))


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}], ids=str)
def test_seed_and_epoch_change_order_and_views(shapes, change):
    pairs = AugmentedPairs(ImageFolder(shapes, "train"), VIEWS, seed=0)
    others = AugmentedPairs(ImageFolder(shapes, "train"), VIEWS, seed=change.get("seed", 0))
    before = list(EpochSampler(pairs, seed=0))
    sampler = EpochSampler(pairs, seed=change.get("seed", 0))
    sampler.set_epoch(change.get("epoch", 0))
    assert [index for _, index in before] != [index for _, index in sampler]
    assert not torch.equal(pairs[0, 3][0], others[change.get("epoch", 0), 3][0])


def test_views_are_those_of_the_recipe_drawn_from_seed_epoch_and_name(shapes):
    photos = ImageFolder(shapes, "train")
    views = SimCLRViews(32, first="augmented", blur=1)  # whose pixels lie between bytes
    for epoch, index in ((0, 0), (7, 20)):
        view1, view2, label = AugmentedPairs(photos, views, seed=5)[epoch, index]
        photo = photos.load(index)
        recipes = views.recipes((32, 32), seed_by_hand(5, epoch, photos.ids[index]))
        for view, recipe in zip((view1, view2), recipes, strict=True):
            assert view.dtype == torch.uint8
            torch.testing.assert_close(view / 255, recipe.render(photo, 32), rtol=0, atol=0.501 / 255)
        assert label == index // 16


def test_views_of_a_photo_do_not_depend_on_which_others_are_there(shapes):
    everything, some = ImageFolder(shapes, "train"), ImageFolder(shapes, "train", limit=7)
    for place, name in enumerate(some.ids):
        expected = AugmentedPairs(everything, VIEWS, seed=0)[2, everything.ids.index(name)]
        found = AugmentedPairs(some, VIEWS, seed=0)[2, place]
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_an_incomplete_last_batch_waits_for_the_next_epoch(shapes):
    batches = epoch_of(module(shapes, batch_size=20))
    assert [len(batch[2]) for batch in batches] == [20, 20]  # 8 of 48 are left over


# Sharing out


@pytest.mark.parametrize(("total", "world"), [(48, 2), (50, 4), (7, 3), (3, 1)])
def test_shards_are_equal_disjoint_and_together_almost_everything(total, world):
    samplers = [EpochSampler(range(total), seed=3, rank=rank, world=world) for rank in range(world)]
    for epoch in range(3):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in samplers]
        assert {len(share) for share in shares} == {total // world} == {len(sampler) for sampler in samplers}
        seen = [index for share in shares for _, index in share]
        assert len(set(seen)) == len(seen) == total // world * world
        assert {key for share in shares for key, _ in share} == {epoch}


def test_one_process_sees_every_photo_once_in_a_new_order_each_epoch():
    sampler, orders = EpochSampler(range(48), seed=0), []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append([index for _, index in sampler])
        assert sorted(orders[-1]) == list(range(48))
    assert len({tuple(order) for order in orders}) == 3
    assert tuple(range(48)) not in map(tuple, orders)


def test_the_batches_of_two_processes_are_the_batch_of_one_twice_as_large(shapes):
    alone = epoch_of(module(shapes, batch_size=16))
    shares = []
    for rank in range(2):
        data = module(shapes, batch_size=8)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        shares.append(epoch_of(data))
    for joint, first, second in zip(alone, *shares, strict=True):
        together = torch.cat([first[0], second[0]]).flatten(1).tolist()
        assert sorted(together) == sorted(joint[0].flatten(1).tolist())


# The probe


def test_the_probe_sees_whole_photos_with_their_labels_in_order(shapes):
    references, queries = module(shapes).val_dataloader()
    for loader, split, count in ((references, "train", 16), (queries, "test", 5)):
        photos = torch.cat([batch[0] for batch in loader])
        labels = torch.cat([batch[1] for batch in loader])
        assert labels.tolist() == [0] * count + [1] * count + [2] * count
        stored = [np.asarray(Image.open(path)) for path in sorted((shapes / split).rglob("*.png"))]
        assert np.array_equal(photos.permute(0, 2, 3, 1).numpy(), np.stack(stored))


@pytest.mark.parametrize("normalization", [None, ((0.5, 0.4, 0.3), (0.2, 0.25, 0.5))])
def test_bytes_become_what_the_network_eats_on_its_device(shapes, normalization):
    data = module(shapes, normalization=normalization)
    batch = epoch_of(data)[0]
    view1, view2, labels = data.on_after_batch_transfer(batch, 0)
    assert torch.equal(labels, batch[2])
    mean, std = normalization or ((0, 0, 0), (1, 1, 1))
    for view, stored in ((view1, batch[0]), (view2, batch[1])):
        for channel in range(3):
            expected = (stored[:, channel].double() / 255 - mean[channel]) / std[channel]
            torch.testing.assert_close(view[:, channel].double(), expected, rtol=0, atol=1e-5)


# What does not fit


@pytest.mark.parametrize(
    ("batch_size", "message"), [(1, "at least 2, got 1"), (0, "at least 2, got 0"), (49, "the 48")]
)
def test_a_batch_size_that_does_not_fit_is_named(shapes, batch_size, message):
    with pytest.raises(UserError, match=rf"`task.batch_size.*{message}"):
        module(shapes, batch_size=batch_size)


def test_a_batch_larger_than_the_share_of_a_process_is_refused(shapes):
    data = module(shapes, batch_size=30)
    data.trainer = SimpleNamespace(global_rank=0, world_size=2)
    with pytest.raises(UserError, match=r"`task.batch_size=30` exceeds the 24 training photos of each process"):
        data.train_dataloader()


def test_photos_without_class_folders_are_refused(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for number in range(8):
            Image.new("RGB", (8, 8)).save(tmp_path / split / f"{number}.png")
    with pytest.raises(UserError, match="labelled photos: use class folders"):
        module(tmp_path)


def test_class_folders_that_differ_between_training_and_test_are_named(shapes, tmp_path):
    root = shutil.copytree(shapes, tmp_path / "shapes")
    shutil.rmtree(root / "test/green_square")  # labels would shift: red_disc is 2 in one and 1 in the other
    with pytest.raises(UserError, match=r"same class folders.*green_square"):
        module(root)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("loader", ["training", "probe"])
def test_a_photo_that_cannot_be_read_is_named(shapes, tmp_path, loader, num_workers):
    root = shutil.copytree(shapes, tmp_path / "shapes")
    (root / "train/red_disc/03.png").write_bytes(b"no photo")
    data = module(root, num_workers=num_workers)
    batches = data.train_dataloader() if loader == "training" else data.val_dataloader()[0]
    with pytest.raises(UserError, match=r"cannot read red_disc/03.png: .*; mend or remove it"):
        list(batches)
