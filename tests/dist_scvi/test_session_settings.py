"""What a session sets once."""

import logging
from collections.abc import Iterator

import anndata as ad
import pytest
import torch

import dist_scvi
from dist_scvi.session_settings import Settings, settings


@pytest.fixture(autouse=True)
def afterwards_as_before() -> Iterator[None]:
    yield
    settings.seed, settings.batch_size = 0, 128


def test_the_seed_of_the_session_is_that_of_models_that_are_given_none(adata: ad.AnnData) -> None:
    dist_scvi.settings.seed = 5
    cells = dist_scvi.open_data(adata)
    assert dist_scvi.SCVI(cells, n_hidden=4).spec.seed == 5
    assert dist_scvi.SCVI(cells, n_hidden=4, seed=2).spec.seed == 2


def test_the_minibatch_of_the_session_is_that_of_training(adata: ad.AnnData) -> None:
    cells, steps = dist_scvi.open_data(adata), []
    for size in (64, 200):
        dist_scvi.settings.batch_size = size
        model = dist_scvi.SCVI(cells, n_hidden=4, n_latent=2)
        model.train(1, train_size=1.0, enable_progress_bar=False)
        steps.append(model.history["kl_weight"].index[-1])
    assert steps == [6, 2]


def test_a_setting_that_there_is_not_is_refused() -> None:
    with pytest.raises(AttributeError, match="settings has no 'sede': it has seed, batch_size"):
        Settings().sede = 3


def test_what_only_scvi_tools_needs_is_taken_with_a_word() -> None:
    with pytest.warns(UserWarning, match=r"^settings\.dl_num_workers has no effect in dist_scvi$"):
        settings.dl_num_workers = 3


def test_threads_and_log_are_those_of_torch_and_logging() -> None:
    settings.num_threads = 1
    assert settings.num_threads == torch.get_num_threads() == 1
    settings.verbosity = logging.ERROR
    assert logging.getLogger("dist_scvi").level == settings.verbosity == logging.ERROR
    settings.verbosity = logging.NOTSET


def test_no_seed_is_seed_0(adata: ad.AnnData) -> None:
    settings.seed = None
    assert dist_scvi.SCVI(dist_scvi.open_data(adata), n_hidden=4).spec.seed == 0


def test_the_log_goes_to_stderr_as_plain_lines_once_it_is_reset(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("dist_scvi")
    before = [*logger.handlers], logger.propagate
    try:
        for _ in range(2):
            settings.reset_logging_handler()
        logging.getLogger("dist_scvi.training").error("one line")
        assert capsys.readouterr().err == "one line\n"
    finally:
        logger.handlers[:], logger.propagate = before
