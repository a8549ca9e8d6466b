import pytest

from medkd.data.tiles import tile_boxes
from medkd.errors import DataError, ParameterError


def test_published_patches_lie_at_three_offsets_in_both_directions():
    boxes = tile_boxes(1024, 1024)
    assert [box[:2] for box in boxes] == [(x, y) for y in (0, 256, 512) for x in (0, 256, 512)]
    assert all(box[2] - box[0] == box[3] - box[1] == 512 for box in boxes)


def test_other_sizes_are_covered_to_the_border_and_small_regions_refused():
    boxes = tile_boxes(100, 70, patch=40, stride=30)
    assert sorted({box[0] for box in boxes}) == [0, 30, 60] and sorted({box[1] for box in boxes}) == [0, 30]
    assert max(box[2] for box in tile_boxes(95, 40, patch=40, stride=30)) == 95
    with pytest.raises(DataError, match="a.png is 100x30 px, smaller than a patch of 40 px"):
        tile_boxes(100, 30, patch=40, name="a.png")


@pytest.mark.parametrize("settings", [{"patch": 0}, {"stride": 0}, {"stride": -1}, {"patch": 12.5}])
def test_lengths_that_are_none_are_refused(settings):
    (name,) = settings
    with pytest.raises(ParameterError, match=f"{name} = .* is no length in pixels"):
        tile_boxes(64, 64, **settings)
