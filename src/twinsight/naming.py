"""Names of classes as users read them."""

import re


def snake_case(name: str) -> str:
    """Class names as file names.

    >>> snake_case("InteractionCAM"), snake_case("DemoPhotos"), snake_case("CIFAR10")
    ('interaction_cam', 'demo_photos', 'cifar10')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
