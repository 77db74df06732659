"""Configurations of a multirun: the same as Hydra's, composed far less often."""

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from twinsight.config import conf_folder, register_schema
from twinsight.study.sweep import axes_of, compositions


@pytest.fixture
def composer():
    """``compose(words)``, which counts its calls, and Hydra's loader."""
    register_schema()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):

        def compose(words):
            compose.calls += 1
            return hydra.compose("config", list(words))

        compose.calls = 0
        yield compose, GlobalHydra.instance().config_loader()


def plain(config):
    return OmegaConf.to_container(config, resolve=False)


@pytest.mark.parametrize(
    ("words", "count", "most"),
    [
        (["model=demo_simclr,demo_barlow_twins", "explainer=gradcam,lafam,random", "seed=0,1,2"], 18, 5),
        (["explainer=conditional_occlusion", "explainer.window=8,16", "explainer.stride=2,4", "seed=1"], 4, 2),
        # Choices that touch one place are composed together, and so are sets of explainers.
        (["experiment=paper_table", "explainers=[gradcam,lafam],controls", "metrics=default,none"], 4, 4),
        (["+explainer.layer=null,trunk.stages.1", "explainer=gradcam", "protocol=sound,paper"], 4, 4),
        (["explainer=gradcam"], 1, 1),
    ],
)
def test_combinations_are_those_of_hydra(composer, words, count, most):
    compose, loader = composer
    found = list(compositions(axes_of(words, loader), compose, loader))
    assert (len(found), compose.calls) == (count, compose.calls)
    assert compose.calls <= most
    for combination, config in found:
        assert plain(config) == plain(compose(combination))


def test_values_are_set_without_composing_again(composer):
    compose, loader = composer
    found = list(compositions(axes_of(["seed=range(0,50)", "data.limit=1,2"], loader), compose, loader))
    assert [(config.seed, config.data.limit) for _, config in found] == [(s, n) for s in range(50) for n in (1, 2)]
    assert compose.calls == 2  # the first, and the last for comparison


def test_a_value_that_one_choice_lacks_fails_as_it_does_in_hydra(composer):
    compose, loader = composer
    words = ["explainer=conditional_occlusion,gradcam", "explainer.window=8,16"]
    with pytest.raises(Exception, match=r"Could not override 'explainer\.window'") as caught:
        list(compositions(axes_of(words, loader), compose, loader))
    assert isinstance(caught.value.__cause__, OmegaConfBaseException)


def test_choices_that_look_at_each_other_are_composed_in_full(composer):
    """Patches know choices one at a time; what only two together bring must not get lost."""
    compose, loader = composer

    def entangled(words):
        config = compose(words)
        if config.seed == 1 and config.data.limit == 2:
            config.protocol = "paper"
        return config

    found = list(compositions(axes_of(["seed=0,1", "data.limit=1,2"], loader), entangled, loader))
    assert [config.protocol for _, config in found] == ["sound", "sound", "sound", "paper"]
