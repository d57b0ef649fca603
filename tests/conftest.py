"""What every test shares: one thread, so that results do not depend on the machine's cores; and a process as it was.

The libraries that `integrations` adapts to turn switches of the whole process when they are imported: TorchRL the start
method of processes, TorchRL and skrl the validation of every distribution's arguments. Other tests must not depend on
whether they were imported before.
"""

import multiprocessing

import hypothesis
import pytest
import torch
from torch.distributions import Distribution

torch.set_num_threads(1)
# A busy machine is no fault of a test.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
multiprocessing.set_start_method(multiprocessing.get_start_method(), force=True)


@pytest.fixture(autouse=True)
def _distributions_validate_their_arguments():
    Distribution.set_default_validate_args(__debug__)
