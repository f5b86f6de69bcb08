"""The loaded model behind the server: each slide is predicted as `lrmil predict` does."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lrmil_jax import programs
from lrmil_jax.data import slide_files
from lrmil_jax.errors import SlideError
from lrmil_jax.models import model_folder, slide_list
from lrmil_jax.models.slide_model import SlideModel
from lrmil_jax.patches import beside
from lrmil_jax.processes import Workers
from lrmil_jax.serve.jobs import Job

# Of model.json; the hashes of its files are in `model_sha256`.
_FACTS = ("method", "task", "geometry", "prepare", "encoder", "features_dtype", "members",
          "thresholds", "temperature", "made_by")  # fmt: skip


class ModelPredictor:
    """See `serve.worker.Predictor`.

    Args:
      model: a loaded model folder.
      readers: processes that read slides.
    """

    def __init__(self, model: SlideModel, readers: Workers):
        self._model, self._readers = model, readers
        self._identity = model_folder.identity(model.folder)
        told, card = model_folder.read_facts(model.folder), model.folder / "README.md"
        self.facts: dict[str, Any] = {name: told.get(name) for name in _FACTS}
        self.facts |= {
            "model_sha256": self._identity,
            "card": card.read_text(encoding="utf-8") if card.is_file() else None,
        }

    def predict(self, job: Job, folder: Path, on_progress: Callable[[int, int], None]) -> dict:
        """See `serve.worker.Predictor`; in a folder of the slide's name, as `slide_list.predict`
        writes it."""
        table = slide_files.one_slide(Path(job.path), job.mpp)
        table = table.assign(slide_id=job.slide_id, patient_id=job.slide_id)
        done, failed = slide_list.predict(
            self._model,
            table,
            folder,
            trust_mpp=job.trust_mpp,
            readers=self._readers,
            identity=self._identity,
            on_progress=lambda _, read, total: on_progress(read, total),
        )
        if failed:
            raise SlideError(failed[0]["reason"])
        return done[0]


@contextlib.contextmanager
def opened(folder: Path, *, seconds: float | int) -> Iterator[ModelPredictor]:
    """A model folder, loaded, with processes that read slides.

    Args:
      folder: of the model.
      seconds: that a group of a slide's patches may take to be read; 0: any.

    Raises:
      WeightsError: the model folder is not whole.
    """
    with beside.slide_readers(0, seconds=seconds, apart=True) as readers:
        readers.begin()  # it starts while the model is loaded
        programs.keep()
        yield ModelPredictor(model_folder.load(folder), readers)
