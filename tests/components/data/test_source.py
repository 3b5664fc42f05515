"""What a source string names."""

from pathlib import Path

import pytest

from components.data.source import find_source
from components.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def names(source: str, base: Path) -> list[str]:
    return [Path(file.path).relative_to(base).as_posix() for file in find_source(source, base).files]


def test_files_come_in_the_order_of_their_names_and_others_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "b.csv", "a.csv", "README.md")
    assert names("*", tmp_path) == ["a.csv", "b.csv"]
    assert names("b.csv", tmp_path) == ["b.csv"]


def test_the_first_folder_is_the_class_of_an_image(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "dog/deep/2.JPG", ".hidden/3.png", "dog/.4.png", "notes.txt")
    found = find_source(str(tmp_path))
    assert (found.kind, [file.label for file in found.files]) == ("images", ["cat", "dog"])


def test_a_glob_of_images_takes_the_folder_each_lies_in(tmp_path: Path) -> None:
    touch(tmp_path, "set/cat/1.png", "set/dog/2.png")
    assert [file.label for file in find_source("set/*/*.png", tmp_path).files] == ["cat", "dog"]


def test_a_link_in_a_circle_ends(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "cat" / "loop").symlink_to(tmp_path)
    assert len(find_source(str(tmp_path)).files) == 2


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ([], "none.csv", "no such file"),
        ([], "*.csv", "no such file"),
        (["a.docx"], "a.docx", "no file of a known kind"),
        (["a.csv", "b.jsonl"], "*", "mixes csv and jsonl"),
        (["1.png"], "1.png", "no class folder|known"),
        ([], "builtin://faces", "builtin://digits"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, files: list[str], source: str, message: str) -> None:
    touch(tmp_path, *files)
    if files == ["1.png"]:
        source = "."
    with pytest.raises(DataError, match=message):
        find_source(source, tmp_path)
