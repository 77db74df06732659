"""The evaluation of cells as one LightningModule: explain, score, record, pair by pair."""

import dataclasses
import logging
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from twinsight.data import PairBatch, SkippedPair
from twinsight.engine import EXACT, Execution, NonFiniteEmbedding, PairBank
from twinsight.exits import told_to_stop
from twinsight.models import TwoViewModel, evaluating
from twinsight.study.cell import Cell, asked_of_the_pair
from twinsight.study.records import RecordWriter, packed_array

log = logging.getLogger(__name__)


class Evaluation(pl.LightningModule):
    """Explains and scores every pair for every cell; run it with ``Trainer.predict``.

    Cells share a bank, so that a view, or a version of it, is encoded once for all of them.

    Args:
        model: the network of all cells.
        cells: what to compute.
        done: for each cell, indices of pairs that have a record already.
        chunk_size: perturbed images per forward pass.
        recorded: counts the pairs that have a record, by the name of the cell; kept up to date.
        execution: precision of the passes, and what else they were opted into.
        check: called before each batch; what it raises ends the work.

    Attributes:
        failed: what went wrong, by the name of the cell: where several run, the others go on.
    """

    def __init__(
        self,
        model: TwoViewModel,
        cells: list[Cell],
        done: list[set[int]],
        chunk_size: int,
        recorded: dict[str, int] | None = None,
        execution: Execution = EXACT,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.model = model
        self.explainers = torch.nn.ModuleList(cell.explainer for cell in cells)
        self.cells = cells
        self.done = done
        self.bank = PairBank(model, chunk_size, execution=execution)
        self.recorded: dict[str, int] = {} if recorded is None else recorded
        self.check = check
        self.failed: dict[str, Exception] = {}
        self.writers: list[RecordWriter] = []

    def on_predict_start(self) -> None:
        self.writers = [RecordWriter(cell.folder, self.global_rank) for cell in self.cells]

    def predict_step(self, batch: PairBatch, batch_idx: int) -> int:
        self.check()
        for cell, writer, done in zip(self.cells, self.writers, self.done, strict=True):
            for skipped in batch.skipped:
                if skipped.index not in done:
                    writer.add(_skipped_record(skipped), {"index": skipped.index}, {"index": skipped.index})
                    self.recorded[cell.name] = self.recorded.get(cell.name, 0) + 1
            missing = [place for place, index in enumerate(batch.index) if index not in done]
            if missing and cell.name not in self.failed:
                self._run_beside_others(cell, writer, batch if len(missing) == len(batch) else batch.select(missing))
        self.bank.clear()
        return len(batch)

    def flush(self) -> None:
        """Write whatever has been computed; call it however the run ends."""
        for writer in self.writers:
            writer.flush()

    def _run_beside_others(self, cell: Cell, writer: RecordWriter, batch: PairBatch) -> None:
        """Run a batch of a cell; its failure is its own, unless it is the last, others wait, or all is to end."""
        try:
            self._run(cell, writer, batch)
        except Exception as error:
            if told_to_stop() or self.trainer.world_size > 1 or len(self.failed) + 1 == len(self.cells):
                raise
            self.failed[cell.name] = error
            log.error("%s failed, the others go on: %s: %s", cell.name, type(error).__name__, error)
        else:
            self.recorded[cell.name] = self.recorded.get(cell.name, 0) + len(batch)

    def _run(self, cell: Cell, writer: RecordWriter, batch: PairBatch) -> None:
        started = time.perf_counter()
        forwards, backwards = self.bank.forwards, self.bank.backwards
        try:
            explanation = cell.explainer(
                batch.view1, batch.view2, seeds=batch.seeds, bank=self.bank, partner_view2=batch.partner_view2
            )
        except NonFiniteEmbedding:
            self._name_the_broken_pair(batch)
            raise
        explained = time.perf_counter()
        columns, arrays = score_cell(cell, batch, explanation, self.bank)
        scored = time.perf_counter()
        columns, arrays = {**explanation.columns, **columns}, {**explanation.arrays, **arrays}
        listed = {name: values.tolist() for name, values in columns.items()}
        timing = {
            "explain_seconds": (explained - started) / len(batch),
            "metrics_seconds": (scored - explained) / len(batch),
            "forwards": (self.bank.forwards - forwards) / len(batch),
            "backwards": (self.bank.backwards - backwards) / len(batch),
            "rank": self.global_rank,
            "host": socket.gethostname(),
            "device": str(self.device),
        }
        for place, index in enumerate(batch.index):
            scores = {name: values[place] for name, values in listed.items()}
            writer.add(
                {
                    **_pair_columns(batch, place),
                    **scores,
                    "chunk_size": self.bank.chunk_size,
                    "precision": self._precision,
                    "skipped": None,
                },
                {"index": index, **_array_columns(arrays, place)},
                {"index": index, **timing},
            )

    @property
    def _precision(self) -> str:
        """What passes were asked for in: the trainer's where that is less than single, else the engine's."""
        engine, trainer = self.bank.execution.precision, str(self.trainer.precision)
        return engine if trainer.startswith("32") or engine == "bf16" else trainer

    def _name_the_broken_pair(self, batch: PairBatch) -> None:
        """Raise again with the name of the pair, where it is a view itself that has a broken embedding."""
        with torch.inference_mode(False), torch.no_grad(), evaluating(self.model):
            for place, pair_id in enumerate(batch.pair_id):
                try:
                    self.bank.embedding(batch.view1[place], 1)
                    self.bank.embedding(batch.view2[place], 2)
                except NonFiniteEmbedding as error:
                    raise NonFiniteEmbedding(f"pair {pair_id}: {error}") from None


def score_cell(
    cell: Cell, batch: PairBatch, explanation: Any, bank: PairBank
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Columns ``(B,)`` and curves of all metrics of a cell for what its explainer found for a batch."""
    columns: dict[str, Tensor] = {}
    arrays: dict[str, Tensor] = {}
    if not cell.metrics:
        return columns, arrays
    size = (batch.view1.shape[-2], batch.view1.shape[-1])
    map1, map2 = explanation.resized(size)
    known = {
        "model": bank.model,
        "explainer": cell.explainer,
        "view1": batch.view1,
        "view2": batch.view2,
        "map1": map1,
        "map2": map2,
        "explanation": explanation,
        "partner_view2": batch.partner_view2,
        "geometry": batch.geometry,
        "regions": batch.regions,
        "size": size,
        "seeds": batch.seeds,
        "bank": bank,
    }
    for name, metric in cell.metrics.items():
        result = metric(**{key: known[key] for key in asked_of_the_pair(metric)})
        if isinstance(result, Tensor):
            columns[getattr(getattr(metric, "func", metric), "field", name)] = result
            continue
        arrays |= {f"curve_{key}": curve for key, curve in getattr(result, "curves", {}).items()}
        arrays |= getattr(result, "arrays", {})
        columns |= {
            field.name: value
            for field in dataclasses.fields(result)
            if isinstance(value := getattr(result, field.name), Tensor)
        }
    return columns, arrays


def _pair_columns(batch: PairBatch, place: int) -> dict[str, Any]:
    first, second = batch.geometry[place]
    box1, box2, _ = batch.regions[place] or (None, None, False)
    label = batch.labels[place] if batch.labels else None
    return {
        "index": batch.index[place],
        "pair_id": batch.pair_id[place],
        **({"label": label} if label is not None else {}),
        "partner_id": batch.partner_id[place],
        "seed": int(batch.seeds[place]),
        "photo_size": list(first.photo_size),
        "view1_box": list(first.box),
        "view1_flipped": first.flipped,
        "view2_box": list(second.box),
        "view2_flipped": second.flipped,
        "region1": box1,
        "region2": box2,
    }


def _array_columns(arrays: Mapping[str, Tensor | None], place: int) -> dict[str, Any]:
    packed: dict[str, Any] = {}
    for name, values in arrays.items():
        packed |= packed_array(name, None if values is None else values[place])
    return packed


def _skipped_record(pair: SkippedPair) -> dict[str, Any]:
    return {"index": pair.index, "pair_id": pair.pair_id, "skipped": pair.reason}
