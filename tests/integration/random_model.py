"""Weights and a model folder with random parameters: enough to try what is refused."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lrmil_jax import encoders, heads
from lrmil_jax.encoders import pretrained
from lrmil_jax.models import model_folder
from lrmil_jax.tasks.classification import Classification
from lrmil_jax.train.bag_model import BagModel

TASK = Classification(("benign", "tumour"))


def write_weights(path: Path) -> Path:
    """Random weights of the tiny encoder."""
    module = encoders.create("vit-tiny", px=64)
    params = module.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    pretrained.save(path, "vit-tiny", {"px": 64}, params, {})
    return path


def write_model(folder: Path, weights: Path) -> Path:
    """A model folder as `student` exports it, with random parameters."""
    module = heads.create("abmil", num_classes=2, hidden=8)
    params = module.init(jax.random.key(1), jnp.zeros((1, 8, 64)), jnp.ones((1, 8), bool))["params"]
    zeros, ones = np.zeros(64, np.float32), np.ones(64, np.float32)
    head = BagModel("abmil", {"hidden": 8}, TASK, params, zeros, ones)
    head.save(weights.with_name("head.safetensors"))
    facts = {
        "method": "lrmil",
        "task": TASK.facts(),
        "geometry": {"hr_mpp": 0.5, "lr_mpp": 2.0, "patch_px": 64},
        "prepare": {"reader": "auto", "tissue_mpp": 8.0, "min_tissue": 0.25},
        "encoder": {"name": "vit-tiny", "batch": 16, "dtype": "float32"},
        "features_dtype": "float16",
        "made_by": {},
    }
    parts = {"encoder": weights, "head": weights.with_name("head.safetensors")}
    own = {f"{name}.safetensors": path for name, path in parts.items()}
    model_folder.write(folder, facts, members={"fold_1": own}, shared={})
    return folder
