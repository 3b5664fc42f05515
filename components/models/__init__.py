"""The networks and how they are kept and run. See README.md."""

from components.models.build import build_model
from components.models.folder import load_model_folder, save_model_folder
from components.models.predictor import Predictor, load_predictor

__all__ = ["Predictor", "build_model", "load_model_folder", "load_predictor", "save_model_folder"]
