import hashlib
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medkd.data.arrays import ArrayImages
from medkd.data.phantoms import PHANTOMS, dermoscopy, drawing, glioma, paired_skin, rare_skin
from medkd.errors import DataError, ParameterError

SMALL = {
    "phantom-glioma": {"n_patients": 24, "image_size": 32},
    "phantom-glioma-600": {"n_patients": 24, "image_size": 32},
    "phantom-paired-skin": {"n_lesions": 100, "image_size": 32},
    "phantom-rare-skin": {"n_images": 200, "image_size": 32},
}


@pytest.fixture(scope="module")
def small():
    return {name: make(**SMALL[name]) for name, make in PHANTOMS.items()}


@pytest.fixture(scope="module")
def glioma_at_default_size():
    return glioma.make(image_size=16)  # the pixels are not looked at where this is used


def accuracy(features, labels, groups):
    """Balanced accuracy of a logistic regression over five folds that cut no group."""
    predicted = np.empty_like(labels)
    for train, test in GroupKFold(5).split(features, labels, groups):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.02, class_weight="balanced", max_iter=500))
        predicted[test] = model.fit(features[train], labels[train]).predict(features[test])
    return np.mean([(predicted[labels == k] == k).mean() for k in np.unique(labels)])


# ---- images in memory


def test_array_images_of_the_asked_size_come_back_untouched():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(ArrayImages(pixels).load(8), pixels)


def test_halving_an_image_of_two_pixel_blocks_equals_the_antialiased_triangle_by_hand():
    """Scale 2: the triangle filter of half-width 2 weighs input pixels 1, 3, 3, 1 (cut and renormalised at borders)."""
    row = np.array([0, 80, 160, 240], np.float64)
    first = (3 * row[0] + 3 * row[1] + 1 * row[2]) / 7
    last = (1 * row[1] + 3 * row[2] + 3 * row[3]) / 7
    pixels = np.broadcast_to(row.astype(np.uint8)[None, None, :, None], (1, 4, 4, 3)).copy()
    got = ArrayImages(pixels).load(2)[0, :, :, 0]
    assert got.tolist() == [[round(first), round(last)]] * 2


def test_taking_rows_of_rows_follows_the_first_choice():
    pixels = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 2, 3), np.uint8)
    chosen = ArrayImages(pixels).take(np.array([4, 2, 0])).take(np.array([1, 0]))
    assert chosen.load(2)[:, 0, 0, 0].tolist() == [2, 4]
    assert len(chosen) == 2


def test_resizing_more_images_than_one_chunk_equals_resizing_them_one_by_one():
    pixels = np.random.default_rng(0).integers(0, 256, (515, 4, 4, 3), dtype=np.uint8)
    together = ArrayImages(pixels).load(6)
    for i in (0, 511, 512, 514):
        assert np.array_equal(together[i], ArrayImages(pixels[i : i + 1]).load(6)[0])


def test_fingerprint_of_array_images_is_the_hash_of_shape_and_pixels_in_row_order():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    swapped = ArrayImages(pixels).take(np.array([1, 0]))
    assert swapped.fingerprint() == hashlib.sha256(b"(2, 2, 2, 3)" + pixels[::-1].tobytes()).hexdigest()
    assert swapped.fingerprint() != ArrayImages(pixels).fingerprint()


def test_loaded_images_refuse_to_be_written_to_and_leave_the_callers_array_alone():
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="read-only"):
        ArrayImages(pixels).load(4)[0] = 1
    pixels[0] = 1  # the caller's own array stays writeable


def test_refuses_images_that_are_not_uint8_rgb():
    with pytest.raises(DataError, match=r"float32 of shape \(1, 4, 4, 3\)"):
        ArrayImages(np.zeros((1, 4, 4, 3), np.float32))
    with pytest.raises(DataError, match=r"uint8 of shape \(4, 4, 3\)"):
        ArrayImages(np.zeros((4, 4, 3), np.uint8))


def test_refuses_rows_outside_the_images():
    with pytest.raises(DataError, match=r"0\.\.1"):
        ArrayImages(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 2]))


# ---- drawing


@pytest.mark.parametrize("length", [0.01, 0.03])
def test_smooth_noise_has_unit_variance_and_the_promised_correlation(length):
    field = drawing.smooth_noise(np.random.default_rng(0), 400, 32, length)
    lag = 2
    by_formula = math.exp(-((lag / 32) ** 2) / (4 * length**2))
    # a filter much narrower than a pixel is cut by the pixel grid, hence the tolerance
    assert field.std() == pytest.approx(1.0, abs=0.02)
    assert (field * np.roll(field, lag, axis=2)).mean() == pytest.approx(by_formula, abs=0.03)


def test_stamped_ellipses_equal_the_formula_evaluated_at_every_pixel():
    size, x, y, radius, stretch, angle = 24, 0.1, -0.05, 0.15, 2.0, 0.6
    canvas = np.zeros((2, size, size), np.float32)
    drawing.stamp_ellipses(
        canvas, np.array([1]), np.array([x]), np.array([y]), radius=np.array([radius]), elongation=stretch,
        angle=angle, height=0.7, softness=0.3,
    )  # fmt: skip
    for row in range(size):
        for col in range(size):
            dx, dy = ((col + 0.5) / size - 0.5 - x) / radius, ((row + 0.5) / size - 0.5 - y) / radius
            long = (dx * math.cos(angle) + dy * math.sin(angle)) / math.sqrt(stretch)
            short = (dy * math.cos(angle) - dx * math.sin(angle)) * math.sqrt(stretch)
            expected = 0.7 / (1 + math.exp((math.hypot(long, short) - 1) / 0.15))
            assert canvas[1, row, col] == pytest.approx(expected, abs=5e-3)  # 0 beyond the window, 0.003 by formula
    assert not canvas[0].any()


def test_overlapping_ellipses_keep_the_larger_value():
    canvas = np.full((1, 16, 16), 0.3, np.float32)
    zero = np.zeros(2)
    drawing.stamp_ellipses(
        canvas, np.array([0, 0]), zero, zero, radius=np.array([0.2, 0.2]), height=np.array([0.9, 0.5]), softness=0.1
    )
    assert canvas[0, 8, 8] == pytest.approx(0.9, abs=0.01)
    assert canvas[0, 0, 0] == pytest.approx(0.3)


def test_a_straight_curve_colours_the_pixels_on_it_and_no_others():
    canvas = np.zeros((1, 32, 32), np.float32)
    control = np.array([[[-0.4, 0.0], [0.0, 0.0], [0.4, 0.0]]])
    drawing.stamp_curves(canvas, np.array([0]), control, radius=np.array([0.05]))
    assert canvas[0, 15:17, 4:28].min() > 0.9
    assert canvas[0, :12].max() < 0.05 and canvas[0, 20:].max() < 0.05


def test_hexagonal_net_is_zero_in_a_hole_and_follows_its_three_waves_elsewhere():
    x = np.array([0.0, 0.05])[None, None]  # the middle of a hole; half a period away
    still = np.zeros_like(x, np.float32)
    net = drawing.hexagonal_net(x, still, np.zeros(1), np.array([0.1]), (still, still))
    assert net[0, 0, 0] == pytest.approx(0.0, abs=1e-6)
    by_hand = 1 - (math.cos(math.pi) + 2 * math.cos(math.pi / 2) + 1.5) / 4.5  # at x = 0.05, period 0.1
    assert net[0, 0, 1] == pytest.approx(by_hand, abs=1e-5)


def test_distance_to_a_straight_line_is_the_signed_distance():
    distance, along = drawing.bent_line(8, np.array([0.0]), np.array([0.25]), np.array([0.0]))
    assert distance[0, :, 3].tolist() == pytest.approx([(i + 0.5) / 8 - 0.75 for i in range(8)])
    assert along[0, 2].tolist() == pytest.approx([(i + 0.5) / 8 - 0.5 for i in range(8)])


# ---- every cohort


@pytest.mark.parametrize("name", PHANTOMS)
def test_same_seed_gives_the_same_bits_and_another_seed_does_not(small, name):
    assert PHANTOMS[name](**SMALL[name]).fingerprint == small[name].fingerprint
    assert PHANTOMS[name](**SMALL[name], seed=1).fingerprint != small[name].fingerprint


@pytest.mark.parametrize("name", PHANTOMS)
def test_drawing_leaves_the_global_random_states_alone(name):
    numpy_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    PHANTOMS[name](**SMALL[name])
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_before)


@pytest.mark.parametrize("name", PHANTOMS)
def test_a_cohort_says_that_it_is_simulated_and_its_rows_agree(small, name):
    cohort = small[name]
    assert cohort.name == name and cohort.simulated and "simulated" in cohort.title.lower()
    assert cohort.licence == "generated by medkd, no restrictions"
    assert cohort.settings.items() >= SMALL[name].items()
    assert [cohort.classes[label] for label in cohort.labels] == cohort.table["class"].tolist()
    for source in cohort.images.values():
        assert source.load(32).shape == (len(cohort), 32, 32, 3)


@pytest.mark.parametrize("name", PHANTOMS)
def test_images_are_neither_flat_nor_burnt_out(small, name):
    for source in small[name].images.values():
        pixels = source.load(32)
        assert pixels.std(axis=(1, 2, 3)).min() > 3.0
        assert (pixels == 255).mean() < 0.10


@pytest.mark.parametrize("name", PHANTOMS)
def test_a_setting_out_of_range_is_refused_by_name(name):
    with pytest.raises(ParameterError, match=f"image_size of {name} must lie between 16 and 512, got 8"):
        PHANTOMS[name](image_size=8)


# ---- glioma


def test_a_patient_has_one_grade_one_profile_and_the_regions_asked_for():
    cohort = glioma.make(n_patients=12, n_rois=3, n_patches=2, image_size=16)
    for _, rows in cohort.table.groupby("patient"):
        assert len(rows) == 6 and rows["roi"].nunique() == 3
        assert rows["label"].nunique() == 1
        assert len(np.unique(cohort.vectors["omic"].values[rows.index], axis=0)) == 1
    assert (cohort.table.groupby("roi")["patch"].apply(list).map(tuple) == (1, 2)).all()


def test_omic_has_eighty_columns_and_two_mutations_of_zero_or_one(glioma_at_default_size):
    omic = glioma_at_default_size.vectors["omic"]
    assert omic.values.shape[1] == len(set(omic.names)) == 80
    assert omic.names[:2] == ("idh_mutation", "codeletion")
    assert set(np.unique(omic.values[:, :2])) == {0.0, 1.0}
    assert not (omic.values[:, 1] > omic.values[:, 0]).any()  # a codeletion without the mutation does not occur


def test_true_grades_keep_the_published_proportions(glioma_at_default_size):
    patients = glioma_at_default_size.table.drop_duplicates("patient")
    by_hand = [44, 47, 59]  # 150 * 393 / 1325 = 44.5 and 150 * 801 / 1325 = 90.7, rounded, then differences
    assert np.bincount(patients["true_label"]).tolist() == by_hand


def test_recorded_grades_differ_from_the_true_ones_by_one_step_and_as_often_as_asked():
    cohort = glioma.make(n_patients=1000, n_rois=1, n_patches=1, image_size=16, label_noise=0.2)
    step = (cohort.table["label"] - cohort.table["true_label"]).abs()
    assert set(step) == {0, 1}
    assert step.mean() == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 1000))
    assert cohort.table["label"].between(0, 2).all()


def test_without_label_noise_the_recorded_grade_is_the_true_one():
    table = glioma.make(n_patients=20, image_size=16, label_noise=0.0).table
    assert (table["label"] == table["true_label"]).all()


def test_the_true_grade_rises_with_the_weighted_sum_of_its_causes(glioma_at_default_size):
    """Equation 1 of docs/phantoms.md: what the sum leaves open is noise of standard deviation 0.1."""
    table = glioma_at_default_size.table
    shares = {"shared": (0.58, 4), "omic": (0.27, 2), "image": (0.14, 2)}
    score = sum(
        math.sqrt(share / width) * table[[f"latent_{name}_{i + 1}" for i in range(width)]].sum(axis=1)
        for name, (share, width) in shares.items()
    )
    highest, lowest = score.groupby(table["true_label"]).max(), score.groupby(table["true_label"]).min()
    assert highest[0] < lowest[1] + 0.3 and highest[1] < lowest[2] + 0.3
    assert score.groupby(table["true_label"]).mean().is_monotonic_increasing


def test_the_shared_factors_drive_both_modalities():
    """The area of nuclei follows s1 + s2 far more than an omic-only factor; copy numbers follow s."""
    cohort = glioma.make(n_patients=300, n_rois=1, n_patches=2, image_size=32)
    latents = cohort.table
    red = cohort.images["histology"].load(32)[..., 0].astype(np.float64)
    dark = np.log((red < 0.75 * np.median(red, axis=(1, 2), keepdims=True)).mean(axis=(1, 2)) + 0.01)
    cause = latents["latent_shared_1"] + latents["latent_shared_2"]
    assert np.corrcoef(cause, dark)[0, 1] > 0.35
    # not 0: leaving out borderline patients ties all causes of the grade together a little
    assert abs(np.corrcoef(latents["latent_omic_1"], dark)[0, 1]) < 0.3
    shared = latents[[f"latent_shared_{i}" for i in range(1, 5)]].to_numpy()
    values = cohort.vectors["omic"].values[:, 2:]
    rest = values - shared @ np.linalg.lstsq(shared, values, rcond=None)[0]
    assert 1 - rest.var() / values.var() > 0.4


def test_both_causes_predict_the_grade_better_than_either(glioma_at_default_size):
    cohort = glioma_at_default_size
    columns = {m: [c for c in cohort.table if c.startswith(f"latent_{m}")] for m in ("shared", "omic", "image")}
    score = {
        kind: accuracy(cohort.table[sum((columns[m] for m in parts), [])].to_numpy(), cohort.labels, cohort.groups)
        for kind, parts in {
            "omic": ("shared", "omic"),
            "image": ("shared", "image"),
            "both": ("shared", "omic", "image"),
        }.items()  # fmt: skip
    }
    assert score["both"] > score["omic"] > score["image"] > 0.5
    assert score["both"] < 0.95


def concordance(risk, months, event):
    """Share of the comparable pairs (one died before the other's follow-up ended) in which the first had more risk."""
    comparable = (months[:, None] < months[None]) & (event[:, None] == 1)
    more = np.where(risk[:, None] == risk[None], 0.5, risk[:, None] > risk[None])
    return more[comparable].mean()


def test_survival_left_images_profiles_and_grades_as_they_were(small):
    """Recorded before there was survival; of the pixels the means, for another processor may round one differently."""
    cohort = small["phantom-glioma"]
    assert hashlib.sha256(cohort.labels.tobytes()).hexdigest()[:16] == "c0230a907e883109"
    assert hashlib.sha256(cohort.vectors["omic"].values.tobytes()).hexdigest()[:16] == "b01b0e2636e3fea7"
    latents = cohort.table[[column for column in cohort.table if column.startswith("latent_")]]
    assert hashlib.sha256(latents.to_numpy().round(9).tobytes()).hexdigest()[:16] == "001bbe6f27183799"
    means = cohort.images["histology"].load(32)[[0, 17, 50, 95]].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(means, [206.642, 193.148, 181.466, 202.46], atol=0.01)


def test_a_patient_has_one_survival_time(small):
    table = small["phantom-glioma"].table
    assert small["phantom-glioma"].has_survival
    assert (table.groupby("patient")[["survival_months", "event", "true_score"]].nunique() == 1).all(axis=None)
    assert table["survival_months"].between(0.01, 90).all()


def test_higher_grades_live_shorter_and_about_half_of_the_deaths_are_seen(glioma_at_default_size):
    patients = glioma_at_default_size.table.drop_duplicates("patient")
    assert 0.4 < patients["event"].mean() < 0.6
    months, event = patients["survival_months"].to_numpy(), patients["event"].to_numpy()
    by_score = concordance(patients["true_score"].to_numpy(), months, event)
    assert by_score > 0.68
    assert by_score > concordance(patients["true_label"].to_numpy(), months, event) > 0.62
    by_grade = patients.groupby("true_label")[["event", "survival_months"]].sum()
    assert (by_grade["event"] / by_grade["survival_months"]).is_monotonic_increasing  # deaths a month at risk


def test_survival_times_follow_the_documented_law():
    """Equation 2 of docs/phantoms.md: with (t / 60)^1.3 as the clock, deaths over time at risk is 2.5 ** score."""
    rng = np.random.default_rng(0)
    for score in (-1.0, 0.0, 1.5):
        follow_up = glioma._draw_survival(rng, np.full(20_000, score))
        n_deaths = follow_up["event"].sum()
        at_risk = ((follow_up["survival_months"] / 60) ** 1.3).sum()
        assert n_deaths / at_risk == pytest.approx(2.5**score, rel=5 / math.sqrt(n_deaths))


def test_the_score_is_the_one_that_the_grades_were_cut_from(glioma_at_default_size):
    by_grade = glioma_at_default_size.table.groupby("true_label")["true_score"]
    assert by_grade.max()[0] < by_grade.min()[1] and by_grade.max()[1] < by_grade.min()[2]


# ---- skin


def test_rare_skin_keeps_the_published_counts_and_raises_the_rarest_to_28_lesions():
    lesions = rare_skin.make(image_size=16).table.drop_duplicates("patient")
    counts = lesions["class"].value_counts()
    assert counts["NV"] == round(2400 / 1.5 * 6705 / 10015)
    assert counts["AKIEC"] == round(2400 / 1.5 * 327 / 10015)
    assert counts["VASC"] == counts["DF"] == 28


def test_rare_and_base_classes_share_nothing_and_cover_all(small):
    cohort = small["phantom-rare-skin"]
    assert cohort.base_classes == ("NV", "MEL", "BKL", "BCC")
    assert cohort.rare_classes == ("DF", "AKIEC", "VASC")
    assert set(cohort.base_classes + cohort.rare_classes) == set(cohort.classes)
    assert cohort.main == cohort.second == "" and cohort.group == "lesion"


def test_images_of_one_lesion_share_diagnosis_and_strengths_but_not_pixels(small):
    cohort = small["phantom-rare-skin"]
    latents = [c for c in cohort.table if c.startswith("latent_")]
    several = cohort.table.groupby("patient").filter(lambda rows: len(rows) > 1).groupby("patient")
    assert len(several) > 20
    pixels = cohort.images["dermoscopic"].load(32)
    for _, rows in several:
        assert len(rows[["label", *latents]].drop_duplicates()) == 1
        assert (pixels[rows.index[0]] != pixels[rows.index[1]]).mean() > 0.5


def test_no_rule_on_the_hidden_strengths_is_right_for_all_rare_lesions():
    """The likelihood rule with the true class means, on what an image can show (strengths below 0 look alike)."""
    rng = np.random.default_rng(0)
    label = np.repeat([4, 5, 6], 2000)
    strengths = dermoscopy.draw_lesions(rng, rare_skin.PROFILES[label], rare_skin.SPREAD).strengths
    visible = np.maximum(strengths, 0.0)
    centres = np.stack([visible[label == k].mean(axis=0) for k in (4, 5, 6)])
    nearest = 4 + np.square(visible[:, None] - centres).sum(axis=2).argmin(axis=1)
    assert 0.85 < (nearest == label).mean() < 0.96


def test_colour_alone_is_a_poor_guide_to_the_rare_classes():
    """Five support images per class, nearest mean of a 16-pixel thumbnail: little above the 1/3 of guessing."""
    cohort = rare_skin.make(n_images=400, image_size=32)
    rare = cohort.take(cohort.rows_of(cohort.rare_classes))
    raw = rare.images["dermoscopic"].load(16).reshape(len(rare), -1).astype(np.float64)
    scores = []
    for task in range(20):
        rng = np.random.default_rng(task)
        support = np.stack([rng.choice(np.flatnonzero(rare.labels == k), 5, replace=False) for k in (4, 5, 6)])
        query = np.setdiff1d(np.arange(len(rare)), support)
        centres = raw[support].mean(axis=1)
        predicted = 4 + np.square(raw[query][:, None] - centres).sum(axis=2).argmin(axis=1)
        scores.append((predicted == rare.labels[query]).mean())
    assert np.mean(scores) < 0.5


def test_every_diagnosis_of_paired_skin_has_thirty_lesions_or_its_published_share():
    counts = paired_skin.make(image_size=16).table["class"].value_counts()
    assert counts.min() == 30
    assert counts["NEV"] == round(400 * 575 / 1011)


def test_some_patients_have_two_lesions_and_none_has_three(small):
    counts = small["phantom-paired-skin"].table["patient"].value_counts()
    assert set(counts) == {1, 2}


def test_the_two_views_share_pigment_but_each_keeps_signs_of_its_own(small):
    cohort = paired_skin.make(n_lesions=1000, image_size=16)
    nevi = cohort.table[
        cohort.table["class"] == "NEV"
    ]  # within a diagnosis, so that the diagnosis itself explains none
    shared = np.corrcoef(nevi["latent_dermoscopic_pigment"], nevi["latent_clinical_pigment"])[0, 1]
    separate = np.corrcoef(nevi["latent_dermoscopic_network"], nevi["latent_clinical_elevation"])[0, 1]
    assert shared == pytest.approx(math.sqrt(paired_skin.COMMON_SHARE), abs=0.08)
    assert abs(separate) < 0.15
