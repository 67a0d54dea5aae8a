"""`import_model`: a network that was trained elsewhere becomes a checkpoint of brats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.labels import LabelScheme, as_scheme
from ..data.naming import MODALITIES
from ..errors import CheckpointError, ConfigError, UnreadableFileError
from ..wording import brief, listing
from ..writing import require_writable
from .checkpoint import FORMAT, Checkpoint
from .foreign import Source, read_weights
from .monai_files import from_auto3dseg, from_bundle, is_auto3dseg, is_bundle
from .nnunet_folder import from_nnunet, is_nnunet

_KNOWN = (
    "brats imports MONAI's bundle brats_mri_segmentation, checkpoints of Auto3DSeg's SegResNetDS, "
    "and folders of nnU-Net v2"
)

_NNUNET_FILES = ("checkpoint_final.pth", "checkpoint_best.pth")


@dataclass(frozen=True)
class ImportedModel:
    """A network that was imported.

    Attributes:
        file: Its checkpoint.
        kind: What it was imported from.
        name: What its origin calls it.
        licence: The licence that its origin states.
        modalities: Input channels, in order.
        labels: Label scheme of predictions.
        window: Size of the windows that a case is computed in, in voxels.
        parameters: Number of weights.
    """

    file: Path
    kind: str
    name: str
    licence: str
    modalities: tuple[str, ...]
    labels: str
    window: tuple[int, ...]
    parameters: int


def import_model(
    source: str | Path,
    *,
    output: str | Path = "model.pt",
    fold: str | int = "all",
    modalities: str | Sequence[str] | None = None,
    labels: LabelScheme | str | None = None,
    overwrite: bool = False,
) -> list[ImportedModel]:
    """Turn a network that was trained elsewhere into a checkpoint of brats.

    What it is, is recognised by content. No code in it is run.

    Args:
        source: The file or folder that was downloaded.
        output: The checkpoint; for several folds of nnU-Net a folder, which `predict` averages.
        fold: Fold of nnU-Net, or "all".
        modalities: The network's input channels in order, as "flair,t1ce,t1,t2", if its files do
            not say it (those of Auto3DSeg).
        labels: Label scheme of predictions; by default that of the network's data.
        overwrite: Replace outputs that exist.

    Returns:
        What was imported, one per fold.

    Raises:
        BratsError: If it is of no known kind or another task, would run code, or cannot be written.
    """
    scheme, target = as_scheme(labels), Path(output)
    sources = list(_sources(Path(source), str(fold)))
    if len(sources) == 1:
        files = [target]
    elif target.suffix == ".pt":
        raise ConfigError(
            f"{source} holds {len(sources)} folds, which do not fit into {target}",
            hint="give a folder with -o, which predict averages; or choose one with --fold 0",
        )
    else:
        files = [target / name / "best.pt" for name, _ in sources]
    for file in files:
        require_writable(file, overwrite=overwrite)
    channels = _modalities(modalities)
    found = []
    for (_, read), file in zip(sources, files, strict=True):
        checkpoint = _checkpoint(read, channels)
        if scheme:
            checkpoint = replace(checkpoint, labels=scheme.name)
        checkpoint.save(file)
        found.append(_summary(checkpoint, file))
    return found


def _summary(checkpoint: Checkpoint, file: Path) -> ImportedModel:
    origin, sliding = checkpoint.origin, checkpoint.sliding
    return ImportedModel(
        file=file,
        kind=origin["kind"],
        name=origin["name"],
        licence=origin["licence"],
        modalities=checkpoint.modalities,
        labels=checkpoint.labels,
        window=sliding.window if sliding else (),
        parameters=sum(weight.numel() for weight in checkpoint.weights.values()),
    )


def _modalities(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    names = tuple(given.split(",") if isinstance(given, str) else given)
    if sorted(names) != sorted(MODALITIES):
        raise ConfigError(
            f"modalities {','.join(names)} are not each of {', '.join(MODALITIES)} once",
            hint="give them in the order of the network's channels: --modalities flair,t1ce,t1,t2",
        )
    return names


def _checkpoint(source: Source, modalities: tuple[str, ...] | None) -> Checkpoint:
    """The checkpoint of what is in a file.

    Raises:
        CheckpointError: If it is of no known kind, or its settings are not as its program writes
            them.
    """
    try:
        return _recognised(source, modalities)
    # What settings of other types, or of other numbers of entries, make of the code for them.
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"the settings of {source.weights} are not as its program writes them: {brief(e)}",
            hint="was a file changed, or are files of two networks mixed?",
        ) from e


def _recognised(source: Source, modalities: tuple[str, ...] | None) -> Checkpoint:
    content: Any = source.content
    if is_nnunet(content):
        found = from_nnunet(source)
    elif is_auto3dseg(content):
        return from_auto3dseg(source, modalities)
    elif is_bundle(content):
        found = from_bundle(source)
    else:
        raise _unknown(source)
    if modalities and modalities != found.modalities:
        raise ConfigError(
            f"the channels of {source.weights} are {','.join(found.modalities)} by its own files",
            hint="leave out --modalities",
        )
    return found


def _unknown(source: Source) -> CheckpointError:
    content = source.content
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return CheckpointError(
            f"{source.weights} is a checkpoint of brats", hint="use it with --model as it is"
        )
    keys = [str(key) for key in content] if isinstance(content, dict) else []
    holds = f"entries {listing(keys)}" if keys else f"a {type(content).__name__}"
    return CheckpointError(
        f"{source.weights} holds no network that brats knows ({holds})", hint=_KNOWN
    )


# --- finding the files -------------------------------------------------------------------------


def _sources(path: Path, fold: str) -> Iterator[tuple[str, Source]]:
    """The files of weights that are meant, each with a name, and read."""
    if not path.exists():
        raise UnreadableFileError(path, "there is no such file or folder", hint="check the path")
    if path.is_file():
        yield path.stem, _read(path)
        return
    if not path.is_dir():
        raise UnreadableFileError(path, "it is not a regular file", hint="give a file or a folder")
    folds = _folds(path)
    if folds:
        wanted = [each for each in folds if fold in ("all", each.parent.name.removeprefix("fold_"))]
        if not wanted:
            names = ", ".join(each.parent.name for each in folds)
            raise ConfigError(f"there is no fold {fold} in {path}", hint=f"it has {names}")
        for each in wanted:
            yield each.parent.name, _read(each)
        return
    weights = [path / place for place in ("models/model.pt", "model/model.pt", "model.pt")]
    present = [each for each in weights if each.is_file()]
    if not present:
        inside = sorted(each.name for each in path.iterdir())
        raise CheckpointError(
            f"{path} holds no network that brats knows (only {listing(inside) or 'nothing'})",
            hint=_KNOWN,
        )
    yield path.name, _read(present[0])


def _folds(path: Path) -> list[Path]:
    """The folds of nnU-Net in a folder, or in the one folder below it that has any."""
    homes = sorted(
        {plans.parent for depth in range(4) for plans in path.glob("*/" * depth + "plans.json")}
    )
    if len(homes) > 1:
        raise CheckpointError(
            f"{path} holds {len(homes)} trainings of nnU-Net: {listing(homes)}",
            hint="give one of them",
        )
    folds = sorted(homes[0].glob("fold_*")) if homes else []
    files = [
        next((each / name for name in _NNUNET_FILES if (each / name).is_file()), None)
        for each in folds
    ]
    return [file for file in files if file]


def _read(path: Path) -> Source:
    """A file of weights, and the folder of its settings."""
    content = read_weights(path)
    above = path.absolute().parents
    if path.parent.name.startswith("fold_"):
        return Source(path, content, path.parent.parent)
    if len(above) > 1 and (above[1] / "configs").is_dir():
        return Source(path, content, above[1])
    return Source(path, content, above[0] if (above[0] / "configs").is_dir() else None)
