"""Words are held against masks where they are sure, and never where a text could be meant otherwise."""

import pytest

from unimed.data import wording
from unimed.data.wording import Classes

ABDOMEN = Classes(["liver", "kidney", "kidney_tumor", "tumor", "spleen", "lung_left", "lung_right", "heart_atrium_left", "aorta"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Please segment the spleen in this image.", {"liver"}),
        ("Segment the spleens.", {"liver"}),
        ("Can you give me the mask of the spleen?", {"liver"}),
        ("Where is the kidney tumor?", {"kidney"}),
        ("Segment the left lung.", {"lung_right"}),
        ("Segment the kidney and the liver.", {"kidney", "spleen"}),
        ("Segment out Lung-Left", {"aorta"}),
    ],
)
def test_a_text_that_names_another_class_contradicts_its_mask(text, shown):
    assert ABDOMEN.contradict(text, shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Please segment the liver in this image.", {"liver"}),
        ("Segment the kidneys.", {"kidney"}),
        ("Segment the tumor in the kidney.", {"kidney_tumor"}),
        ("Segment the tumor of the kidney.", {"kidney_tumor"}),
        ("Segment the abnormal mass in the liver.", {"tumor"}),
        ("Segment the organ below the liver.", {"kidney"}),
        ("Segment the organ that is not the liver.", {"kidney"}),
        ("Segment the left atrium of the heart.", {"heart_atrium_left"}),
        ("Segment the left lung and the right lung.", {"lung_left", "lung_right"}),
        ("Segment all organs.", {"liver", "kidney"}),
        ("Segment the liver and all else.", {"liver", "kidney", "spleen"}),
        ("Segment the pancreas.", {"liver"}),
        ("Segment the spleen.", set()),
        ("", {"liver"}),
    ],
)
def test_a_text_that_may_mean_its_mask_does_not_contradict_it(text, shown):
    assert not ABDOMEN.contradict(text, shown)


def test_what_is_remembered_of_a_text_is_told_of_no_other_masks_and_no_other_classes():
    text = "Please segment the spleen in this image."
    assert [ABDOMEN.contradict(text, shown) for shown in ({"liver"}, {"spleen"}, {"liver"})] == [True, False, True]
    assert not Classes(["liver"]).contradict(text, {"liver"}), "spleen is no class of theirs"
    said = ("is this a ct scan?", "yes")
    assert [wording.modality_contradicts(*said, modality) for modality in ("mr", "ct", "mr")] == [True, False, True]


def test_a_class_is_meant_where_it_is_asked_for_and_not_where_it_is_a_place():
    assert ABDOMEN.meant("Segment the spleen near the liver.") == {"spleen"}
    assert ABDOMEN.meant("Segment the area of the aorta.") == {"aorta"}
    assert ABDOMEN.meant("Segment anything but not the liver.") == set()


@pytest.mark.parametrize(("name", "side"), [("lung_left", "left"), ("right kidney", "right"), ("liver", ""), ("left_right_junction", "")])
def test_the_side_in_the_name_of_a_class(name, side):
    assert wording.side_of(name) == side


@pytest.mark.parametrize(
    ("text", "name", "side"),
    [
        ("Segment the right lung.", "lung_left", "right"),
        ("Segment the lung, right.", "lung_left", ""),
        ("The left kidney", "kidney", "left"),
        ("The kidney on the left", "kidney", ""),
        ("The left and the right kidney", "kidney", "right"),
        ("left kidney, right kidney", "kidney", ""),
        ("The kidney in the left half of the image", "kidney", ""),
    ],
)
def test_a_side_belongs_to_the_class_that_it_stands_beside(text, name, side):
    assert wording.side_said(text, name) == side


@pytest.mark.parametrize(
    ("question", "answer", "modality"),
    [
        ("Is this a CT image?", "Yes", "mr"),
        ("Is this an MRI scan?", "No", "mr"),
        ("Is this an ultrasound image?", "Yes, it is.", "x_ray"),
        ("What is shown in this axial CT slice?", "A liver.", "ultrasound"),
        ("Describe this image.", "A CT slice. It shows the liver.", "mr"),
        ("Describe this image.", "It is an X-ray image of the chest.", "ct"),
        ("Describe this image.", "This dermoscopic image shows a lesion.", "fundus"),
        ("Which imaging modality produced this image?", "MRI", "ct"),
        ("Which modality is this?", "Fundus image", "endoscopy"),
        ("Is this an OCT image?", "No", "oct"),
        ("Describe this image.", "This histological image shows a gland.", "ct"),
        ("Is this a CT image?", "Yes", "oct"),
    ],
)
def test_a_modality_that_is_not_the_images_is_seen(question, answer, modality):
    assert wording.modality_contradicts(question, answer, modality)


@pytest.mark.parametrize(
    ("question", "answer", "modality"),
    [
        ("Is this a CT image?", "No", "mr"),
        ("Is this a CT image?", "Yes", "ct"),
        ("Is this a CT image?", "It may be.", "mr"),
        ("What is shown in this CT image?", "A liver.", "ct"),
        ("Describe this image.", "An axial MR slice of the abdomen.", "mr"),
        ("Describe this image.", "It is not a CT image.", "mr"),
        ("Describe this image.", "A CT image would show more.", "mr"),
        ("Describe this image.", "An X-ray image should follow.", "ct"),
        ("Which modality would be best to confirm this?", "MRI", "ct"),
        ("Which modality is this?", "An MR image.", "mr"),
        ("Describe this image.", "This PET/CT image shows uptake.", "pet"),
        ("Where is the fundus?", "The fundus of the stomach is above.", "ct"),
        ("What is it?", "The concept is an act image.", "mr"),
        ("Is this a microscopy image?", "Yes", "microscopy"),
        ("Is this an optical coherence tomography image?", "Yes", "oct"),
        ("Is this a computed tomography image?", "No", "oct"),
    ],
)
def test_a_modality_that_may_be_the_images_is_left_alone(question, answer, modality):
    assert not wording.modality_contradicts(question, answer, modality)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("box [10, 20, 30, 40]", True),  # corners
        ("box [10, 20, 20, 20]", True),  # corner and size
        ("box (0.1, 0.1, 0.3, 0.2)", True),  # shares of 100 x 200
        ("box [100, 100, 300, 200]", True),  # thousandths
        ("box [11, 21, 29, 39]", True),  # to a pixel
        ("box [50, 20, 90, 40]", False),
        ("box [0.5, 0.1, 0.9, 0.2]", False),
    ],
)
def test_a_box_in_any_usual_reading_holds_what_it_should(text, holds):
    [box] = wording.boxes(text)
    assert wording.holds(box, (10, 20, 30, 40), height=200, width=100) is holds


def test_only_four_numbers_in_brackets_are_a_box():
    assert wording.boxes("[1, 2, 3] (1, 2, 3, 4, 5) 1, 2, 3, 4 [a, 2, 3, 4]") == []
