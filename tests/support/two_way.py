"""Pseudo-values of a difference, drawn from the model that plans are made for, without any of their code."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TwoWay:
    """Standard deviations of the effects of a paired difference: see `draw`."""

    pretraining: float = 0.0
    finetuning: float = 0.0
    patients: float = 0.0
    pretraining_patients: float = 0.0
    finetuning_patients: float = 0.0

    def draw(self, rng, difference, num, each, patients):
        """[num, each, patients]: of `num` pre-trainings with `each` fine-tunings."""

        def effect(sd, *shape):
            return sd * rng.standard_normal(shape)

        return (
            difference
            + effect(self.pretraining, num, 1, 1)
            + effect(self.finetuning, num, each, 1)
            + effect(self.patients, 1, 1, patients)
            + effect(self.pretraining_patients, num, 1, patients)
            + effect(self.finetuning_patients, num, each, patients)
        )
