"""What a model card is about: a bundle, what models of its data set are for, and how good they were meant to be."""

from collections.abc import Mapping
from dataclasses import dataclass

from service.documents import Calibration, Manifest


@dataclass(frozen=True)
class Target:
    """Of a model of at least this accuracy: the most it may have, of the ECE-15 also what it should; NLL in nats."""

    accuracy: float
    ece_15: float
    ece_15_stretch: float
    nll: float
    brier: float


@dataclass(frozen=True)
class Purpose:
    """images, intended, beyond and concern are sentences. targets: the least accuracy first."""

    images: str
    intended: str
    beyond: str
    concern: str
    targets: tuple[Target, ...] = ()

    def target(self, accuracy: float) -> Target | None:
        """The most demanding whose accuracy is reached; else the least demanding, which then is missed."""
        reached = [target for target in self.targets if accuracy >= target.accuracy]
        return max(reached or self.targets[:1], key=lambda target: target.accuracy, default=None)


UNKNOWN = Purpose(
    images="Images of a data set of which this page knows no more than its name.",
    intended="Images of the kind the model was trained on.",
    beyond="Images of anything else.",
    concern="Nothing is known of whom the images show or who labelled them.",
)
PURPOSES: dict[str, Purpose] = {
    "mnist": Purpose(
        images="MNIST (LeCun et al. 1998): digits handwritten by employees of the US Census Bureau and by pupils, one "
        "an image, centred, in grey.",
        intended="One handwritten digit an image, dark on light or light on dark.",
        beyond="Several digits, printed digits, letters, other scripts, pictures of anything else; and any use in "
        "which a misread digit harms somebody and nobody looks.",
        concern="The writers were of one country and decade, and how hands of elsewhere are read nothing here "
        "measures.",
        targets=(Target(accuracy=0.997, ece_15=0.0018, ece_15_stretch=0.00155, nll=0.010, brier=0.0056),),
    ),
    "cifar10": Purpose(
        images="CIFAR-10 (Krizhevsky 2009): colour photographs of 32 × 32 pixels from the web, each of one of ten "
        "kinds of things, labelled by students.",
        intended="Comparing and teaching: small photographs of one of the ten kinds of things, as in CIFAR-10.",
        beyond="Photographs of anything else, of several things or of people; and any use in which a wrong answer "
        "harms somebody.",
        concern="The photographs were gathered from the web without asking whoever took them, and show what is common "
        "there, not what is common.",
        targets=(
            Target(accuracy=0.94, ece_15=0.0085, ece_15_stretch=0.0073, nll=0.177, brier=0.0874),
            Target(accuracy=0.96, ece_15=0.0068, ece_15_stretch=0.0059, nll=0.135, brier=0.060),
        ),
    ),
}


@dataclass(frozen=True)
class Subject:
    """A bundle as its card sees it. files: bytes and SHA-256 of each that the manifest names, but the card."""

    manifest: Manifest
    calibration: Calibration
    files: Mapping[str, tuple[int, str]]

    @property
    def purpose(self) -> Purpose:
        return PURPOSES.get(str(self.manifest.training.get("dataset")), UNKNOWN)
