"""The file-name grammar of SA-Med2D-20M, and paths that must stay where they belong."""

import pytest

from unimed.data import names, paths
from unimed.errors import InputError


@pytest.mark.parametrize(
    ("prefix", "modality"),
    [
        ("ct_00", "ct"),
        ("ct_cbf", "ct"),
        ("mr_t1", "mr"),
        ("x_ray", "x_ray"),
        ("fundus_photography", "fundus"),
        ("pet", "pet"),
        ("CT_00", "ct"),
        ("ctx_00", None),
    ],
)
def test_the_modality_is_the_longest_known_prefix_and_not_the_text_before_the_first_underscore(prefix, modality):
    assert names.modality(prefix) == modality


@pytest.mark.parametrize(("path", "found"), [("a", "a.png"), ("a.PNG", "a.PNG"), ("a.Jpeg", "a.Jpeg"), ("a.b", "a.b.png")])
def test_an_ending_is_added_where_none_of_an_image_is_there(path, found):
    assert names.with_ending(path) == found


@pytest.mark.parametrize(("class_id", "merged"), [(7, "s--0007_merged"), (12345, "s--12345_merged")])
def test_a_class_id_has_four_digits_at_least(class_id, merged):
    assert names.merged("s", class_id) == merged
    with pytest.raises(InputError, match="expected <image>--<class>_<instance>"):
        names.mask("masks/ct_00--A--c--z_0001--012_003.png")


@pytest.mark.parametrize("path", ["images/..png", "images/...png"])
def test_a_name_that_stands_for_a_folder_is_no_name(path):
    with pytest.raises(InputError, match=r"expected a path images/<name>\.png"):
        names.image(path)


@pytest.mark.parametrize(
    ("path", "is_plain"),
    [("a/b c.jpg", True), ("a.JPEG", True), ("a/../b.png", False), ("/a.png", False), ("a\u200b.png", False), ("a.gif", False)],
)
def test_a_plain_path_stays_below_where_it_is_looked_for_and_can_be_shown(path, is_plain):
    assert names.is_plain(path) == is_plain


def test_a_name_that_is_made_tells_folders_apart_and_fits_a_file_system():
    one, two = (names.named_after(f"{folder}/x.png", "ct", "A") for folder in ("left", "right"))
    assert one.case != two.case and one == names.named_after("left/x.png", "ct", "A")
    assert len(names.named_after(f"{'x' * 150}.png", "ct", "A").case) == 40 + 1 + 12
    with pytest.raises(InputError, match="expected a data set with a short name"):
        names.named_after("x.png", "ct", "A" * 180)


def test_an_image_name_says_modality_data_set_case_and_slice():
    found = names.image("images/x_ray--Set-1_b--case--with--dashes--2d_none.png")
    assert (found.modality, found.dataset, found.case, found.slice) == ("x_ray", "Set-1_b", "case--with--dashes", "2d_none")


def test_a_mask_name_says_image_class_and_instance():
    found = names.mask("masks/ct_00--A--c--z_0001--0012_003.png")
    assert (found.image, found.class_id, found.instance) == ("ct_00--A--c--z_0001", 12, 3)


def test_the_name_of_a_union_is_read_as_it_is_made():
    found = names.mask(f"masks_merged/{names.merged('ct_00--A--c--z_0001', 7)}.png")
    assert (found.image, found.class_id, found.instance) == ("ct_00--A--c--z_0001", 7, None)


@pytest.mark.parametrize(
    "path",
    [
        "images/../masks/ct_00--A--c--z_0001.png",
        "../images/ct_00--A--c--z_0001.png",
        "/images/ct_00--A--c--z_0001.png",
        "masks/ct_00--A--c--z_0001.png",
        "images/ct_00--A--z_0001.png",
        "images/ct_00--A--c--z_0001.tif",
        "images/sonar_00--A--c--z_0001.png",
        "images/ct_00--A--c\0--z_0001.png",
    ],
)
def test_a_path_of_another_grammar_is_refused_with_what_was_found(path):
    with pytest.raises(InputError, match=r"expected .*, found "):
        names.image(path)


@pytest.mark.parametrize("relative", ["../secret", "a/../../secret", "/etc/passwd", "link/secret", "a\0b"])
def test_a_path_that_leaves_its_root_is_refused(tmp_path, relative):
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"expected .*, found "):
        paths.inside(tmp_path / "root", relative)


def test_a_root_that_is_itself_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert paths.content(tmp_path / "link", "file") == b"x"
