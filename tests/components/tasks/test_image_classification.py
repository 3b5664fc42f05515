"""Images from bytes or numbers to model inputs, the same way in training and in serving."""

import base64
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from components.errors import ArtifactError, RequestError
from components.tasks import get_task
from components.tasks.config import FeatureConfig, ImageConfig
from components.tasks.image_classification import ImagePreprocessing
from components.tasks.image_codec import BadImage, open_image, to_pixels
from tests.builders import build_dataset, png

TASK = get_task("image-classification")
GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)


def fit(images: list[bytes], **image: object) -> ImagePreprocessing:
    tables = [pa.table({"image": images})]
    fitted = TASK.fit(tables, ["a", "b"], FeatureConfig(image=ImageConfig(**image)))
    assert isinstance(fitted, ImagePreprocessing)
    return fitted


def test_mean_and_std_are_those_of_the_training_pixels() -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    fitted = fit([png(image) for image in images])
    assert fitted.mean == pytest.approx((images / 255).mean((0, 1, 2)), abs=1e-6)
    assert fitted.std == pytest.approx((images / 255).std((0, 1, 2)), abs=1e-6)


def test_collated_training_images_are_normalised_channel_first() -> None:
    fitted = fit([png(COLOUR)], size=8)
    batch = fitted.collate(fitted.encode({"image": [png(COLOUR)] * 2}))["pixel_values"]
    assert batch.shape == (2, 3, 8, 8)
    assert batch.dtype == np.float32
    assert batch.mean((0, 2, 3)) == pytest.approx([0, 0, 0], abs=1e-3)
    assert batch.std((0, 2, 3)) == pytest.approx([1, 1, 1], abs=1e-3)


def test_default_shape_is_the_median_size_at_most_64_and_the_common_channels() -> None:
    small = fit([png(GREY), png(GREY), png(COLOUR)])
    assert (small.size, small.channels) == (8, 1)
    large = fit([png(np.zeros((100, 100, 3), np.uint8))])
    assert (large.size, large.channels, large.std) == (64, 3, (1.0, 1.0, 1.0))


def test_saved_and_loaded_preprocessing_is_the_same(tmp_path: Path) -> None:
    fitted = fit([png(COLOUR)])
    fitted.save(tmp_path)
    assert TASK.load(tmp_path) == fitted
    (tmp_path / "preprocessing.json").write_text("{}")
    with pytest.raises(ArtifactError, match="preprocessing"):
        TASK.load(tmp_path)


def test_a_request_is_preprocessed_exactly_as_the_dataset_was(tmp_path: Path) -> None:
    from components.artifacts.dataset import open_split

    dataset = build_dataset(tmp_path, rows=100, image={"size": 12})
    preprocessing = TASK.load(dataset.path / "preprocess")
    split = open_split(dataset.path, "train")
    stored, encoded = split.take(list(range(len(split))))["pixels"], split.column("image")
    numbers = [np.asarray(open_image(content)).tolist() for content in encoded]
    texts = [base64.b64encode(content).decode() for content in encoded]
    for inputs in (
        numbers,
        texts,
        [f"data:image/png;base64,{text}" for text in texts],
        [np.float32(n) for n in numbers],
    ):
        assert preprocessing.encode(preprocessing.parse_inputs(inputs))["pixels"] == stored
    assert preprocessing.encode(preprocessing.parse_file(encoded[0]))["pixels"] == stored[:1]


@pytest.mark.parametrize(
    "bad",
    [
        "not base64!",
        base64.b64encode(b"no image").decode(),
        [[1, 2], [3]],
        [1, 2],
        [[[[1]]]],
        [[float("nan")]],
        [[256]],
        [[-1]],
        [["a"]],
        [],
        None,
        7,
        {"a": 1},
        [[[1, 2]]],
        True,
    ],
)
def test_a_bad_input_is_refused_by_its_index(bad: object) -> None:
    with pytest.raises(RequestError, match=r"inputs\[1\]"):
        fit([png(GREY)]).parse_inputs([GREY.tolist(), bad])


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    assert "pixels" in str(TASK.check_sample(bomb))
    with pytest.raises(BadImage, match="pixels"):
        open_image(bomb)


def test_torn_images_and_other_formats_are_corrupt() -> None:
    whole = png(COLOUR)
    assert TASK.check_sample(whole) is None
    assert TASK.check_sample(whole[: len(whole) // 2]) is not None
    assert TASK.check_sample(b"%!PS-Adobe-3.0 EPSF-3.0") is not None


def test_sixteen_bit_grey_keeps_its_tones() -> None:
    tones = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024).astype(np.uint16)
    assert to_pixels(png(tones), 8, 1) == (tones >> 8).astype(np.uint8).tobytes()


def test_answers_name_the_likeliest_class() -> None:
    answers = fit([png(GREY)]).predictions(np.array([[0.0, np.log(3)], [5.0, -5.0]]))
    assert answers[0] == {"label": "b", "score": pytest.approx(0.75)}
    assert answers[1]["label"] == "a"


def test_loss_is_smoothed_cross_entropy() -> None:
    import torch

    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    rows = torch.log_softmax(logits, 1)
    plain = -rows[range(2), labels].mean()
    assert TASK.loss(logits, labels, 0.0).item() == pytest.approx(plain.item())
    assert TASK.loss(logits, labels, 0.1).item() == pytest.approx((0.9 * plain - 0.1 * rows.mean()).item())
