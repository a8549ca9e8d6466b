import json

import numpy as np
import pytest

from medkd.data import isic2018
from medkd.data.episodes import FewShotTask, draw_task
from medkd.errors import DataError, ParameterError


@pytest.fixture
def cohort(make_cohort):
    """Common class n (30 images), rare classes d (12 images of 6 lesions) and v (9 images of 9 lesions)."""
    names = ["n"] * 30 + ["d"] * 12 + ["v"] * 9
    groups = [f"n{i}" for i in range(30)] + [f"d{i // 2}" for i in range(12)] + [f"v{i}" for i in range(9)]
    return make_cohort(names, groups, rare=("d", "v"))


def lesions_of(cohort, ids):
    return cohort.table.set_index("id")["patient"].loc[list(ids)].tolist()


def rare_ids(cohort):
    return set(cohort.table["id"].to_numpy()[cohort.rows_of(cohort.rare_classes)])


def test_support_holds_k_images_a_class_in_class_order(cohort):
    task = draw_task(cohort, k_shot=3, task=0)
    classes = cohort.table.set_index("id")["class"].loc[list(task.support_ids)]
    assert classes.tolist() == ["d"] * 3 + ["v"] * 3
    assert task.support_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert task.classes == ("d", "v")


@pytest.mark.parametrize("by_lesion", [True, False])
def test_support_query_and_left_out_images_divide_the_rare_images(cohort, by_lesion):
    task = draw_task(cohort, k_shot=2, task=1, by_lesion=by_lesion)
    ids = task.support_ids + task.query_ids + task.left_out_ids
    assert len(set(ids)) == len(ids) == 21
    assert set(ids) == rare_ids(cohort)


def test_without_lesions_all_other_rare_images_are_the_query_set(cohort):
    task = draw_task(cohort, k_shot=2, task=0, by_lesion=False)
    assert len(task.query_ids) == 21 - 2 * 2
    assert task.left_out_ids == ()


@pytest.mark.parametrize("number", range(5))
def test_by_lesion_no_lesion_is_on_both_sides_nor_twice_in_the_support(cohort, number):
    task = draw_task(cohort, k_shot=4, task=number)
    support = lesions_of(cohort, task.support_ids)
    assert len(set(support)) == 8
    assert not set(support) & set(lesions_of(cohort, task.query_ids))
    assert len(task.left_out_ids) == 4  # the other image of each of the four support lesions of d


def test_support_takes_a_second_image_of_a_lesion_only_when_none_is_left(make_cohort):
    """Two lesions of two images, K = 3: the first two picks differ in lesion, the third cannot."""
    cohort = make_cohort(["d"] * 6, ["p", "p", "q", "q", "r", "r"], rare=("d",)).take(np.array([0, 1, 2, 3]))
    with pytest.raises(DataError, match="touches every lesion"):
        draw_task(cohort, k_shot=3, task=0)
    full = make_cohort(["d"] * 4 + ["v"] * 4, list("ppqq") + list("ppqr"), rare=("d", "v"))
    lesions = lesions_of(full, draw_task(full, k_shot=1, task=0).support_ids)
    assert len(set(lesions)) == 2  # also across classes


@pytest.mark.parametrize("by_lesion", [True, False])
def test_supports_of_one_task_are_nested(cohort, by_lesion):
    by_k = {k: draw_task(cohort, k_shot=k, task=2, by_lesion=by_lesion).support_ids for k in (1, 3, 5)}
    for small, large in ((1, 3), (3, 5)):
        for label in range(2):
            of_class = by_k[large][label * large : (label + 1) * large]
            assert by_k[small][label * small : (label + 1) * small] == of_class[:small]


def test_tasks_and_seeds_differ_and_repeat(cohort):
    first = draw_task(cohort, k_shot=3, task=0, seed=0)
    assert first == draw_task(cohort, k_shot=3, task=0, seed=0)
    assert first.support_ids != draw_task(cohort, k_shot=3, task=1, seed=0).support_ids
    assert first.support_ids != draw_task(cohort, k_shot=3, task=0, seed=1).support_ids


def test_draw_does_not_depend_on_the_order_of_the_table(cohort):
    shuffled = cohort.take(np.random.default_rng(0).permutation(len(cohort)))
    assert draw_task(shuffled, k_shot=3, task=0) == draw_task(cohort, k_shot=3, task=0)


def test_every_image_is_equally_likely_to_be_support(cohort):
    """1000 tasks, K = 1 of 9 images of v: binomial with mean 111 and SD 10; 5 SD allowed."""
    drawn = [draw_task(cohort, k_shot=1, task=number).support_ids[1] for number in range(1000)]
    counts = np.unique(drawn, return_counts=True)[1]
    assert len(counts) == 9
    assert np.abs(counts - 1000 / 9).max() < 50


def test_json_round_trip_gives_an_equal_task(cohort):
    task = draw_task(cohort, k_shot=2, task=3, seed=5)
    assert FewShotTask.from_json(json.loads(json.dumps(task.to_json()))) == task


def test_stored_tasks_with_overlap_or_odd_fields_are_refused(cohort):
    data = draw_task(cohort, k_shot=2, task=0).to_json()
    with pytest.raises(DataError, match="twice, so support and query overlap"):
        FewShotTask.from_json(data | {"query_ids": [*data["query_ids"], data["support_ids"][0]]})
    with pytest.raises(DataError, match="3 support images instead of 2 for each of 2 classes"):
        FewShotTask.from_json(data | {"support_ids": data["support_ids"][:3]})
    with pytest.raises(DataError, match="missing or unknown fields: shots"):
        FewShotTask.from_json(data | {"shots": 1})


def test_a_class_that_is_too_small_is_named_with_its_count(cohort):
    with pytest.raises(DataError, match='class "v" of toy has 9 images, but k_shot = 9 needs at least 10'):
        draw_task(cohort, k_shot=9, task=0)
    assert len(draw_task(cohort, k_shot=8, task=0, by_lesion=False).query_ids) == 21 - 16


def test_a_cohort_without_rare_classes_is_refused(make_cohort):
    with pytest.raises(DataError, match="toy names no rare classes"):
        draw_task(make_cohort(["a"] * 3, list("pqr")), k_shot=1, task=0)


@pytest.mark.parametrize("setting", [{"k_shot": 0}, {"task": -1}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(cohort, setting):
    with pytest.raises(ParameterError, match="k_shot must be 1 or more"):
        draw_task(cohort, **({"k_shot": 1, "task": 0} | setting))


def test_query_sizes_on_the_real_set_are_those_of_the_paper(real_folder):
    """|Q| = 584 - 3 K: 581, 575 and 569."""
    cohort = isic2018.read(real_folder("isic2018_task3_128"))
    tasks = {k: draw_task(cohort, k_shot=k, task=0, by_lesion=False) for k in (1, 3, 5)}
    assert {k: len(task.query_ids) for k, task in tasks.items()} == {1: 581, 3: 575, 5: 569}
    by_lesion = draw_task(cohort, k_shot=5, task=0)
    assert len(set(lesions_of(cohort, by_lesion.support_ids))) == 15
    assert not set(lesions_of(cohort, by_lesion.support_ids)) & set(lesions_of(cohort, by_lesion.query_ids))
