"""Pairs of views: the same whatever the batch, the workers, the order, the shard or what is done already."""

import hashlib
import re
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from twinsight.data import ImageFolder, NoViews, PairDataModule, PairDataset, ShardSampler, SimCLRViews, SkippedPair
from twinsight.errors import UserError

NAMES = ["a.png", "b.png", "c/d.png", "e.png", "f.png", "g.png", "h.png"]


@pytest.fixture
def folder(tmp_path):
    """Seven photos of different sizes."""
    draw = np.random.default_rng(0)
    for index, name in enumerate(NAMES):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((40 + 3 * index, 50 - 2 * index), Image.Resampling.BICUBIC).save(path)
    return tmp_path


def spoil(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"no photo")


def module(folder, on_error="skip", limit=None, views=None, **options):
    views = views or SimCLRViews(16, first="augmented")
    return PairDataModule(ImageFolder(folder, on_error=on_error, limit=limit), views, **options)


def in_shard(data, rank, world):
    """The data module as it is used by one of several processes."""
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    return data


def pairs_of(data):
    """Every pair of a data module on its own, by its name."""
    return {
        batch.pair_id[place]: batch.select([place])
        for batch in data.predict_dataloader()
        for place in range(len(batch))
    }


def assert_same_pair(a, b):
    for name in ("view1", "view2", "seeds", "partner_view2"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    for name in ("pair_id", "index", "geometry", "partner_id"):
        assert getattr(a, name) == getattr(b, name), name


class Listener(pl.LightningModule):
    """Notes what reaches predict_step."""

    def __init__(self):
        super().__init__()
        self.seen, self.skipped = [], []

    def predict_step(self, batch, batch_idx):
        self.seen += batch.pair_id
        self.skipped += [skipped.pair_id for skipped in batch.skipped]


def predict(data):
    listener = Listener()
    pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
    ).predict(listener, datamodule=data, return_predictions=False)
    return listener


# The pair depends on the photo and the seed alone


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 3}, {"batch_size": 7}, {"batch_size": 99}, {"batch_size": 2, "num_workers": 2}],
    ids=str,
)
def test_a_pair_is_the_same_in_every_batch_and_from_every_worker(folder, options):
    alone, together = pairs_of(module(folder)), pairs_of(module(folder, **options))
    assert list(together) == list(alone) == NAMES
    for name in NAMES:
        assert_same_pair(together[name], alone[name])


def test_a_pair_is_the_same_whatever_is_asked_for_before_it(folder):
    forwards = pairs_of(module(folder))
    dataset = module(folder).pairs
    for index in (6, 2, 2, 0, 5):
        assert_same_pair(dataset[index], forwards[NAMES[index]])


def test_a_pair_is_the_same_when_others_are_done_already(folder):
    everything, rest = pairs_of(module(folder)), pairs_of(module(folder, done={0, 3, 4}, batch_size=2))
    assert list(rest) == ["b.png", "c/d.png", "g.png", "h.png"]
    for name, pair in rest.items():
        assert_same_pair(pair, everything[name])


@pytest.mark.parametrize("world", [2, 3, 9])
def test_shards_share_out_all_pairs_and_change_none(folder, world):
    everything, shards = pairs_of(module(folder)), {}
    for rank in range(world):
        shard = pairs_of(in_shard(module(folder, batch_size=2), rank, world))
        assert list(shard) == NAMES[rank::world]
        shards |= shard
    assert sorted(shards) == NAMES
    for name in NAMES:
        assert_same_pair(shards[name], everything[name])


def test_a_shard_leaves_out_what_is_done():
    assert list(ShardSampler(10, rank=1, world=3, done={4, 5})) == [1, 7]
    assert list(ShardSampler(2, rank=2, world=3)) == []
    assert len(ShardSampler(10, rank=1, world=3, done={4, 5})) == 2


def test_the_seed_changes_the_views(folder):
    one, other = pairs_of(module(folder, seed=0)), pairs_of(module(folder, seed=1))
    assert all(not torch.equal(one[name].view2, other[name].view2) for name in NAMES)


def test_the_global_random_state_changes_nothing(folder):
    torch.manual_seed(0)
    one = pairs_of(module(folder))
    torch.manual_seed(1)
    for name, pair in pairs_of(module(folder)).items():
        assert_same_pair(pair, one[name])


def seed_by_hand(seed, name):
    """The first 8 bytes of SHA-256 of "seed/name", big-endian, without the lowest bit."""
    return int(hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()[:16], 16) // 2


@pytest.mark.parametrize("options", [{}, {"limit": 3}, {"done": {0, 1}}], ids=["all", "limited", "resumed"])
def test_seeds_come_from_the_runs_seed_and_the_name_whatever_the_place(folder, options):
    for name, pair in pairs_of(module(folder, seed=5, **options)).items():
        assert pair.seeds.dtype == torch.int64
        assert pair.seeds.item() == seed_by_hand(5, name)


def test_views_and_geometry_are_those_of_the_recipe_drawn_from_the_pairs_seed(folder):
    views, photos = SimCLRViews(16, first="augmented"), ImageFolder(folder)
    for name, pair in pairs_of(module(folder, views=views, seed=3)).items():
        photo = photos.load(NAMES.index(name))
        one, two = views.recipes((photo.height, photo.width), seed_by_hand(3, name))
        assert pair.geometry == [(one.geometry, two.geometry)]
        assert torch.equal(pair.view1[0], one.render(photo, 16))
        assert torch.equal(pair.view2[0], two.render(photo, 16))


def test_a_limit_changes_partners_but_not_views(folder):
    everything, some = pairs_of(module(folder)), pairs_of(module(folder, limit=3))
    assert list(some) == ["a.png", "c/d.png", "f.png"]  # indices 0, 7 / 3, 14 / 3
    for name, pair in some.items():
        assert torch.equal(pair.view1, everything[name].view1)
        assert torch.equal(pair.view2, everything[name].view2)
    assert some["a.png"].partner_id == ["c/d.png"]


def test_normalization_is_subtracted_and_divided_by(folder):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    plain, normalized = pairs_of(module(folder)), pairs_of(module(folder, normalization=(mean, std)))
    for name in NAMES:
        for view in ("view1", "view2", "partner_view2"):
            pixels = getattr(plain[name], view)
            assert 0 <= pixels.min() <= pixels.max() <= 1
            for channel in range(3):
                expected = (pixels[:, channel] - mean[channel]) / std[channel]
                torch.testing.assert_close(getattr(normalized[name], view)[:, channel], expected)


def test_without_augmentation_both_views_are_equal(folder):
    for pair in pairs_of(module(folder, views=NoViews(16))).values():
        assert torch.equal(pair.view1, pair.view2)


@pytest.mark.parametrize("antialias", [True, False])
def test_the_antialias_switch_of_the_views_is_honoured(folder, antialias):
    views, photo = NoViews(16, antialias=antialias), ImageFolder(folder).load(0)
    expected = views.centre((photo.height, photo.width)).render(photo, 16, antialias)
    assert torch.equal(module(folder, views=views).pairs[0].view1[0], expected)


# Partners


def test_the_partner_is_the_second_view_of_the_next_pair_and_the_last_ones_is_the_first(folder):
    pairs = pairs_of(module(folder))
    for name, following in zip(NAMES, NAMES[1:] + NAMES[:1], strict=True):
        assert pairs[name].partner_id == [following]
        assert torch.equal(pairs[name].partner_view2, pairs[following].view2)


def test_the_partner_skips_photos_that_cannot_be_read(folder):
    spoil(folder, "b.png", "c/d.png", "h.png")
    pairs = pairs_of(module(folder))
    assert {name: pair.partner_id[0] for name, pair in pairs.items()} == {
        "a.png": "e.png",
        "e.png": "f.png",
        "f.png": "g.png",
        "g.png": "a.png",
    }
    for pair in pairs.values():
        assert torch.equal(pair.partner_view2, pairs[pair.partner_id[0]].view2)


def test_the_partner_is_the_same_when_it_belongs_to_another_shard_or_is_done(folder):
    whole = pairs_of(module(folder))
    for data in (in_shard(module(folder), 1, 2), module(folder, done=set(range(7)) - {1})):
        assert_same_pair(pairs_of(data)["b.png"], whole["b.png"])


def test_the_only_readable_photo_is_its_own_partner(folder):
    spoil(folder, *NAMES[1:])
    (pair,) = pairs_of(module(folder)).values()
    assert pair.partner_id == ["a.png"]
    assert torch.equal(pair.partner_view2, pair.view2)


# Photos that cannot be read


@pytest.mark.parametrize("num_workers", [0, 1])
def test_skipped_pairs_are_listed_with_their_place_name_and_reason(folder, num_workers):
    spoil(folder, "b.png", "f.png")
    batches = list(module(folder, batch_size=3, num_workers=num_workers).predict_dataloader())
    assert [batch.pair_id for batch in batches] == [["a.png", "c/d.png"], ["e.png", "g.png"], ["h.png"]]
    assert [batch.index for batch in batches] == [[0, 2], [3, 5], [6]]
    skipped = [skipped for batch in batches for skipped in batch.skipped]
    assert [(pair.index, pair.pair_id) for pair in skipped] == [(1, "b.png"), (4, "f.png")]
    for pair in skipped:
        assert pair.reason == "not an image of a known format"


def test_a_batch_of_nothing_but_broken_photos_is_empty(folder):
    spoil(folder, *NAMES)
    (batch,) = module(folder, batch_size=7).predict_dataloader()
    assert len(batch) == 0
    assert [pair.pair_id for pair in batch.skipped] == NAMES
    assert batch.seeds.dtype == torch.int64
    assert len(batch.to(torch.device("cpu")).select([])) == 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_predict_goes_on_without_photos_that_cannot_be_read(folder, num_workers):
    spoil(folder, "b.png")
    listener = predict(module(folder, batch_size=2, num_workers=num_workers))
    assert listener.seen == [name for name in NAMES if name != "b.png"]
    assert listener.skipped == ["b.png"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_predict_stops_at_a_photo_that_cannot_be_read_when_told_to(folder, num_workers):
    spoil(folder, "e.png")
    data = module(folder, on_error="raise", batch_size=2, num_workers=num_workers)
    expected = (
        "cannot read e.png: not an image of a known format; "
        "mend or remove it, or set data.on_error=skip to go on without"
    )
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        predict(data)


def test_a_broken_photo_outside_the_shard_does_not_stop_it(folder):
    spoil(folder, "e.png")
    assert predict(module(folder, on_error="raise", done={3})).seen == [name for name in NAMES if name != "e.png"]


# The data module


def test_predict_sees_every_pair_once_in_order(folder):
    listener = predict(module(folder, batch_size=2))
    assert listener.seen == NAMES
    assert listener.skipped == []


def test_predict_accepts_that_nothing_is_left_to_do(folder):
    assert predict(module(folder, done=set(range(7)))).seen == []


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"num_workers": -1}], ids=str)
def test_a_loader_option_out_of_range_is_named_with_its_value(folder, options):
    ((name, value),) = options.items()
    with pytest.raises(UserError, match=rf"`loader.{name}`.*{value}"):
        module(folder, **options)


# A batch


def test_select_keeps_the_chosen_pairs_in_the_given_order(folder):
    (batch,) = module(folder, batch_size=7).predict_dataloader()
    chosen = batch.select([4, 1])
    assert len(chosen) == 2
    assert chosen.pair_id == ["f.png", "b.png"]
    assert chosen.partner_id == ["g.png", "c/d.png"]
    assert chosen.index == [4, 1]
    assert chosen.geometry == [batch.geometry[4], batch.geometry[1]]
    assert chosen.seeds.tolist() == [seed_by_hand(0, "f.png"), seed_by_hand(0, "b.png")]
    for name in ("view1", "view2", "partner_view2"):
        assert torch.equal(getattr(chosen, name), torch.stack([getattr(batch, name)[4], getattr(batch, name)[1]]))


def test_select_of_nothing_is_an_empty_batch(folder):
    (batch,) = module(folder, batch_size=7).predict_dataloader()
    assert len(batch.select([])) == 0
    assert batch.select([]).view1.shape == (0, 3, 16, 16)


def test_to_moves_every_tensor_and_nothing_else(folder):
    spoil(folder, "h.png")
    (batch,) = module(folder, batch_size=7).predict_dataloader()
    moved = batch.to(torch.device("meta"))
    assert {getattr(moved, name).device.type for name in ("view1", "view2", "seeds", "partner_view2")} == {"meta"}
    for name in ("pair_id", "index", "geometry", "partner_id", "skipped"):
        assert getattr(moved, name) == getattr(batch, name)
    assert batch.view1.device.type == "cpu"


def test_an_item_of_the_dataset_is_a_batch_of_one_or_why_there_is_none(folder):
    spoil(folder, "b.png")
    dataset = PairDataset(ImageFolder(folder), NoViews(16))
    assert len(dataset) == 7
    assert len(dataset[0]) == 1
    assert dataset[1] == SkippedPair(1, "b.png", "not an image of a known format")
