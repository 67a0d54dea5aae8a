"""The function behind `brats compare`: scores of several models, read, paired and compared."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import BratsWarning, CaseError, ConfigError, UnreadableFileError
from ..reading import table_lines
from ..wording import did_you_mean, listing
from ..writing import require_ending, require_writable
from .paired import Comparison, Key, differences, ranking
from .pairing import RULES
from .scores import is_ranked

DEFAULT_METRICS = ("dice", "hausdorff95_mm")
"""The metrics that are compared and ranked by default, as in the challenges."""


@dataclass(frozen=True)
class Scores:
    """A model's scores, as read from a CSV file of `brats evaluate`.

    Attributes:
        model: Its name.
        values: By case, then by region and metric; NaN where there is none.
        rules: The rules by which they were scored, from the columns `RULES`; empty in older files.
    """

    model: str
    values: Mapping[str, Mapping[Key, float]]
    rules: Mapping[str, str] = field(default_factory=dict)


def compare(
    scores: Sequence[str | Path],
    *,
    output: str | Path | None = None,
    metric: Sequence[str] = DEFAULT_METRICS,
    seed: int = 0,
    overwrite: bool = False,
) -> Comparison:
    """Compare the scores of two models or more, case by case.

    Args:
        scores: CSV files of `brats evaluate`, one per model, named after their files.
        output: A PNG file to draw the differences and their intervals to.
        metric: Metrics to compare and to rank by.
        seed: Random seed of the bootstrap and the permutations.
        overwrite: Whether `output` may exist.

    Raises:
        UnreadableFileError: If a file is not one of `brats evaluate`.
        CaseError: If the models have no case in common, or different regions.
        ConfigError: If there is no such metric, or the models were scored by different rules.
    """
    if len(scores) < 2:
        raise ConfigError(
            "there is nothing to compare", hint="give the scores of two models or more"
        )
    if output is not None:
        require_ending(Path(output), ".png")
        require_writable(Path(output), overwrite=overwrite)
    paths = [Path(path) for path in scores]
    names = model_names(paths)
    models = [read_scores(path, name) for path, name in zip(paths, names, strict=True)]
    cases = _common_cases(models)
    metrics = list(metric) or list(DEFAULT_METRICS)
    keys = _common_keys(models, cases, metrics, paths)
    _require_same_rules(models, metrics, paths)
    _warn_of_other_references(models, cases, paths)
    # (models, cases, keys)
    table = np.array(
        [[[model.values[case][key] for key in keys] for case in cases] for model in models]
    )
    every = dict.fromkeys(case for model in models for case in model.values)
    found = Comparison(
        differences(names, table, keys, seed),
        ranking(names, table, keys, seed),
        tuple(cases),
        {
            model.model: missing
            for model in models
            if (missing := tuple(case for case in every if case not in model.values))
        },
        seed,
    )
    if output is not None:
        from .plots import save_comparison  # matplotlib takes half a second to load

        save_comparison(found, Path(output), overwrite=overwrite)
    return found


# --- reading -----------------------------------------------------------------------------------


def model_names(paths: Sequence[Path]) -> list[str]:
    """Names of files without their suffix, with as many parent folders as make them distinct.

    >>> model_names([Path("a/scores.csv"), Path("b/scores.csv")])
    ['a/scores', 'b/scores']
    """
    for depth in range(1, 1 + max(len(path.parts) for path in paths)):
        names = ["/".join((*path.parent.parts, path.stem)[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("the same file is given twice", hint="give each model's scores once")


def read_scores(path: Path, model: str) -> Scores:
    """Read the CSV file of `brats evaluate`.

    Raises:
        UnreadableFileError: If it has no columns `case` and `region`, or a cell is not a number.
    """
    values: dict[str, dict[Key, float]] = {}
    rules: dict[str, str] = {}
    try:
        rows = csv.DictReader(table_lines(path, ","))
        names = list(rows.fieldnames or ())
        if names[:2] != ["case", "region"]:
            raise UnreadableFileError(
                path,
                "it does not begin with the columns case and region",
                hint="give what brats evaluate -o FILE.csv wrote",
            )
        metrics = [name for name in names[2:] if name not in RULES]
        for number, row in enumerate(rows, 2):
            _add_row(values.setdefault(row["case"], {}), row, metrics, path, number)
            said = {name: row[name] or "" for name in RULES if name in row}
            if (rules := rules or said) != said:
                raise UnreadableFileError(
                    path,
                    f"line {number} was scored by other rules ({_in_words(said)}) than the lines "
                    f"before it ({_in_words(rules)})",
                    hint="keep the scores of each run of brats evaluate in a file of their own",
                )
    except csv.Error as error:
        raise UnreadableFileError(path, "it is not a CSV file that can be read") from error
    if not values:
        raise UnreadableFileError(path, "it has no scores", hint="was any case scored?")
    return Scores(model, values, rules)


def _in_words(rules: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in rules.items())


def _add_row(
    case: dict[Key, float], row: Mapping[str, str | None], names: list[str], path: Path, line: int
) -> None:
    region = row["region"] or ""
    for name in names:
        cell = row[name]
        if cell is None or (region, name) in case:
            reason = "is cut short" if cell is None else f"has region {region} of a case again"
            raise UnreadableFileError(path, f"line {line} {reason}")
        try:
            case[region, name] = float(cell) if cell else math.nan
        except ValueError:
            raise UnreadableFileError(
                path,
                f"line {line} has '{cell}' for {name}, which is not a number",
                hint="give what brats evaluate -o FILE.csv wrote, unchanged",
            ) from None


def _common_cases(models: Sequence[Scores]) -> list[str]:
    common = [
        case for case in models[0].values if all(case in other.values for other in models[1:])
    ]
    if not common:
        some = "; ".join(f"{each.model}: {listing(list(each.values))}" for each in models)
        raise CaseError(
            f"the models have no case in common ({some})",
            hint="compare scores of predictions of the same cases",
        )
    return common


def _require_same_rules(
    models: Sequence[Scores], metrics: Sequence[str], paths: Sequence[Path]
) -> None:
    """Check that the metrics follow the same rules; warn of files that do not record their rules.

    Raises:
        ConfigError: If not.
    """
    stated = [(each, path) for each, path in zip(models, paths, strict=True) if each.rules]
    silent = [str(path) for each, path in zip(models, paths, strict=True) if not each.rules]
    if stated and silent:
        warnings.warn(
            f"no column of {listing(silent)} says by which convention it was scored: taken to be "
            f"{stated[0][0].rules.get('convention')}, as {stated[0][1]}",
            BratsWarning,
            stacklevel=2,
        )
    for rule, start in RULES.items():
        if not any(metric.startswith(start) for metric in metrics):
            continue
        for model, path in stated[1:]:
            ours, theirs = model.rules.get(rule), stated[0][0].rules.get(rule)
            if ours != theirs:
                raise ConfigError(
                    f"{path} and {stated[0][1]} were scored by different rules: {rule} "
                    f"{ours or 'not given'} and {theirs or 'not given'}",
                    hint="score all models with the same options of brats evaluate",
                )


def _warn_of_other_references(
    models: Sequence[Scores], cases: Sequence[str], paths: Sequence[Path]
) -> None:
    """Warn of models that were scored against different references, judged by their volumes."""
    first = models[0].values
    volumes = [key for key in first[cases[0]] if key[1] == "reference_mm3"]
    for model, path in zip(models[1:], paths[1:], strict=True):
        other = [
            case
            for case in cases
            for key in volumes
            # NaN, which a file without the column gives, is neither more nor less.
            if abs(first[case].get(key, math.nan) - model.values[case].get(key, math.nan)) > 0.01
        ]
        if other := list(dict.fromkeys(other)):
            warnings.warn(
                f"{path} and {paths[0]} were scored against different references: their volumes "
                f"differ in {listing(other)}",
                BratsWarning,
                stacklevel=2,
            )


def _common_keys(
    models: Sequence[Scores], cases: Sequence[str], metrics: Sequence[str], paths: Sequence[Path]
) -> list[Key]:
    """The regions and metrics that every case of every model has."""
    first = models[0].values[cases[0]]
    for model, path in zip(models, paths, strict=True):
        columns = dict.fromkeys(metric for _, metric in model.values[cases[0]])
        for metric in metrics:
            if metric not in columns or not is_ranked(metric):
                ranked = [name for name in columns if is_ranked(name)]
                raise ConfigError(
                    f"{path} has no metric '{metric}' to compare",
                    hint=did_you_mean(metric, ranked, otherwise=f"it has {', '.join(ranked)}"),
                )
    regions = dict.fromkeys(region for region, _ in first)
    for model, path in zip(models, paths, strict=True):
        for case in cases:
            lacking = [r for r in regions if (r, metrics[0]) not in model.values[case]]
            extra = {region for region, _ in model.values[case]} - set(regions)
            if lacking or extra:
                raise CaseError(
                    f"{path} has other regions of case {case} than {paths[0]}: "
                    f"{listing(sorted({region for region, _ in model.values[case]}))} "
                    f"instead of {listing(list(regions))}",
                    hint="score all models against the same references",
                )
    return [(region, metric) for region in regions for metric in metrics]
