"""From a slide file to a prediction: one class for models on LR patches, on HR patches, and for
those whose LR patches choose the HR patches; of one member or of several."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax

from lrmil_jax.data import schema, slide_jobs
from lrmil_jax.data.patient_bags import side_by_side
from lrmil_jax.errors import SlideError, UserError
from lrmil_jax.models.cell_guide import CellGuide
from lrmil_jax.models.guided import Guide
from lrmil_jax.models.result import SlideResult
from lrmil_jax.models.visit import OnProgress, Visit, planned
from lrmil_jax.patches import beside
from lrmil_jax.processes import Workers
from lrmil_jax.slides.annotations import Annotations
from lrmil_jax.tasks import Task
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.train.encode import BatchEncoder, stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlideModel:
    """A slide classifier; `lrmil_jax.load_model` loads one.

    Attributes:
      members: an encoder of the patches that are read first and a head, each; what they predict
        and their attention are averaged.
      settings: how tissue and lattice are found.
      dtype: type in which features were stored in training.
      high: HR patches are read instead of LR patches.
      guide: what chooses HR patches by LR patches; the heads then read those.
      thresholds: on the probability of the second of two classes, as validation patients chose.
      temperature: that makes probabilities right (`Task.tempered`), as they chose; or None.
      folder: where it was loaded from, or None.
    """

    members: Sequence[tuple[BatchEncoder, BagModel]]
    settings: slide_jobs.TilingSettings
    dtype: str
    high: bool = False
    guide: Guide | CellGuide | None = None
    thresholds: dict[str, float] = dataclasses.field(default_factory=dict)
    temperature: float | None = None
    folder: Path | None = None

    @property
    def task(self) -> Task:
        """What is predicted."""
        return self.members[0][1].task

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the probabilities; () of a task without classes."""
        return self.task.classes

    def predict(
        self,
        path: Path | str,
        mpp: float | None = None,
        *,
        trust_mpp: bool = False,
        annotations: Annotations | None = None,
    ) -> SlideResult:
        """Classifies one slide.

        Args:
          path: the slide file.
          mpp: um/px of its level 0, if the file's own is missing or wrong.
          trust_mpp: `mpp` wins even where the file and its objective agree against it.
          annotations: what was drawn on it in QuPath: nothing outside is tissue.

        Raises:
          SlideError: it cannot be opened, has no um/px, no tissue or no readable patch.
        """
        (result,) = self.predict_many([path], [mpp], trust_mpp=trust_mpp, annotations=[annotations])
        if isinstance(result, UserError):
            raise result
        return result

    def predict_many(
        self,
        paths: Iterable[Path | str],
        mpp: Iterable[float | None] | None = None,
        patients: Sequence[str] | None = None,
        *,
        trust_mpp: bool = False,
        readers: Workers | None = None,
        annotations: Iterable[Annotations | None] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Iterator[SlideResult | UserError]:
        """Classifies slide after slide without a pause between them, and gives results in order.

        Slides are opened and searched for tissue ahead, and batches go across slides.

        Args:
          paths: the slide files.
          mpp: um/px of each, as for `predict`; None is the files' own.
          patients: of each, for a model of patients' bags (`data.patient=bag`): those that follow
            each other under one name are one bag. Other models predict each slide alone.
          trust_mpp: as for `predict`.
          readers: processes that read slides (`patches.beside.slide_readers`), so that a decoder
            that crashes or hangs loses one slide; None reads in threads of this process, which
            such a decoder ends.
          annotations: of each, as for `predict`.
          on_progress: called with a slide's path, its regions (LR patches, or their children) read
            so far and all of them, in the thread that reads.

        Yields:
          The result of each slide, or the mistake (`SlideError`) that kept it from having one.
        """
        paths = [Path(path) for path in paths]
        mpp = [None] * len(paths) if mpp is None else list(mpp)
        names = patients if self.task.one_bag and patients is not None else range(len(paths))
        with contextlib.ExitStack() as stack:
            if readers is None:
                readers = stack.enter_context(beside.slide_readers(1))
            drawn = [None] * len(paths) if annotations is None else annotations
            slides = zip(paths, mpp, drawn, strict=True)
            visits = planned(
                slides,
                self.settings,
                readers,
                high=self._reads_high,
                trust_mpp=trust_mpp,
                on_progress=on_progress,
            )
            encoded = self._read(visits) if self.guide is None else self._read_guided(visits)
            for _, together in itertools.groupby(names):
                yield from self._results(list(itertools.islice(encoded, len(list(together)))))

    def _results(
        self, bag: list[tuple[Visit, list | UserError]]
    ) -> Iterator[SlideResult | UserError]:
        """Of the slides of one bag; those that could not be read are left out of it."""
        readable = [(visit, rows) for visit, rows in bag if not isinstance(rows, UserError)]
        predictions = iter(self._predictions(readable))
        for visit, features in bag:
            try:
                if isinstance(features, UserError):
                    raise features
                yield self._result(visit, features, next(predictions))
            except UserError as error:
                yield error

    @property
    def _reads_high(self) -> bool:
        return self.high or self.guide is not None

    def _read(self, visits: Iterable[Visit]) -> Iterator[tuple[Visit, list | UserError]]:
        """Every slide with its features for each member, as they are stored in training."""
        encoders = [encoder for encoder, _ in self.members]
        patches = ((visit, visit.patches(high=self.high)) for visit in visits)
        since = time.perf_counter()
        for visit, encoded in stream(encoders, patches):
            if visit.sources:
                since = visit.phase("read", "encode", since)
            yield visit, encoded if isinstance(encoded, UserError) else self._rows(visit, encoded)

    def _rows(
        self, visit: Visit, encoded: list[dict[str, np.ndarray]]
    ) -> list[Float[np.ndarray, "N D"]] | SlideError:
        if not encoded[0]:
            count = len(visit.overview.lattice.lr_xy)
            return SlideError(f"{visit.path}: none of its {count} patches could be decoded")
        target = schema.FEATURE_DTYPES[self.dtype]
        return [output["embedding"].astype(target) for output in encoded]

    def _read_guided(self, visits: Iterable[Visit]) -> Iterator[tuple[Visit, list | UserError]]:
        """Every slide with what its LR patches chose and the HR features of that."""
        chosen = self._choices(self._read(visits))
        since = time.perf_counter()
        for (visit, choices), encoded in stream([self.guide.hr_encoder], chosen):
            if len(visit.sources) > 1:
                since = visit.phase("read_hr", "encode_hr", since)
            if isinstance(encoded, UserError):
                yield visit, encoded
            elif not encoded[0]:
                yield visit, SlideError(f"{visit.path}: none of the chosen regions can be decoded")
            else:
                yield visit, [choices, encoded[0]["embedding"].astype(
                    schema.FEATURE_DTYPES[self.dtype])]  # fmt: skip

    def _choices(self, encoded: Iterable[tuple[Visit, list | UserError]]):
        """After LR: what to read at HR, for `stream`."""
        for visit, features in encoded:
            if isinstance(features, UserError):
                yield (visit, None), _raising(features)
                continue
            start = time.perf_counter()
            child_mask = visit.sources[0].places()["child_mask"]
            heads = [head for _, head in self.members]
            choices = self.guide.choose(heads, features, child_mask, visit.path.stem)
            regions_read = visit.sources[0].regions_read
            visit.seconds["select"] = time.perf_counter() - start
            chosen = regions_read[choices.union].tolist()
            yield (visit, choices), visit.patches(high=True, chosen=chosen)

    def _predictions(self, bag: list[tuple[Visit, list]]) -> Iterable[list | None]:
        """For each slide of a bag what every member predicts, and the slide's attention; None for
        models that choose HR patches, which look at each slide alone."""
        if self.guide is not None or not bag:
            return [None] * len(bag)
        start = time.perf_counter()
        places = [visit.sources[0].places()["xy"] for visit, _ in bag]
        edges = np.cumsum([len(xy) for xy in places])[:-1]
        xy = places[0] if len(bag) == 1 else side_by_side(places)
        members = []
        for number, (_, head) in enumerate(self.members):
            rows = np.concatenate([features[number] for _, features in bag])
            values, attention = _predicted(head, rows, xy)
            members.append([(values, part) for part in np.split(attention, edges)])
        for visit, _ in bag:
            visit.seconds["mil"] = (time.perf_counter() - start) / len(bag)
        return map(list, zip(*members, strict=True))

    def _result(self, visit: Visit, features: list, predictions: list | None) -> SlideResult:
        lattice, guidance = visit.overview.lattice, None
        if self.guide is None:
            places, encoded = visit.sources[0].places(), sum(map(len, features))
            side = lattice.child_side if self.high else lattice.lr_side
        else:
            start = time.perf_counter()
            choices, rows = features
            predictions = self.guide.predict(
                [head for _, head in self.members], choices, rows, visit
            )
            places, side = visit.sources[0].places(), lattice.lr_side
            encoded = len(self.members) * len(places["xy"]) + len(rows)
            guidance = self.guide.guidance(choices, places["xy"], side)
            visit.seconds["mil"] = time.perf_counter() - start
        mean = np.mean([values for values, _ in predictions], axis=0)
        columns = self.task.said(mean[None])
        return SlideResult(
            probabilities=dict(zip(self.task.parts, mean.tolist(), strict=True)),
            prediction={name: _plain(column[0]) for name, column in columns.items()},
            sentence=self.task.sentence(mean),
            attention=np.mean([attention for _, attention in predictions], axis=0),
            xy=places["xy"],
            side=side,
            encoded=encoded,
            guidance=guidance,
            **visit.facts(),
        )


def _predicted(
    head: BagModel, rows: Float[np.ndarray, "N D"], xy: Int[np.ndarray, "N 2"]
) -> tuple[Float[np.ndarray, " V"], Float[np.ndarray, " N"]]:
    logits, attention = head.predict(rows, xy)
    return head.task.link(logits), softmax(attention)


def _plain(value: np.generic | str) -> float | int | str:
    """As JSON holds it."""
    return value.item() if isinstance(value, np.generic) else value


def _raising(error: UserError) -> Iterator:
    raise error
    yield
