"""What may happen to an image on its way to a network: for each data set, corruptions by their names.

Those of CIFAR-10 are the fifteen of CIFAR-10-C (Hendrycks and Dietterich 2019, arXiv:1903.12261), by the formulas and
the constants of the recipe that its authors published, which differ from ImageNet-C's. The random draws are others,
and the frost is drawn rather than photographed. Those of MNIST are in the manner of MNIST-C (Mu and Gilmer 2019,
arXiv:1906.02337).
"""

from models.corruptions import blur, digital, drawing, noise, weather
from models.corruptions.corruption import Corruption

NOISE, BLUR, WEATHER, DIGITAL = "noise", "blur", "weather", "digital"


def _one_each(*values: float) -> tuple[tuple[float], ...]:
    return tuple((value,) for value in values)


CORRUPTIONS: dict[str, dict[str, Corruption]] = {
    "cifar10": {
        "gaussian_noise": Corruption(NOISE, noise.gaussian, _one_each(0.04, 0.06, 0.08, 0.09, 0.10)),
        "shot_noise": Corruption(NOISE, noise.shot, _one_each(500, 250, 100, 75, 50)),
        "impulse_noise": Corruption(NOISE, noise.impulse, _one_each(0.01, 0.02, 0.03, 0.05, 0.07)),
        "defocus_blur": Corruption(BLUR, blur.defocus, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
        "glass_blur": Corruption(
            BLUR, blur.glass, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))
        ),
        "motion_blur": Corruption(BLUR, blur.motion, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
        "zoom_blur": Corruption(BLUR, blur.zoom, _one_each(1.06, 1.11, 1.16, 1.21, 1.26)),
        "snow": Corruption(
            WEATHER,
            weather.snow,
            (
                (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
                (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
                (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
                (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
                (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
            ),
        ),
        "frost": Corruption(WEATHER, weather.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
        "fog": Corruption(WEATHER, weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
        "brightness": Corruption(WEATHER, weather.brightness, _one_each(0.05, 0.1, 0.15, 0.2, 0.3)),
        "contrast": Corruption(DIGITAL, digital.contrast, _one_each(0.75, 0.5, 0.4, 0.3, 0.15)),
        "elastic_transform": Corruption(
            DIGITAL,
            digital.elastic,
            ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        ),
        "pixelate": Corruption(DIGITAL, digital.pixelate, _one_each(0.95, 0.9, 0.85, 0.75, 0.65)),
        "jpeg_compression": Corruption(DIGITAL, digital.jpeg, _one_each(80, 65, 58, 50, 40)),
    },
    "mnist": {
        "rotation": Corruption("rotation", drawing.rotation, _one_each(10, 20, 30, 40, 50, 60)),
        "translation": Corruption("translation", drawing.translation, _one_each(2, 4, 6, 8, 10)),
        "gaussian_noise": Corruption(NOISE, noise.gaussian, _one_each(0.1, 0.2, 0.3, 0.4, 0.5)),
        "gaussian_blur": Corruption(BLUR, blur.gaussian, _one_each(0.5, 1, 1.5, 2, 2.5)),
        "occlusion": Corruption("occlusion", drawing.occlusion, _one_each(4, 6, 8, 10, 12)),
    },
}
