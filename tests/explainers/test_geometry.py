"""How the cells of a map spread over the pixels of an image."""

import pytest
import torch

from twinsight.errors import UserError
from twinsight.explainers import MapGeometry


def grid(kind, side, window, stride):
    starts = tuple(range(0, side - window + 1, stride))
    return MapGeometry(kind, (side, side), (window, window), starts, starts), len(starts)


@pytest.mark.parametrize("kind", ["stretch", "window_average", "centres"])
@pytest.mark.parametrize(("side", "window", "stride"), [(21, 5, 2), (35, 9, 3), (45, 11, 4), (17, 8, 1), (224, 64, 8)])
def test_a_batch_is_resized_as_its_maps_one_by_one_bit_for_bit(kind, side, window, stride):
    geometry, cells = grid(kind, side, window, stride)
    maps = torch.randn(7, cells, cells, generator=torch.Generator().manual_seed(0))
    together = geometry.resize(maps, (side, side))
    for size in (1, 2, 5):
        assert torch.equal(torch.cat([geometry.resize(part, (side, side)) for part in maps.split(size)]), together)


@pytest.mark.parametrize("kind", ["stretch", "window_average", "centres"])
def test_a_constant_map_stays_constant(kind):
    """Also at pixels that no window reaches: windows of 3 every 5 pixels, and a border beyond the last."""
    geometry, cells = grid(kind, 17, 3, 5)
    for size in ((17, 17), (34, 10)):
        torch.testing.assert_close(
            geometry.resize(torch.full((1, cells, cells), 0.7), size), torch.full((1, *size), 0.7)
        )


def test_pixels_between_windows_are_interpolated():
    """Windows of one pixel at 0 and 4: the pixels between lie on the line."""
    geometry, _ = grid("window_average", 5, 1, 4)
    found = geometry.resize(torch.tensor([[[0.0, 4.0], [0.0, 4.0]]]), (5, 5))
    assert torch.equal(found[0], torch.arange(5.0).expand(5, 5))


def test_a_map_of_the_right_size_is_returned_as_it_is():
    maps = torch.rand(2, 8, 8)
    assert MapGeometry().resize(maps, (8, 8)) is maps


def test_an_unknown_kind_is_refused_with_the_valid_ones():
    with pytest.raises(UserError, match="`geometry` must be one of stretch, window_average, centres, got 'average'"):
        MapGeometry("average")
