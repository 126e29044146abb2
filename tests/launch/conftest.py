"""What tests of launchers share."""

from collections.abc import Iterator

import hydra
import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins

from gradexp.choices import CONFIG_DIR
from gradexp.cli.about import RUN
from gradexp.cli.composing import store_config
from gradexp.cli.hydra_internals import version_base
from gradexp.own_parts import typed


@pytest.fixture(scope="module")
def loader() -> Iterator[ConfigLoader]:
    """Hydra's own loader of our configs."""
    store_config(RUN, None, typed(()))
    Plugins.instance()
    with hydra.initialize_config_dir(str(CONFIG_DIR), **version_base):
        yield GlobalHydra.instance().config_loader()
