"""Specs name losses with their settings; what is no loss is refused in a sentence."""

import pytest
import torch
import torch.nn.functional as F

import fastloss
from fastloss.ner.data import DataError
from fastloss.ner.losses import DEFAULT_LOSSES, IGNORE, KINDS, make_criterion, parse_loss

COUNTS = torch.tensor([90, 6, 4])


@pytest.fixture
def decisions():
    torch.manual_seed(0)
    target = torch.randint(0, 3, (40,))
    target[::7] = IGNORE
    return torch.randn(40, 3), target


def call(spec, decisions):
    return make_criterion(parse_loss(spec), COUNTS)(*decisions)


def test_specs_set_the_options_of_the_functions(decisions):
    expected = {
        "ce": F.cross_entropy(*decisions, reduction="sum"),
        "lsr": F.cross_entropy(*decisions, label_smoothing=0.1, reduction="sum"),
        "lsr:0.05": F.cross_entropy(*decisions, label_smoothing=0.05, reduction="sum"),
        "focal:gamma=0": F.cross_entropy(*decisions, reduction="sum"),
        "focal": fastloss.focal_loss(*decisions, gamma=2.0, reduction="sum"),
        "focal:1": fastloss.focal_loss(*decisions, gamma=1.0, reduction="sum"),
        "poly:epsilon=2": fastloss.poly_loss(*decisions, epsilon=2.0, reduction="sum"),
        "ghmc": fastloss.ghmc_loss(*decisions, bins=10, reduction="sum"),
        "ghmc:bins=30,normalizer=bins": fastloss.ghmc_loss(*decisions, bins=30, normalizer="bins", reduction="sum"),
        "torch.nn:CrossEntropyLoss:label_smoothing=0.1": F.cross_entropy(
            *decisions, label_smoothing=0.1, reduction="sum"
        ),
    }
    for spec, value in expected.items():
        torch.testing.assert_close(call(spec, decisions), value, msg=spec)


def test_balanced_weights_give_every_tag_the_same_share_of_the_training_decisions(decisions):
    weight = COUNTS.sum() / (3 * COUNTS)
    torch.testing.assert_close(
        call("ce:weight=balanced", decisions), F.cross_entropy(*decisions, weight, reduction="sum")
    )
    assert (weight * COUNTS).sum() == pytest.approx(COUNTS.sum().item())


def test_momentum_keeps_a_state_of_its_own_in_every_module(decisions):
    loss = parse_loss("ghmc:bins=30,momentum=0.9")
    first, second = (make_criterion(loss, COUNTS) for _ in range(2))
    first(*decisions)
    assert first.loss.num_updates.sum() > 0 and second.loss.num_updates.sum() == 0


def test_a_class_of_ones_own_that_returns_the_mean_is_summed(decisions, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\nclass Mean(torch.nn.Module):\n"
        "    def __init__(self, scale=1.0):\n        super().__init__()\n        self.scale = scale\n"
        "    def forward(self, x, y):\n        return self.scale * torch.nn.functional.cross_entropy(x, y)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.testing.assert_close(call("mine:Mean:scale=2", decisions), 2 * F.cross_entropy(*decisions, reduction="sum"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hinge", '"hinge" is no loss; it should be one of ce, lsr, focal, poly, ghmc'),
        ("focal:gamma=-1", 'the loss "focal:gamma=-1" cannot be used: gamma is -1'),
        ("focal:gamma=x", "cannot be used"),
        ("ghmc:bin=3", "unexpected keyword argument 'bin'"),
        ("ce:3", '"3" in the loss "ce:3" should be a setting of the form name=value'),
        ("ce:weight=3", "should be balanced"),
        ("os:nothing", "cannot be imported"),
        ("no_such_package:Loss", "cannot be imported: No module named"),
        ("torch.nn:Linear", "cannot be used"),
        ("builtins:print", "cannot be used"),
        ("a:b:c:d", "is no loss"),
    ],
)
def test_what_is_no_loss_is_refused_in_a_sentence(spec, message):
    with pytest.raises(DataError) as error:
        parse_loss(spec)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_every_loss_has_a_file_name_and_a_title_of_its_own():
    losses = [parse_loss(spec) for spec in (*DEFAULT_LOSSES, *KINDS, "lsr:0.05", "ghmc:bins=30")]
    distinct = {loss.name for loss in losses}
    assert len({loss.slug for loss in losses}) == len({loss.title for loss in losses}) == len(distinct)
    assert all("/" not in loss.slug and ":" not in loss.slug for loss in losses)
    assert parse_loss("ghmc:bins=30,momentum=0.9").title == "GHM-C, bins 30, momentum 0.9"
