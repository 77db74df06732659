"""A property of command lines: whatever the words, a cell runs to its end, or one line says what to change."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st

from toy_cells import composed, only_cell, rows, write_photo
from toy_properties import holds_for
from twinsight.complaints import explain_error
from twinsight.study import explain

# What a word may set, to what fits and to what does not.
VALUES = {
    "seed": ["1", "-1", "4294967296", "x", "null", "1.5"],
    "protocol": ["paper", "sound", "nosuch", "null"],
    "engine.chunk_size": ["1", "3", "0", "-1", "auto", "x"],
    "loader.batch_size": ["2", "0", "-1", "x"],
    "data.limit": ["1", "0", "-1", "x"],
    "data.root": ["nowhere", "null", "3"],
    "views": ["whole", "simclr", "nosuch", "null"],
    "views.scale": ["[0.2,1]", "[1,0.2]", "[0,0]", "0.5", "[a,b]", "[]"],
    "views.flip": ["1", "2", "-1", "nan", "x"],
    "views.size": ["16", "0", "-3", "8.5"],
    "explainer": ["gradcam", "lafam", "random", "conditional_occlusion", "nosuch", "null", "attention_rollout"],
    "explainer.form": ["elementwise", "canonical", "nosuch"],
    "explainer.layer": ["trunk.stages.0", "nowhere", "3", "''"],
    "explainer.window": ["9", "0", "99", "[4,9]", "[4]", "x"],
    "explainer.nosuch": ["1"],
    "explainers": ["[lafam,random]", "[lafam,lafam]", "[nosuch]", "[]", "controls"],
    "metrics": ["none", "sanity", "localization", "nosuch"],
    "metrics.insertion_deletion.points": ["1", "0", "-1", "1000000", "1.5", "x"],
    "metrics.insertion_deletion.step": ["1000", "0", "x"],
    "metrics.insertion_deletion.granularity": ["4", "0", "33", "1.5"],
    "metrics.insertion_deletion.tolerance": ["0.1", "0", "nan", "x"],
    "metrics.insertion_deletion.insertion_baseline": ["0.5", "nan", "2", "noise", "nosuch"],
    "similarity": ["dot", "negative_distance", "info_nce", "nosuch"],
    "model.widths": ["[4]", "[]", "[0]", "[-1]", "x", "4"],
    "model.blocks": ["1", "0", "-1"],
    "model.input_size": ["8", "1", "0", "-1", "9"],
    "model.hidden": ["0", "-1", "4"],
    "model.embedding": ["null", "0", "1"],
    "pictures.limit": ["1", "-1", "x"],
    "trainer.devices": ["0", "1", "x", "-7"],
    "trainer.precision": ["64-true", "x", "null"],
    "paths.output_root": ["null", "''"],
}
MISSPELT = ["=", "seed", "seed=", "a=b", "+seed=1", "~seed", "~metrics", "~explainer", "seed=[", "seed=${x}", "++x.y=1"]
# Each ended in a traceback once.
MENDED = {
    "model.widths=[]": "`widths`, `hidden` and `embedding` must be positive",
    "model.widths=[-1]": "`widths`, `hidden` and `embedding` must be positive",
    "model.hidden=0": "`widths`, `hidden` and `embedding` must be positive",
    "model.embedding=0": "`widths`, `hidden` and `embedding` must be positive",
    "model.blocks=-1": "`blocks` 0 or more",
    "trainer.precision=64-true": "`trainer.precision=64-true`: pairs are in single precision, use 32-true",
    "~seed": "`seed` is needed: leave out ~seed",
}
WORD = st.sampled_from([f"{key}={value}" for key, values in VALUES.items() for value in values] + MISSPELT)


@holds_for(14, 400, words=st.lists(WORD, min_size=1, max_size=3, unique_by=lambda word: word.partition("=")[0]))
def test_any_words_compose_to_a_cell_that_runs_or_are_refused_in_one_line(words):
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2):
            write_photo(Path(folder, f"{number}.png"), number)
        try:
            config = composed(f"data.root={folder}", f"paths.output_root={folder}/out", *words)
            code = explain(config)
        except Exception as error:
            message = explain_error(error)
            if message is None:
                raise
            assert message.strip()
            return
        assert code == 0
        if not any(word.startswith(("explainers", "paths")) for word in words):
            assert len(rows(only_cell(config))) == (1 if "data.limit=1" in words else 2)


@pytest.mark.parametrize("word", MENDED)
def test_words_that_no_cell_can_be_made_of_are_refused(tmp_path, word):
    write_photo(tmp_path / "0.png", 0)
    with pytest.raises(Exception, match=r"\w") as caught:
        explain(composed(f"data.root={tmp_path}", f"paths.output_root={tmp_path}/out", word))
    assert MENDED[word] in (explain_error(caught.value) or "a traceback")
