import pytest
import torch
from tinytraining import tiny

from brats_cli.core.train.optimizer import draw_near, make_optimizer


@pytest.mark.parametrize(
    ("optimizer", "step"),
    [
        # Adam's first step is the learning rate, whatever the gradient; weight decay, 0.1 * 2, is
        # part of the gradient.
        ("adam", 0.01),
        # Decoupled: the learning rate times 0.1 * 2 besides.
        ("adamw", 0.01 + 0.01 * 0.2),
        # Gradient 3 + 0.2, and Nesterov's momentum of 0.99 at once.
        ("sgd", 0.01 * 3.2 * 1.99),
    ],
)
def test_the_first_step_of_each_optimiser_by_hand(optimizer, step):
    weight = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(weight.weight, 2.0)
    config = tiny(optimizer=optimizer, learning_rate=0.01, weight_decay=0.1)
    optimiser = make_optimizer(config, weight)
    weight(torch.tensor([[3.0]])).sum().backward()
    optimiser.step()
    assert weight.weight.item() == pytest.approx(2 - step, rel=1e-5)


def test_an_average_moves_by_its_share_and_takes_counts_over():
    mean, network = torch.nn.BatchNorm3d(1), torch.nn.BatchNorm3d(1)
    torch.nn.init.constant_(mean.weight, 1.0)
    torch.nn.init.constant_(network.weight, 5.0)
    network.running_mean.fill_(10)
    network.num_batches_tracked.fill_(7)
    draw_near(mean, network, 0.25)
    assert mean.weight.item() == pytest.approx(2)
    assert mean.running_mean.item() == pytest.approx(2.5)
    assert mean.num_batches_tracked.item() == 7
