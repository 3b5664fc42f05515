import numpy as np
import pytest
import torch

from components.artifacts.manifest import content_digest, scan_files
from components.errors import ArtifactError
from components.models import build_model, load_model_folder, load_predictor, save_model_folder
from components.models.build import parse_model_config
from components.models.folder import model_values
from components.tasks import get_task
from components.tasks.image_classification import ImagePreprocessing

PREPROCESSING = ImagePreprocessing(classes=("a", "b"), size=8, channels=1, mean=(0.5,), std=(0.2,))


def write(folder, seed=0, **values):
    config = parse_model_config({"architecture": "cnn", "channels": [4], **values})
    torch.manual_seed(seed)
    module = build_model(config, PREPROCESSING.model_inputs(), 2).eval()
    values = model_values("image-classification", config, PREPROCESSING.model_inputs(), PREPROCESSING.classes, module)
    save_model_folder(folder, values, PREPROCESSING, module.state_dict())
    return module


def pixels():
    return {"pixel_values": np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)}


def test_loaded_network_gives_the_same_logits(tmp_path):
    module = write(tmp_path)
    loaded, values = load_model_folder(tmp_path)
    inputs = torch.as_tensor(pixels()["pixel_values"])
    assert torch.equal(loaded(inputs), module(inputs))
    assert values["classes"] == ["a", "b"]


def test_equal_models_have_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name)
    digests = {content_digest(scan_files(tmp_path / name, frozenset())) for name in ("one", "two")}
    assert len(digests) == 1


def test_predictors_in_torch_and_onnx_agree(tmp_path):
    module = write(tmp_path)
    expected = load_predictor(tmp_path)
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        module,
        kwargs={"pixel_values": torch.as_tensor(pixels()["pixel_values"])},
        dynamic_shapes={"pixel_values": {0: batch}},
        dynamo=True,
        verbose=False,
    )
    program.save(tmp_path / "model.onnx")
    predictor = load_predictor(tmp_path)
    assert type(predictor).__name__ == "OnnxPredictor"
    np.testing.assert_allclose(predictor.logits(pixels()), expected.logits(pixels()), atol=1e-5)  # fp32 rounding
    assert predictor.classes == ("a", "b")
    assert predictor.preprocessing == get_task("image-classification").load(tmp_path / "preprocess")


def test_weights_of_another_network_are_refused(tmp_path):
    write(tmp_path / "small")
    write(tmp_path / "large", channels=[8])
    (tmp_path / "small" / "model.safetensors").replace(tmp_path / "large" / "model.safetensors")
    with pytest.raises(ArtifactError, match="cannot be loaded into the network"):
        load_model_folder(tmp_path / "large")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"neither model\.onnx nor model\.safetensors"):
        load_predictor(tmp_path)


def test_a_pretrained_network_keeps_its_own_shape(tmp_path):
    source = build_model(
        parse_model_config({"architecture": "vit", "patch_size": 2, "hidden_size": 8}),
        {"image_size": 8, "channels": 1},
        2,
    )
    source.encoder.save_pretrained(tmp_path / "source")
    config = parse_model_config({"architecture": "vit", "patch_size": 4, "pretrained": str(tmp_path / "source")})
    module = build_model(config, PREPROCESSING.model_inputs(), 2).eval()
    values = model_values("image-classification", config, PREPROCESSING.model_inputs(), PREPROCESSING.classes, module)
    save_model_folder(tmp_path / "model", values, PREPROCESSING, module.state_dict())
    loaded, values = load_model_folder(tmp_path / "model")
    inputs = torch.as_tensor(pixels()["pixel_values"])
    assert torch.equal(loaded(inputs), module(inputs))
    assert str(tmp_path) not in str(values)
