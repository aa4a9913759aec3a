"""Networks that judge reconstructions."""

import torch

from tests.training.tiny_codec import tones
from training_dacse.codec.discriminators import Discriminators, discriminator_loss, generator_losses


def test_discriminators_learn_to_tell_noise_from_tones():
    torch.manual_seed(0)
    judges = Discriminators(width=2)
    optimizer = torch.optim.Adam(judges.parameters(), 5e-3)
    real, fake = next(tones(4, 2400, 0)), 0.3 * torch.randn(4, 2400)
    before = discriminator_loss(judges(real), judges(fake))
    for _ in range(60):
        optimizer.zero_grad()
        discriminator_loss(judges(real), judges(fake)).backward()
        optimizer.step()
    after = discriminator_loss(judges(real), judges(fake))
    assert after < 0.5 * before
    adversarial, matching = generator_losses(judges(real), judges(real))
    assert matching == 0 and adversarial < generator_losses(judges(real), judges(fake))[0]


def test_verdicts_do_not_depend_on_level_or_offset():
    judges, waveform = Discriminators(width=2), next(tones(2, 2400, 0))
    for here, there in zip(judges(waveform), judges(0.1 * waveform + 0.2), strict=True):
        torch.testing.assert_close(here[-1], there[-1], rtol=1e-3, atol=1e-4)  # float32 after the offset is taken out
