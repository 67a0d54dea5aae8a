from pathlib import Path

import pytest

from brats_cli.core.errors import OutputExistsError
from brats_cli.core.predict.outputs import complete, require_outputs_writable
from brats_cli.core.predict.predictor import PredictConfig


def test_a_case_is_complete_with_all_that_was_asked_for(jobs):
    job = jobs[0]
    config = PredictConfig(uncertainty=True)
    assert not complete(job, config)
    job.file.write_text("")
    assert complete(job, PredictConfig())
    assert not complete(job, config)
    Path(str(job.file).replace(".nii.gz", "_uncertainty.nii.gz")).write_text("")
    assert complete(job, config)


def test_every_output_must_be_free(jobs):
    config = PredictConfig(probabilities=True)
    require_outputs_writable(jobs, config, overwrite=False)
    beside = Path(str(jobs[-1].file).replace(".nii.gz", "_probabilities.nii.gz"))
    beside.write_text("")
    with pytest.raises(OutputExistsError, match=r"_probabilities.*exists already"):
        require_outputs_writable(jobs, config, overwrite=False)
    require_outputs_writable(jobs, config, overwrite=True)
