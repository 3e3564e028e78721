import pytest
import torch
import torch.nn.functional as F

from normlib.errors import UnknownNameError
from normlib.training import cross_entropy, make_loss, squared_error

G = torch.Generator().manual_seed(0)
OUTPUT = torch.randn(12, 5, generator=G, dtype=torch.float64)
CLASSES = torch.randint(5, (12,), generator=G)
SOFT = torch.rand(12, 5, generator=G, dtype=torch.float64)
SOFT /= SOFT.sum(1, keepdim=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("target", [CLASSES, SOFT], ids=["classes", "probabilities"])
def test_label_smoothing_is_its_definition_and_torchs(smoothing, target):
    measure = make_loss(f"cross_entropy:smoothing={smoothing}")
    p = target if target.is_floating_point() else torch.eye(5, dtype=torch.float64)[target]
    q = (1 - smoothing) * p + smoothing / 5
    slow = -(q * (OUTPUT - OUTPUT.logsumexp(1, keepdim=True))).sum() / 12
    torch.testing.assert_close(measure(OUTPUT, target), slow, rtol=1e-12, atol=0)
    assert torch.equal(measure(OUTPUT, target), F.cross_entropy(OUTPUT, target, label_smoothing=smoothing))


def test_a_bare_name_is_the_function_itself_and_a_function_passes():
    assert make_loss("cross_entropy") is cross_entropy
    assert make_loss("squared_error") is squared_error
    assert make_loss(F.mse_loss) is F.mse_loss


@pytest.mark.parametrize(
    "spec", ["cross_entropi", "cross_entropy:smothing=0.1", "cross_entropy:target=1", "squared_error:target=1"]
)
def test_what_is_no_loss_is_refused(spec):
    with pytest.raises(UnknownNameError):
        make_loss(spec)
