"""Whose package Python finds under the name gradexp, which somebody else's on the package index has too."""

from hydra.errors import CompactHydraException


def require_own_package() -> None:
    """Go on only with the package that these plug-ins belong to, from the distribution gradexp-torch.

    Raises:
        CompactHydraException: If it is another, or none.
    """
    try:
        import gradexp
    except ImportError as error:
        raise CompactHydraException(f"gradexp's launchers and sweeper need gradexp: {error}") from error
    if "GradientProbe" not in getattr(gradexp, "__all__", ()):
        place = gradexp.__file__ or next(iter(gradexp.__path__))
        raise CompactHydraException(
            f"{place} is somebody else's package gradexp, and not that of gradexp-torch; "
            "pip uninstall gradexp, then install gradexp-torch from its clone again"
        )
